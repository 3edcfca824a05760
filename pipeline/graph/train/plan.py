"""Plans a training: where its processes run, its first weights, and the values that the processes need."""

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.annotate.resources import Machine
from pipeline.graph.train.checkpoints import TrainingFiles
from pipeline.models import registry
from pipeline.models.learn.conversion import build_network
from pipeline.models.learn.pretrained import Pretrained, load_pretrained
from pipeline.models.learn.recipe import Recipe
from pipeline.models.networks.architecture import Architecture
from pipeline.models.networks.box_head import NAME as BOX_HEAD
from pipeline.models.networks.entry import NetworkEntry
from pipeline.models.networks.heads import ConvHead
from pipeline.models.weights.checkpoint import Card
from pipeline.models.weights.state_fitting import check_image_size
from pipeline.storage.filesystems import canonical_url, protocol_of, read_url
from pipeline.storage.lake.lineage import camlake_version
from pipeline.storage.truth.labelled_images import LabelledImages
from schemas.errors import ModelError, UsageError
from schemas.options.train import TrainConfig
from schemas.url_secrets import safe_url


@dataclass(frozen=True)
class WorkerPlan:
    """Where the processes of a training run, and the CPUs of each."""

    workers: int
    workers_given: bool
    """Whether the user chose the number of processes; else it depends on the number of GPUs."""
    cuda: bool
    worker_cpus: float
    threads: int
    """Threads of torch in each process on a CPU."""
    task_cpus: float
    """CPUs of a task that fetches and decodes."""
    feed_cpus: float
    """CPUs of all the tasks of one process together."""

    @property
    def least_cpus(self) -> float:
        """Least CPUs of the cluster: for all processes, and for one task that feeds them."""
        return self.workers * self.worker_cpus + self.task_cpus


@dataclass(frozen=True)
class TrainJob:
    """All values that the processes of a training need, except the images and the first weights."""

    card: Card
    """The card of the weights; each epoch adds its figures to ``facts``."""
    new: tuple[str, ...]
    """Names of the parameters that start from random values."""
    config: TrainConfig
    recipe: Recipe
    files: TrainingFiles
    lease: int
    """Generation of the lease on the output that this training holds."""
    workers: WorkerPlan


def epoch_order(n_images: int, batch_size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return (steps, batch_size): the images of each step of an epoch, in random order.

    The last step is filled up with images from the beginning, so that every step has the same size.
    """
    order = np.random.default_rng((seed, epoch)).permutation(n_images)
    steps = -(-n_images // batch_size)
    return np.resize(order, (steps, batch_size))


def plan_workers(config: TrainConfig, machine: Machine) -> WorkerPlan:
    """Return where the processes run; raises UsageError for CUDA without a GPU and for processes that don't fit."""
    cuda = machine.uses_gpu(config.device)
    workers = config.workers or (max(1, int(machine.gpus)) if cuda else 1)
    if cuda and workers > machine.gpus:
        raise UsageError(f"--workers {workers}: this Ray cluster has {counted(machine.gpus, 'GPU')}; or --device cpu")
    plan = divide_cpus(workers, bool(config.workers), cuda, max(1, (machine.cores or 1) // workers), machine)
    if config.batch_size % workers:
        raise UsageError(f"--batch-size {config.batch_size}: allowed: multiples of {workers}, the workers")
    return plan


def replan_workers(before: WorkerPlan, batch_size: int, machine: Machine) -> WorkerPlan:
    """Return where the processes run after the cluster has changed; raises UsageError where it has become too small.

    On CPUs, and where the user chose the number of processes, the number stays as in ``before``. Otherwise it is the
    largest number up to the number of GPUs that divides ``batch_size``.
    """
    workers = before.workers
    if before.cuda and not before.workers_given:
        allowed = [number for number in range(1, int(machine.gpus) + 1) if batch_size % number == 0]
        workers = max(allowed, default=1)
    return divide_cpus(workers, before.workers_given, before.cuda, before.threads, machine)


def divide_cpus(workers: int, workers_given: bool, cuda: bool, threads: int, machine: Machine) -> WorkerPlan:
    """Return a plan that divides the CPUs of ``machine``; raises UsageError for too few GPUs or CPUs.

    A process gets at most one CPU. The remaining CPUs, at least a quarter, fetch and decode.
    """
    who = f"--workers {workers}" if workers_given else counted(workers, "process")
    if cuda and workers > machine.gpus:
        raise UsageError(f"{who}: this Ray cluster has {counted(machine.gpus, 'GPU')}, too few for them")
    share = machine.share_cpus(workers, f"{who}: this Ray cluster has {counted(machine.cpus, 'CPU')}, too few for them")
    worker_cpus = math.floor(100 * min(1.0, share)) / 100
    feed_cpus = (machine.cpus - workers * worker_cpus) / workers
    task_cpus = math.floor(100 * min(1.0, feed_cpus)) / 100
    return WorkerPlan(workers, workers_given, cuda, worker_cpus, threads, task_cpus, feed_cpus)


def counted(number: float, noun: str) -> str:
    """Return a number with its noun: 1 CPU, 0.75 CPUs, 2 processes."""
    plural = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:g} {noun}{plural}"


def first_weights(config: TrainConfig, images: LabelledImages) -> tuple[Architecture, Pretrained]:
    """Return the architecture and its first weights; ``config.seed`` determines random values.

    Raises ModelError as ``load_pretrained`` does, for a network that can't learn several labels for an image or can't
    learn boxes, and for an input that is too small for the network. Raises UsageError for ``--train head`` without
    pretrained layers.
    """
    architecture = Architecture(config.model, config.pooling, config.width, len(images.labels))
    entry = registry.check(architecture)
    torch.manual_seed(config.seed)
    if config.weights != "none" or config.weights_key:
        read = functools.partial(read_url, storage=config)
        pretrained = load_pretrained(architecture, config.weights, read, config.weights_key)
    elif config.train == "head":
        raise UsageError("--train head: needs pretrained layers below the head; allowed with --weights none: full")
    else:
        network = build_network(architecture)
        new = tuple(name for name, _ in network.named_parameters())
        pretrained = Pretrained(network.state_dict(), new, "none", "", entry.preprocessing)
    if config.supervision == "boxes":
        pretrained = _with_box_head(entry, architecture, pretrained)
    own_size = pretrained.preprocessing.image_size
    preprocessing = replace(pretrained.preprocessing, image_size=config.image_size or own_size)
    network = entry.cam_network(architecture, build_network(architecture, pretrained.state), preprocessing).eval()
    if images.multi_label and isinstance(network.head, ConvHead):
        raise ModelError(f"--model {config.model}: its logits stand behind a ReLU, so that no class can be improbable")
    check_image_size(network, own_size)
    return architecture, replace(pretrained, preprocessing=preprocessing)


def _with_box_head(entry: NetworkEntry, architecture: Architecture, start: Pretrained) -> Pretrained:
    """Return the first weights with a new box head; raises ModelError for a network that can only classify."""
    state = entry.with_box_head(architecture, build_network(architecture, start.state)).state_dict()
    new = tuple(key for key in state if key.startswith(f"{BOX_HEAD}."))
    return replace(start, state=state, new=start.new + new)


def make_job(
    config: TrainConfig,
    train: LabelledImages,
    val: LabelledImages,
    architecture: Architecture,
    start: Pretrained,
    workers: WorkerPlan,
    files: TrainingFiles,
    lease: int,
) -> TrainJob:
    """Return the values for the processes; ``start`` has the first weights, ``lease`` is the lease's generation."""
    steps = config.epochs * len(epoch_order(len(train), config.batch_size, config.seed, 0))
    facts = {
        "camlake": camlake_version(),
        "started_from": start.source,
        "started_from_sha256": start.sha256,
        "data": _described("train", train) | (_described("val", val) if len(val) else {}),
        "configuration": shown_settings(config),
        **registry.origin_facts(config.model),
    }
    return TrainJob(
        card=Card(architecture, train.labels, start.preprocessing, train.multi_label, config.supervision, facts),
        new=start.new,
        config=config,
        recipe=Recipe.of(config.schedule, steps, config.lr, config.weight_decay, config.label_smoothing),
        files=files,
        lease=lease,
        workers=workers,
    )


def _described(part: str, images: LabelledImages) -> dict[str, Any]:
    boxes = {f"{part}_boxes": images.n_boxes} if images.n_boxes else {}
    return {f"{part}_images": len(images), **boxes, f"{part}_sha256": images.digest()}


def training_files(config: TrainConfig, train: LabelledImages, val: LabelledImages) -> TrainingFiles:
    """Return the files of this training; a local ``config.out`` becomes absolute, so that every process finds it."""
    out = canonical_url(config.out) if protocol_of(config.out) == "file" else config.out
    data = f"{train.digest()[:16]} {val.digest()[:16]}"
    return TrainingFiles(out, config.storage, shown_settings(config) | {"data": data})


def shown_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that affect the result, without the secrets in their URLs."""
    return {key: safe_url(value) if isinstance(value, str) else value for key, value in config.settings().items()}
