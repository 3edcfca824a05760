"""What each process of a training does: epoch after epoch, feed, step, validate; the first one writes and reports."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import ray
import ray.train
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from ray.train.torch import get_device, prepare_model
from torch import Tensor, nn

from pipeline.graph.train.checkpoints import Epoch, TrainingFiles
from pipeline.graph.train.data_feed import Feed, PictureReader, Pictures
from pipeline.graph.train.epoch_metrics import EpochMetrics
from pipeline.images.augment import box_shares, draw_views, picture_side, take_views, view_boxes
from pipeline.images.decode import DecodeLimits
from pipeline.images.resize import ResizePlan
from pipeline.models.allocator import keep_freed_memory
from pipeline.models.building import cam_network
from pipeline.models.learn.conversion import build_network
from pipeline.models.learn.recipe import Recipe
from pipeline.models.learn.steps import Learner, freeze, mean_average_precision
from pipeline.models.localize.runtime import resolve_precision
from pipeline.models.networks.box_head import BoxedNetwork
from pipeline.models.weights.checkpoint import Card
from pipeline.models.weights.state_fitting import State
from pipeline.storage.truth.labelled_boxes import BOX
from schemas.config import Precision, StorageConfig
from schemas.train import Augment

T = TypeVar("T")


@dataclass(frozen=True)
class WorkerPlan:
    """Where a training runs."""

    workers: int
    workers_given: bool
    """Whether the user chose their number; else it follows the GPUs there are."""
    cuda: bool
    worker_cpus: float
    threads: int
    """Of torch, in each process on CPU."""
    task_cpus: float
    """Of a task that fetches and decodes."""
    feed_cpus: float
    """All tasks of one process together."""

    @property
    def least_cpus(self) -> float:
        """CPUs of the cluster below which the processes leave none to the tasks that feed them."""
        return self.workers * self.worker_cpus + self.task_cpus


@dataclass(frozen=True)
class TrainJob:
    """All that a process needs to know, but the images and the first weights."""

    card: Card
    """What the weights will say of themselves; ``facts`` gains the figures of the epoch."""
    new: tuple[str, ...]
    """Parameters that start from random values."""
    head_only: bool
    recipe: Recipe
    files: TrainingFiles
    lease: int
    """Generation of the output's lease that this training holds."""
    storage: StorageConfig
    limits: DecodeLimits
    layout: WorkerPlan
    precision: Precision
    epochs: int
    batch_size: int
    """Images of a step, over all processes."""
    augment: Augment
    patience: int | None
    seed: int


class SharedRefs(NamedTuple):
    """References to what is large and the same for all processes, in Ray's object store."""

    state: Any
    """State: the first weights."""
    train: Any
    """Plan of the training images."""
    val: Any
    """Plan of the validation images; may be empty."""
    board: Any
    """The actor ``pipeline.graph.train.train_progress.TrainProgressActor``."""


def epoch_order(n_images: int, batch_size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return (steps, batch_size): which images meet in each step of an epoch.

    All images in random order; the last step is filled up from the beginning, so that every step is of one size.
    """
    order = np.random.default_rng((seed, epoch)).permutation(n_images)
    steps = -(-n_images // batch_size)
    return np.resize(order, (steps, batch_size))


def learn(config: dict[str, Any]) -> None:
    """Train as one of the processes that Ray Train started; ``config`` has the TrainJob and what is SharedRefs."""
    job, given = config["job"], config["given"]
    torch.set_num_threads(job.layout.threads)
    keep_freed_memory()
    _Process(job, given).run()


class _Process:
    """One of the processes that share a training."""

    def __init__(self, job: TrainJob, given: SharedRefs) -> None:
        """Take the state that the output holds, or the first weights."""
        context = ray.train.get_context()
        self.rank, self._world = context.get_world_rank(), context.get_world_size()
        self._job, self._board = job, given.board
        self._batch_size = job.batch_size // self._world
        self._device = torch.device("cpu") if not job.layout.cuda else get_device()
        state, self._train, self._val = ray.get([given.state, given.train, given.val])
        self._learner = self._new_learner(state)
        side = job.card.preprocessing.image_size
        self._train_feed = self._feed(given.train, picture_side(side, job.augment))
        self._val_feed = self._feed(given.val, side)
        job.files.assert_held(job.lease)
        self._progress, learned = job.files.resume()
        ray.get(self._board.join.remote(ray.get_runtime_context().current_actor))
        if self.rank == 0:
            ray.get(self._board.begin.remote(self._progress.history))
        # Nobody gets past this before the first one has begun: what counts afterwards belongs to the next epoch.
        self._nodes = len(set(self._gathered(ray.get_runtime_context().get_node_id())))
        if learned is not None:
            self._learner.restore(learned)
        self._rejected: dict[str, tuple[str, str]] = {}

    def _new_learner(self, state: State) -> Learner:
        job = self._job
        network = build_network(job.card.architecture, state)
        if job.head_only:
            freeze(network, job.new)
        if job.layout.cuda and self._world > 1:
            # Batch normalization over all processes exists on CUDA alone; on CPU each one goes by its own images.
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        card = job.card
        return Learner(
            network,
            card.preprocessing,
            job.recipe,
            new=job.new,
            answering=_boxed(card, network) if card.supervision == "boxes" else None,
            multi_label=card.multi_label,
            device=self._device,
            precision=resolve_precision(job.precision, self._device.type),
            parallel=lambda module: prepare_model(module, move_to_device=False),
        )

    def _feed(self, plan: Any, side: int) -> Feed:
        job = self._job
        resize = ResizePlan("squash", side, (1, 1))  # A squashed picture's cells don't matter to its pixels.
        reader = PictureReader(job.storage, job.limits, resize)
        return Feed(reader, plan, job.layout.task_cpus, job.layout.feed_cpus)

    def run(self) -> None:
        """Train from the first epoch that is not done to the last one that is needed."""
        job, progress = self._job, self._progress
        while not progress.ended(job.epochs, job.patience):
            number = len(progress.history)
            started_s = time.monotonic()
            # Every source of chance follows from seed, epoch and process, so that a resumed epoch is the same one.
            torch.manual_seed(int(np.random.SeedSequence((job.seed, number, self.rank)).generate_state(1)[0]))
            epoch: Epoch = {"epoch": number + 1, **self._train_epoch(number), **self._validate()}
            for rejected in self._gathered(self._rejected):
                progress.rejected.update(rejected)
            epoch |= {"rejected": len(progress.rejected), "seconds": round(time.monotonic() - started_s, 3)}
            epoch |= {"processes": self._world, "nodes": self._nodes}
            better = progress.add(epoch)
            # No ray.train.report: it waits for Ray Train's next look at its processes, two seconds for each epoch.
            if self.rank == 0:
                self._write(epoch, better)

    def _train_epoch(self, number: int) -> Epoch:
        job, size = self._job, self._batch_size
        order = epoch_order(len(self._train), job.batch_size, job.seed, number)
        own = order[:, self.rank * size : (self.rank + 1) * size].reshape(-1)
        side = job.card.preprocessing.image_size
        tally = EpochMetrics("train", job.card.multi_label)
        for pictures in self._pictures(self._train_feed, self._train, own):
            views = draw_views(job.augment, job.seed, number, pictures.numbers)
            images = take_views(torch.from_numpy(pictures.pixels).to(self._device), views, side)
            targets, boxes = self._targets(self._train, pictures.numbers), self._boxes(self._train, pictures)
            boxes = boxes if boxes is None else view_boxes(boxes, views)
            tally.add(self._learner.step(images, targets, size, boxes), targets, boxes)
        return tally.figures(self._summed) | {"learning_rate": self._learner.rate}

    def _validate(self) -> Epoch:
        if not len(self._val):
            return {}
        if self._world > 1:
            # The statistics of batch normalization that are kept are those of the first process.
            for buffer in self._learner.network.buffers():
                dist.broadcast(buffer, 0)
        tally = EpochMetrics("val", self._job.card.multi_label)
        scores, truths = [], []
        for pictures in self._pictures(self._val_feed, self._val, np.arange(len(self._val))[self.rank :: self._world]):
            images = torch.from_numpy(pictures.pixels).to(self._device).permute(0, 3, 1, 2).float()
            targets, boxes = self._targets(self._val, pictures.numbers), self._boxes(self._val, pictures)
            answer = self._learner.evaluate(images, targets, boxes)
            tally.add(answer, targets, boxes)
            if self._job.card.multi_label:
                scores.append(answer.logits.numpy())
                truths.append(targets.numpy())
        figures = tally.figures(self._summed)
        if self._job.card.multi_label:
            every = [part for parts in self._gathered(list(zip(scores, truths, strict=True))) for part in parts]
            found, true = (np.concatenate(column) for column in zip(*every, strict=True))
            figures["val_map"] = mean_average_precision(found, true)
        return figures

    def _pictures(self, feed: Feed, plan: pa.Table, order: NDArray[np.int64]) -> Iterator[Pictures]:
        """Yield the batches, note what is rejected, and report how far it is."""
        for pictures in feed.batches(order, self._batch_size):
            uris = plan["uri"].take(pa.array(pictures.rejected, pa.int64())).to_pylist()
            self._rejected.update(zip(uris, pictures.rejected.values(), strict=True))
            yield pictures
            self._board.add.remote(len(self._progress.history) + 1, len(pictures.numbers), len(pictures.rejected))

    def _targets(self, plan: pa.Table, numbers: NDArray[np.int64]) -> Tensor:
        targets = torch.zeros(len(numbers), self._job.card.architecture.classes)
        for row, ids in enumerate(plan["classes"].take(numbers).to_pylist()):
            targets[row, ids] = 1
        return targets

    def _boxes(self, plan: pa.Table, pictures: Pictures) -> Tensor | None:
        """Return the boxes (n, 4) as shares of the pictures, NaN where unknown; None where none are learned."""
        if self._job.card.supervision == "labels":
            return None
        return box_shares(plan[BOX.name].take(pictures.numbers).to_pylist(), pictures.sizes_hw)

    def _summed(self, sums: Tensor) -> Tensor:
        """Return the sum over all processes."""
        if self._world > 1:
            sums = sums.to(self._device)
            dist.all_reduce(sums)
        return sums

    def _gathered(self, mine: T) -> list[T]:
        if self._world == 1:
            return [mine]
        found: list[Any] = [None] * self._world
        dist.all_gather_object(found, mine)
        return found

    def _write(self, epoch: Epoch, better: bool) -> None:
        card = replace(self._job.card, facts={**self._job.card.facts, "metrics": epoch})
        self._job.files.assert_held(self._job.lease)
        self._job.files.write(self._progress, self._learner.state(), card, better)
        ray.get(self._board.tell.remote(epoch))


def _boxed(card: Card, network: nn.Module) -> BoxedNetwork:
    return BoxedNetwork(network, cam_network(card.architecture, network, card.preprocessing).trunk)
