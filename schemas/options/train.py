"""The configuration of ``camlake train``."""

from typing import Any, Literal, Self

from pydantic import model_validator

from schemas.options.config import Device, LeaseConfig, Precision, file_option, option, required
from schemas.options.network_names import NetworkLayers

Supervision = Literal["labels", "boxes"]
TrainedPart = Literal["full", "head"]
Schedule = Literal["modern", "paper"]
Augment = Literal["crop", "flip", "none"]


class TrainConfig(NetworkLayers, LeaseConfig):
    """The options of ``camlake train``."""

    input: str = required(
        "a folder with a folder of images for each class, or a CSV or Parquet file with columns uri and label; several"
        " labels of an image are separated by ;"
    )
    out: str = required("where weights, metrics and the resume state go: any fsspec URL", flag=True)

    supervision: Supervision = option(
        "labels",
        "learn from labels alone, or from boxes too: a second head then learns the box of each image's class, for"
        " `camlake annotate --method regress`",
        "Data",
    )
    boxes: str | None = file_option(
        None,
        "true boxes for --supervision boxes, in any form that `camlake evaluate --truth` takes; default: columns xmin,"
        " ymin, xmax, ymax of INPUT",
        "Data",
    )
    iou: Literal["half-open", "inclusive"] = option(
        "half-open",
        "how these boxes mean xmax and ymax: half-open, or the last pixel inside (ILSVRC, wsolevaluation)",
        "Data",
    )
    val: str | None = file_option(
        None, "validation images, in the same form as INPUT; default: a part of INPUT", "Data"
    )
    val_share: float = option(0.1, "without --val: share of the images kept for validation", "Data", ge=0, lt=1)
    labels: str | None = file_option(
        None, "file of class names that says their order, one a line or a JSON list; default: sorted", "Data"
    )
    max_pixels: int = option(100_000_000, "leave out images with more pixels", "Data", ge=1)
    max_bytes: int = option(100_000_000, "leave out objects with more bytes", "Data", ge=1)
    decode_timeout_s: float = option(30.0, "leave out images whose decoding takes longer", "Data", gt=0)
    max_rejected: float = option(
        0.05, "share of unusable images above which the job exits with status 3", "Data", ge=0, le=1
    )

    model: str = option(
        "resnet50",
        "network by name (`camlake models`), timm/NAME, hf/FOLDER-OR-NAME or package.module:function",
        "Network",
    )
    pooling: Literal["gap", "gmp"] = option(
        "gap", "global average or global max pooling before the linear layer", "Network"
    )
    width: float = option(
        1.0,
        "multiplies the channels of camlake's own networks: multiples of 1/64 up to 4; all others have 1",
        "Network",
        gt=0,
    )
    weights: str = file_option(
        "DEFAULT",
        "what training starts from: a published name of the weights, at any URL a weights file or its folder/, or none",
        "Network",
    )
    weights_key: str | None = option(
        None,
        "key of the state dict in a file with several, such as state_dict or model_ema; default: averaged (EMA) weights"
        " where there are any",
        "Network",
    )
    image_size: int | None = option(
        None, "side of the network's input in pixels; default: the weights' own", "Network", ge=32, le=4096
    )

    train: TrainedPart = option("full", "train all layers, or only those that --weights has no values for", "Learning")
    schedule: Schedule = option(
        "modern",
        "modern: AdamW, warm-up, cosine; paper: SGD with momentum, the rate times 0.1 after each quarter of the epochs",
        "Learning",
    )
    epochs: int = option(30, "runs through the training images", "Learning", ge=1, le=10_000)
    batch_size: int = option(64, "images of a step, over all workers together", "Learning", ge=1)
    lr: float | None = option(
        None, "learning rate of new layers; pretrained ones take a tenth (modern) or the same (paper)", "Learning", gt=0
    )
    weight_decay: float | None = option(None, "default: 0.05 (modern) or 5e-4 (paper)", "Learning", ge=0)
    label_smoothing: float | None = option(
        None, "default: 0.1 (modern) or 0 (paper); not for several labels an image", "Learning", ge=0, lt=1
    )
    augment: Augment = option("crop", "crop: random crops and mirroring; flip: mirroring alone; none", "Learning")
    patience: int | None = option(None, "stop after so many epochs without a better validation", "Learning", ge=1)
    seed: int = option(0, "of first values, order, crops and dropout", "Learning", ge=0)

    device: Device = option("auto", "where the network learns; auto takes CUDA where the cluster has it", "Compute")
    precision: Precision = option("auto", "number type of the network's layers; weights stay fp32", "Compute")
    workers: int | None = option(
        None,
        "processes that share each step; default: one for each GPU, or one. On CPU each goes by its own images in batch"
        " normalization",
        "Compute",
        ge=1,
    )
    address: str | None = option(None, "a running Ray cluster; default: start one here", "Compute")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.boxes and self.supervision == "labels":
            raise ValueError(f"--boxes {self.boxes!r}: allowed: with --supervision boxes")
        if self.iou != "half-open" and self.supervision == "labels":
            raise ValueError(f"--iou {self.iou}: allowed: with --supervision boxes")
        if self.val and "val_share" in self.model_fields_set:
            raise ValueError(f"--val-share {self.val_share:g}: allowed: without --val")
        return self

    def settings(self) -> dict[str, Any]:
        """Return the options that affect the result, by name; a training continues only with equal options."""
        aside = {*LeaseConfig.model_fields, "out", "workers", "address", "device", "max_rejected"}
        return self.model_dump(mode="json", exclude=aside)
