"""The work of each process of a training: it learns and validates each epoch; the first process writes and reports."""

import time
from collections.abc import Iterator
from dataclasses import replace
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

from pipeline.graph.train.checkpoints import Epoch
from pipeline.graph.train.data_feed import Feed, PictureReader, TrainBatch
from pipeline.graph.train.epoch_metrics import EpochMetrics
from pipeline.graph.train.plan import TrainJob, epoch_order
from pipeline.images.augment import box_shares, draw_views, picture_side, take_views, view_boxes
from pipeline.images.decode import DecodeLimits
from pipeline.images.resize import ResizePlan
from pipeline.models import registry
from pipeline.models.allocator import keep_freed_memory
from pipeline.models.learn.conversion import build_network
from pipeline.models.learn.learner import Learner, freeze, mean_average_precision
from pipeline.models.localize.runtime import resolve_precision
from pipeline.models.networks.box_head import BoxedNetwork
from pipeline.models.weights.checkpoint import Card
from pipeline.models.weights.state_fitting import State
from pipeline.storage.truth.labelled_boxes import BOX

T = TypeVar("T")


class SharedRefs(NamedTuple):
    """References that all processes share: to Ray's object store, and to the actor that keeps the progress."""

    state: Any
    """Reference to the first weights (State)."""
    train: Any
    """Reference to the table of the training images."""
    val: Any
    """Reference to the table of the validation images, which may be empty."""
    progress: Any
    """The ``TrainProgressActor`` of the training."""


def learn(config: dict[str, Any]) -> None:
    """Train as one of the processes that Ray Train started; ``config`` holds the TrainJob and the SharedRefs."""
    job, refs = config["job"], config["refs"]
    torch.set_num_threads(job.workers.threads)
    keep_freed_memory()
    _Process(job, refs).run()


class _Process:
    """One of the processes that share a training."""

    def __init__(self, job: TrainJob, refs: SharedRefs) -> None:
        """Start from the resume state at the output, or from the first weights where there is none."""
        context = ray.train.get_context()
        self.rank, self._world = context.get_world_rank(), context.get_world_size()
        self._job, self._config, self._progress_actor = job, job.config, refs.progress
        self._batch_size = job.config.batch_size // self._world
        self._device = torch.device("cpu") if not job.workers.cuda else get_device()
        state, self._train, self._val = ray.get([refs.state, refs.train, refs.val])
        self._learner = self._new_learner(state)
        side = job.card.preprocessing.image_size
        self._train_feed = self._feed(refs.train, picture_side(side, job.config.augment))
        self._val_feed = self._feed(refs.val, side)
        job.files.assert_held(job.lease)
        self._progress, learner_state = job.files.resume()
        ray.get(self._progress_actor.join.remote(ray.get_runtime_context().current_actor))
        if self.rank == 0:
            ray.get(self._progress_actor.begin.remote(self._progress.history))
        # All processes wait for each other here: no process reports images before the first one has called ``begin``.
        self._nodes = len(set(self._gathered(ray.get_runtime_context().get_node_id())))
        if learner_state is not None:
            self._learner.restore(learner_state)
        self._rejected: dict[str, tuple[str, str]] = {}

    def _new_learner(self, state: State) -> Learner:
        job = self._job
        network = build_network(job.card.architecture, state)
        if job.config.train == "head":
            freeze(network, job.new)
        if job.workers.cuda and self._world > 1:
            # Batch normalization over all processes exists on CUDA only; on CPU a process normalizes by its own images.
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        card = job.card
        return Learner(
            network,
            card.preprocessing,
            job.recipe,
            new=job.new,
            boxed=_boxed(card, network) if card.supervision == "boxes" else None,
            multi_label=card.multi_label,
            device=self._device,
            precision=resolve_precision(job.config.precision, self._device.type),
            parallel=lambda module: prepare_model(module, move_to_device=False),
        )

    def _feed(self, images: Any, side: int) -> Feed:
        config, workers = self._config, self._job.workers
        limits = DecodeLimits(config.max_pixels, config.max_bytes, config.decode_timeout_s)
        # The size of the map (1, 1) has no effect on the pixels.
        resize = ResizePlan("squash", side, (1, 1), self._job.card.preprocessing.interpolation)
        reader = PictureReader(config.storage, limits, resize)
        return Feed(reader, images, workers.task_cpus, workers.feed_cpus)

    def run(self) -> None:
        """Train from the first epoch that is not done until the training has ended."""
        config, progress = self._config, self._progress
        while not progress.ended(config.epochs, config.patience):
            number = len(progress.history)
            started_s = time.monotonic()
            # Seed, epoch and process determine all random numbers, so that a repeated epoch gives the same result.
            torch.manual_seed(int(np.random.SeedSequence((config.seed, number, self.rank)).generate_state(1)[0]))
            epoch: Epoch = {"epoch": number + 1, **self._train_epoch(number), **self._validate()}
            for rejected in self._gathered(self._rejected):
                progress.rejected.update(rejected)
            epoch |= {"rejected": len(progress.rejected), "seconds": round(time.monotonic() - started_s, 3)}
            epoch |= {"processes": self._world, "nodes": self._nodes}
            better = progress.add(epoch)
            # ray.train.report would wait until Ray Train polls its processes again: two seconds for each epoch.
            if self.rank == 0:
                self._write(epoch, better)

    def _train_epoch(self, number: int) -> Epoch:
        config, card, size = self._config, self._job.card, self._batch_size
        order = epoch_order(len(self._train), config.batch_size, config.seed, number)
        own = order[:, self.rank * size : (self.rank + 1) * size].reshape(-1)
        side = card.preprocessing.image_size
        metrics = EpochMetrics("train", card.multi_label)
        for pictures in self._pictures(self._train_feed, self._train, own):
            views = draw_views(config.augment, config.seed, number, pictures.numbers)
            images = take_views(torch.from_numpy(pictures.pixels).to(self._device), views, side)
            targets, boxes = self._targets(self._train, pictures.numbers), self._boxes(self._train, pictures)
            boxes = boxes if boxes is None else view_boxes(boxes, views)
            metrics.add(self._learner.step(images, targets, size, boxes), targets, boxes)
        return metrics.figures(self._summed) | {"learning_rate": self._learner.rate}

    def _validate(self) -> Epoch:
        if not len(self._val):
            return {}
        if self._world > 1:
            # The weights that are written contain the batch normalization statistics of the first process.
            for buffer in self._learner.network.buffers():
                dist.broadcast(buffer, 0)
        metrics = EpochMetrics("val", self._job.card.multi_label)
        scores, truths = [], []
        for pictures in self._pictures(self._val_feed, self._val, np.arange(len(self._val))[self.rank :: self._world]):
            images = torch.from_numpy(pictures.pixels).to(self._device).permute(0, 3, 1, 2).float()
            targets, boxes = self._targets(self._val, pictures.numbers), self._boxes(self._val, pictures)
            result = self._learner.evaluate(images, targets, boxes)
            metrics.add(result, targets, boxes)
            if self._job.card.multi_label:
                scores.append(result.logits.numpy())
                truths.append(targets.numpy())
        figures = metrics.figures(self._summed)
        if self._job.card.multi_label:
            every = [part for parts in self._gathered(list(zip(scores, truths, strict=True))) for part in parts]
            every_score, every_truth = (np.concatenate(column) for column in zip(*every, strict=True))
            figures["val_map"] = mean_average_precision(every_score, every_truth)
        return figures

    def _pictures(self, feed: Feed, images: pa.Table, order: NDArray[np.int64]) -> Iterator[TrainBatch]:
        """Yield batches of the rows ``order``; keep the rejected images, and report the numbers of both kinds."""
        for pictures in feed.batches(order, self._batch_size):
            uris = images["uri"].take(pa.array(pictures.rejected, pa.int64())).to_pylist()
            self._rejected.update(zip(uris, pictures.rejected.values(), strict=True))
            yield pictures
            epoch = len(self._progress.history) + 1
            self._progress_actor.add_batch.remote(epoch, len(pictures.numbers), len(pictures.rejected))

    def _targets(self, images: pa.Table, numbers: NDArray[np.int64]) -> Tensor:
        """Return (n, C) float32: 1 for the labels of an image, else 0."""
        targets = torch.zeros(len(numbers), self._job.card.architecture.classes)
        for row, ids in enumerate(images["classes"].take(numbers).to_pylist()):
            targets[row, ids] = 1
        return targets

    def _boxes(self, images: pa.Table, pictures: TrainBatch) -> Tensor | None:
        """Return the true boxes (n, 4) as shares of the pictures, NaN where unknown; None if boxes are not learned."""
        if self._job.card.supervision == "labels":
            return None
        return box_shares(images[BOX.name].take(pictures.numbers).to_pylist(), pictures.sizes_hw)

    def _summed(self, sums: Tensor) -> Tensor:
        """Return the sums of all processes added up."""
        if self._world > 1:
            sums = sums.to(self._device)
            dist.all_reduce(sums)
        return sums

    def _gathered(self, value: T) -> list[T]:
        """Return the values of all processes, in the order of their ranks."""
        if self._world == 1:
            return [value]
        values: list[Any] = [None] * self._world
        dist.all_gather_object(values, value)
        return values

    def _write(self, epoch: Epoch, better: bool) -> None:
        card = replace(self._job.card, facts={**self._job.card.facts, "metrics": epoch})
        self._job.files.assert_held(self._job.lease)
        self._job.files.write(self._progress, self._learner.state(), card, better)
        ray.get(self._progress_actor.add_epoch.remote(epoch))


def _boxed(card: Card, network: nn.Module) -> BoxedNetwork:
    entry = registry.get(card.architecture.name)
    return BoxedNetwork(network, entry.cam_network(card.architecture, network, card.preprocessing).trunk)
