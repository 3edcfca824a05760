"""Images/s of the whole job at steady state, against a plain loop without output, interleaved."""

import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch

from jobs.annotate import annotate
from jobs.console import Screen
from jobs.suites.common import Figures, Watch, make_photographs, spread, weights_file
from pipeline.graph.resources import CPU_BATCH
from pipeline.models.registry import load_network
from pipeline.models.weights import load_weights
from schemas.config import AnnotateConfig, BenchmarkConfig

LOOP_IMAGES = 640
"""Images of one run of the plain loop: enough for a few seconds, since it has no start-up to leave out."""


def measure(config: BenchmarkConfig, screen: Screen) -> Figures:
    """Return images/s of ``camlake annotate`` (all tables) and of the loop, and their ratio run by run."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        photographs = make_photographs(config, folder / "photographs", config.count)
        weights = weights_file(config, folder)
        job, loop = [], []
        for repeat in range(config.repeats):
            loop.append(_in_new_process(photographs[:LOOP_IMAGES], config.model, weights))
            job.append(_annotate(config, folder, weights, repeat))
            loop[-1] = (loop[-1] + _in_new_process(photographs[:LOOP_IMAGES], config.model, weights)) / 2
            screen.say(f"run {repeat + 1}: {job[-1]:.1f} images/s, plain loop {loop[-1]:.1f} images/s")
    ratio = [ours / theirs for ours, theirs in zip(job, loop, strict=True)]
    return {"images": config.count, "job images/s": spread(job), "loop images/s": spread(loop), "ratio": spread(ratio)}


def _annotate(config: BenchmarkConfig, folder: Path, weights: str, repeat: int) -> float:
    watch = Watch()
    annotate(
        AnnotateConfig(
            input=str(folder / "photographs"),
            out=str(folder / f"out-{repeat}"),
            model=config.model,
            weights=weights,
        ),
        watch,
    )
    return watch.steady_per_s(config.count)


def _in_new_process(photographs: list[Path], model: str, weights: str) -> float:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(plain_loop, photographs, model, weights).result()


def plain_loop(photographs: list[Path], model: str, weights: str) -> float:
    """Return images/s of what one would write by hand: read, decode, resize, stack, run the network on all cores."""
    torch.set_num_threads(os.cpu_count() or 1)
    network = load_network(model, load_weights(model, weights, None).state, None)
    network = network.to(memory_format=torch.channels_last)
    side = network.preprocessing.image_size
    with torch.inference_mode():
        network(torch.zeros(CPU_BATCH, side, side, 3, dtype=torch.uint8))
        started = time.perf_counter()
        for at in range(0, len(photographs), CPU_BATCH):
            pictures = [cv2.imread(str(path), cv2.IMREAD_COLOR_RGB) for path in photographs[at : at + CPU_BATCH]]
            inputs = np.stack([cv2.resize(picture, (side, side)) for picture in pictures])
            network(torch.from_numpy(inputs))
        return len(photographs) / (time.perf_counter() - started)
