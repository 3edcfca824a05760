"""Loops in one process: decoding one image after the other, or decoding in the workers of a torch DataLoader."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from tests.benchmarks.peers.setup import BATCH, Setup
from tests.benchmarks.peers.table_writer import TableWriter
from tests.references.network_by_hand import ByHand, read_image

Pixels = NDArray[np.uint8]


def bare_loop(setup: Setup) -> float:
    """Return images/s of decoding and the network without outputs, on all cores; start-up and warm-up do not count."""
    network = _started(setup)
    paths = setup.paths()
    started = time.perf_counter()
    for at in range(0, len(paths), BATCH):
        pixels, _ = _batch([read_image(path, _side(network)) for path in paths[at : at + BATCH]])
        network.classify(network.normalized(pixels))
    return len(paths) / (time.perf_counter() - started)


def hand_loop(setup: Setup) -> float:
    """Return images/s of a loop that writes all tables, on all cores; start-up and warm-up do not count."""
    network = _started(setup)
    paths = setup.paths()
    started = time.perf_counter()
    with _tables(setup, network) as tables:
        for at in range(0, len(paths), BATCH):
            some = paths[at : at + BATCH]
            pixels, sizes_hw = _batch([read_image(path, _side(network)) for path in some])
            tables.add(some, sizes_hw, network(network.normalized(pixels)))
    return len(paths) / (time.perf_counter() - started)


class PhotographDataset(Dataset[tuple[Pixels, tuple[int, int]]]):
    """The photographs that the workers of a DataLoader read."""

    def __init__(self, paths: Sequence[str], side: int) -> None:
        """Keep the files' ``paths``; ``side`` is the side of the network's input in pixels."""
        self._paths, self._side = paths, side

    def __len__(self) -> int:
        """Return the number of photographs."""
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Pixels, tuple[int, int]]:
        """Return a photograph's pixels (side, side, 3) uint8 and its original (height, width) in pixels."""
        return read_image(self._paths[index], self._side)


def run(setup: Setup) -> None:
    """Write all tables; as many worker processes as there are cores decode while this process runs the network."""
    network = _started(setup)
    paths = setup.paths()
    batches = DataLoader(
        PhotographDataset(paths, _side(network)),
        BATCH,
        num_workers=os.cpu_count() or 1,
        collate_fn=_batch,
        prefetch_factor=2,
    )
    done = 0
    with _tables(setup, network) as tables:
        for pixels, sizes_hw in batches:
            tables.add(paths[done : done + len(pixels)], sizes_hw, network(network.normalized(pixels)))
            done += len(pixels)


def _started(setup: Setup) -> ByHand:
    torch.set_num_threads(os.cpu_count() or 1)
    network = setup.network()
    network.classify(torch.zeros(BATCH, 3, _side(network), _side(network)).to(memory_format=torch.channels_last))
    return network


def _side(network: ByHand) -> int:
    return network.preprocessing.image_size


def _tables(setup: Setup, network: ByHand) -> TableWriter:
    return TableWriter(Path(setup.out), network.channels, network.labels)


def _batch(images: Sequence[tuple[Pixels, tuple[int, int]]]) -> tuple[Pixels, NDArray[np.int64]]:
    return np.stack([pixels for pixels, _ in images]), np.array([size for _, size in images])
