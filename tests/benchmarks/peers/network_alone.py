"""The network alone: forward passes of a batch in memory, without decoding, maps, boxes and rows, on all cores."""

import os
import time
from collections.abc import Callable
from typing import Literal

import torch

from jobs.benchmark.together import run_together, wait_for_all
from pipeline.models.localize.engine import Engine
from pipeline.models.localize.runtime import Runtime
from tests.benchmarks.peers.setup import BATCH, Setup
from tests.references.network_by_hand import load

SECONDS = 5

How = Literal["pytorch", "engine"]
"""In plain PyTorch, with autocast for other number types than fp32; or in camlake's engine, which converts weights."""


def network_alone(setup: Setup, how: How) -> float:
    """Return images/s: of a process for each core, or of one process with a thread for each, whichever is faster."""
    cores = os.cpu_count() or 1
    ways = [[(setup, how, 1)] * cores, [(setup, how, cores)]]
    return max(sum(run_together(passes_per_s, way)) for way in ways)


def passes_per_s(setup: Setup, how: How, threads: int) -> float:
    """Return images/s of this process; the start and the first passes do not count."""
    torch.set_num_threads(threads)
    run = _plain(setup) if how == "pytorch" else _engine(setup, threads)
    for _ in range(3):
        run()
    wait_for_all()
    started, images = time.perf_counter(), 0
    while (elapsed_s := time.perf_counter() - started) < SECONDS:
        run()
        images += BATCH
    return images / elapsed_s


def _plain(setup: Setup) -> Callable[[], object]:
    network = setup.network()
    side = network.preprocessing.image_size
    images = torch.rand(BATCH, 3, side, side).to(memory_format=torch.channels_last)
    return lambda: network.classify(images)


def _engine(setup: Setup, threads: int) -> Callable[[], object]:
    network = load(setup.model, setup.weights)[0].eval()
    engine = Engine(network, Runtime("cpu", setup.precision, compile=False, threads=threads, batch_size=BATCH))
    head = network.head.behind_trunk_in(engine.dtype)
    side = network.preprocessing.image_size
    pixels = torch.randint(0, 256, (BATCH, side, side, 3), dtype=torch.uint8)

    def run() -> object:
        with torch.inference_mode():
            return head(engine(pixels)).logits

    return run
