"""The plan of a training: where it runs, what it starts from, and all that its processes need to know."""

import functools
import math
from dataclasses import replace
from typing import Any

import torch

from pipeline.graph.resources import Machine
from pipeline.graph.train.checkpoints import TrainingFiles
from pipeline.graph.train.worker import TrainJob, WorkerPlan, epoch_order
from pipeline.images.decode import DecodeLimits
from pipeline.models.building import cam_network, with_box_head
from pipeline.models.learn.conversion import build_network
from pipeline.models.learn.pretrained import Pretrained, load_pretrained
from pipeline.models.learn.recipe import Recipe
from pipeline.models.networks.architecture import Architecture
from pipeline.models.networks.box_head import NAME as BOX_HEAD
from pipeline.models.networks.heads import ConvHead
from pipeline.models.registry import preprocessing_of
from pipeline.models.weights.checkpoint import Card
from pipeline.models.weights.state_fitting import check_image_size
from pipeline.storage.filesystems import canonical_url, protocol_of, read_url, safe_url
from pipeline.storage.lake.lineage import camlake_version
from pipeline.storage.truth.labelled_images import LabelledImages
from schemas.errors import ModelError, UsageError
from schemas.train import TrainConfig

MIN_SHARE = 0.05
"""Least share of a CPU that a process may be planned with."""


def plan_layout(config: TrainConfig, machine: Machine) -> WorkerPlan:
    """Return where everything runs; raises UsageError for CUDA without a GPU and for workers that don't fit."""
    if config.device == "cuda" and machine.gpus == 0:
        raise UsageError("--device cuda: this Ray cluster has no GPU; allowed here: cpu, auto")
    cuda = config.device == "cuda" or (config.device == "auto" and machine.gpus > 0)
    workers = config.workers or (max(1, int(machine.gpus)) if cuda else 1)
    if cuda and workers > machine.gpus:
        raise UsageError(f"--workers {workers}: this Ray cluster has {counted(machine.gpus, 'GPU')}; or --device cpu")
    layout = share_out(workers, bool(config.workers), cuda, max(1, (machine.cores or 1) // workers), machine)
    if config.batch_size % workers:
        raise UsageError(f"--batch-size {config.batch_size}: allowed: multiples of {workers}, the workers")
    return layout


def plan_anew(layout: WorkerPlan, batch_size: int, machine: Machine) -> WorkerPlan:
    """Return where the processes of a training run on what is left, or was gained; raises UsageError for too little.

    As many as before where the user chose their number, and on CPU; else as many as there are GPUs, as far as the
    images of a step divide by them.
    """
    workers = layout.workers
    if layout.cuda and not layout.workers_given:
        allowed = [number for number in range(1, int(machine.gpus) + 1) if batch_size % number == 0]
        workers = max(allowed, default=1)
    return share_out(workers, layout.workers_given, layout.cuda, layout.threads, machine)


def share_out(workers: int, workers_given: bool, cuda: bool, threads: int, machine: Machine) -> WorkerPlan:
    """Return what each of the processes gets of a machine, or of what is left of it; raises UsageError for too little.

    What the processes leave of the CPUs, at least a quarter, fetches and decodes.
    """
    who = f"--workers {workers}" if workers_given else counted(workers, "process")
    if cuda and workers > machine.gpus:
        raise UsageError(f"{who}: this Ray cluster has {counted(machine.gpus, 'GPU')}, too few for them")
    spare = max(0.5, machine.cpus / 4)
    worker_cpus = math.floor(100 * min(1.0, (machine.cpus - spare) / workers)) / 100
    if worker_cpus < MIN_SHARE:
        raise UsageError(f"{who}: this Ray cluster has {counted(machine.cpus, 'CPU')}, too few for them")
    feed_cpus = (machine.cpus - workers * worker_cpus) / workers
    task_cpus = math.floor(100 * min(1.0, feed_cpus)) / 100
    return WorkerPlan(workers, workers_given, cuda, worker_cpus, threads, task_cpus, feed_cpus)


def counted(number: float, noun: str) -> str:
    """Return a number of things in words: 1 CPU, 0.75 CPUs, 2 processes."""
    plural = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:g} {noun}{plural}"


def first_weights(config: TrainConfig, images: LabelledImages) -> tuple[Architecture, Pretrained]:
    """Return the network and what it starts from; random values are those of ``config.seed``.

    Raises ModelError as ``load_pretrained`` does, for a network that can't learn several labels an image, or boxes, and
    for an input too small for it; UsageError for a head alone without pretrained layers.
    """
    architecture = Architecture(config.model, config.pooling, config.width, len(images.labels))
    torch.manual_seed(config.seed)
    if config.weights != "none":
        pretrained = load_pretrained(architecture, config.weights, functools.partial(read_url, storage=config))
    elif config.train == "head":
        raise UsageError("--train head: needs pretrained layers below the head; allowed with --weights none: full")
    else:
        network = build_network(architecture)
        new = tuple(name for name, _ in network.named_parameters())
        pretrained = Pretrained(network.state_dict(), new, "none", "", preprocessing_of(config.model))
    if config.supervision == "boxes":
        pretrained = _with_box_head(architecture, pretrained)
    own_size = pretrained.preprocessing.image_size
    preprocessing = replace(pretrained.preprocessing, image_size=config.image_size or own_size)
    network = cam_network(architecture, build_network(architecture, pretrained.state), preprocessing).eval()
    if images.multi_label and isinstance(network.head, ConvHead):
        raise ModelError(f"--model {config.model}: its logits stand behind a ReLU, so that no class can be improbable")
    check_image_size(network, own_size)
    return architecture, replace(pretrained, preprocessing=preprocessing)


def _with_box_head(architecture: Architecture, start: Pretrained) -> Pretrained:
    """Return the first weights with those of a new box head; raises ModelError where the network only classifies."""
    state = with_box_head(architecture, build_network(architecture, start.state)).state_dict()
    new = tuple(key for key in state if key.startswith(f"{BOX_HEAD}."))
    return replace(start, state=state, new=start.new + new)


def make_job(
    config: TrainConfig,
    train: LabelledImages,
    val: LabelledImages,
    architecture: Architecture,
    start: Pretrained,
    layout: WorkerPlan,
    files: TrainingFiles,
    lease: int,
) -> TrainJob:
    """Return what the processes need to know; ``start`` are the first weights, ``lease`` is the one on the output."""
    steps = config.epochs * len(epoch_order(len(train), config.batch_size, config.seed, 0))
    facts = {
        "camlake": camlake_version(),
        "started_from": start.source,
        "started_from_sha256": start.sha256,
        "data": _described("train", train) | (_described("val", val) if len(val) else {}),
        "configuration": shown_settings(config),
    }
    return TrainJob(
        card=Card(architecture, train.labels, start.preprocessing, train.multi_label, config.supervision, facts),
        new=start.new,
        head_only=config.train == "head",
        recipe=Recipe.of(config.schedule, steps, config.lr, config.weight_decay, config.label_smoothing),
        files=files,
        lease=lease,
        storage=files.storage,
        limits=DecodeLimits(config.max_pixels, config.max_bytes, config.decode_timeout_s),
        layout=layout,
        precision=config.precision,
        epochs=config.epochs,
        batch_size=config.batch_size,
        augment=config.augment,
        patience=config.patience,
        seed=config.seed,
    )


def _described(part: str, images: LabelledImages) -> dict[str, Any]:
    boxes = {f"{part}_boxes": images.n_boxes} if images.n_boxes else {}
    return {f"{part}_images": len(images), **boxes, f"{part}_sha256": images.digest()}


def training_files(config: TrainConfig, train: LabelledImages, val: LabelledImages) -> TrainingFiles:
    """Return the files of this training at ``config.out``, under a URL that means the same in every process."""
    out = canonical_url(config.out) if protocol_of(config.out) == "file" else config.out
    data = f"{train.digest()[:16]} {val.digest()[:16]}"
    return TrainingFiles(out, config.storage, shown_settings(config) | {"data": data})


def shown_settings(config: TrainConfig) -> dict[str, Any]:
    """Return what decides the outcome, without secrets that stand in URLs."""
    return {key: safe_url(value) if isinstance(value, str) else value for key, value in config.settings().items()}
