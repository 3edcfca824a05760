"""Time the top-5 maps of pictures in memory: camlake's localizer, pytorch-grad-cam, torch-cam; fp32, all cores."""

import importlib
import os
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.models.localize.box_rules import BoxRule
from pipeline.models.localize.localizer import CamRule, Localizer
from pipeline.models.localize.runtime import Runtime
from pipeline.models.networks.network import CamNetwork
from tests.benchmarks.peers.setup import BATCH, Setup
from tests.references.network_by_hand import TOPK, load, normalized, read_image
from tests.references.opencv_boxes import THRESHOLD

Pixels = NDArray[np.uint8]

TIMED_S = 3.0
"""Seconds for which the maps of the pictures are made again and again, because a process's first batches are slow."""


def images_per_s(library: str, setup: Setup) -> float:
    """Return images/s of ``library``: "camlake" or a module of this package. The first batch does not count."""
    cores = os.cpu_count() or 1
    torch.set_num_threads(cores)
    network, _ = load(setup.model, setup.weights)
    side = network.preprocessing.image_size
    pixels = np.stack([read_image(path, side)[0] for path in setup.paths()])
    batches = [pixels[at : at + BATCH] for at in range(0, len(pixels), BATCH)]
    work = _camlake(network, cores) if library == "camlake" else _peer(network, library)
    work(batches[0])
    done, started = 0, time.perf_counter()
    while (spent_s := time.perf_counter() - started) < TIMED_S:
        for batch in batches:
            work(batch)
        done += len(pixels)
    return done / spent_s


def _camlake(network: CamNetwork, cores: int) -> Callable[[Pixels], object]:
    runtime = Runtime(device="cpu", precision="fp32", compile=False, threads=cores, batch_size=BATCH)
    localizer = Localizer(network, CamRule(TOPK, BoxRule("paper", (THRESHOLD,), 0.0)), runtime)
    side = network.preprocessing.image_size
    map_hw = network.map_size(side)
    return lambda pixels: localizer(torch.from_numpy(pixels), [(side, side)] * len(pixels), [map_hw] * len(pixels))


def _peer(network: CamNetwork, library: str) -> Callable[[Pixels], object]:
    maps = importlib.import_module(f"tests.benchmarks.peers.{library}").maps_of(network)
    return lambda pixels: maps(normalized(pixels, network.preprocessing))
