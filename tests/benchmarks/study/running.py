"""Train the unfinished networks of a study, several at the same time, until the study's minutes are over."""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import torch

from pipeline.models.allocator import keep_freed_memory
from tests.benchmarks.study import scene_sets
from tests.benchmarks.study.learning import learn
from tests.benchmarks.study.results import Result, is_finished, keep
from tests.benchmarks.study.scoring import found_by, predictions
from tests.benchmarks.study.study_config import StudyConfig
from tests.benchmarks.study.study_networks import StudyNetwork

Task = tuple[StudyNetwork, int]
"""A training: an entry and a seed."""


@contextmanager
def workers(n_workers: int) -> Iterator[Executor]:
    """Yield a pool of new processes; each computes on one thread."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n_workers, mp_context=context, initializer=_one_thread) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)


def run_tasks(
    config: StudyConfig,
    device: str,
    tasks: list[Task],
    pool: Executor,
    may_begin: Callable[[], bool],
    report: Callable[[StudyNetwork, Result], None],
) -> None:
    """Train the tasks in order, as many at a time as there are workers, and report each finished task.

    No task begins once ``may_begin()`` is False; running tasks are completed.
    """
    left = iter(tasks)
    running: dict[Future[Result], StudyNetwork] = {}
    while True:
        while len(running) < config.workers and may_begin() and (task := next(left, None)):
            running[pool.submit(train_one, config, *task, device)] = task[0]
        if not running:
            return
        for done in wait(running, return_when=FIRST_COMPLETED).done:
            report(running.pop(done), done.result())


def train_one(config: StudyConfig, entry: StudyNetwork, seed: int, device: str) -> Result:
    """Train and score one network, write its weights and result into the study's folder, and return the result."""
    started = time.monotonic()
    folder = Path(config.folder)
    train, choose, test, hints = (scene_sets.load(folder / "scenes", part) for part in scene_sets.PARTS)
    learned = learn(config, entry, seed, train, device)
    network = learned.network
    wrong, hinted = ((predictions(network, each, device) != each.labels).astype(np.float64) for each in (test, hints))
    found = {way: found_by(network, way, choose, test, device) for way in entry.ways}
    result = Result(
        entry.key,
        seed,
        round(time.monotonic() - started, 1),
        network.n_parameters,
        network.preprocessing.image_size,
        network.map_size(network.preprocessing.image_size),
        learned.losses,
        wrong,
        hinted,
        found,
    )
    keep(folder, entry, result, learned.module)
    return result


def unfinished(config: StudyConfig, tasks: list[Task]) -> list[Task]:
    """Return the tasks without a result."""
    return [(entry, seed) for entry, seed in tasks if not is_finished(Path(config.folder), entry, seed)]


def _one_thread() -> None:
    keep_freed_memory()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
