"""The configuration of ``camlake annotate``."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SecretStr, model_validator

from schemas.input_options import InputKind, InputOptions
from schemas.options.box_rules import HEURISTIC_CLASSES, PAPER_THRESHOLD, BoxConfig
from schemas.options.config import COMMA_SEPARATED, WEB_URL, Device, Precision, file_option, option, required
from schemas.options.network_names import NetworkLayers
from schemas.tables import FeatureType, optional_tables
from schemas.url_secrets import shown_value

Method = Literal["cam", "gradcam", "layercam", "backprop", "regress"]
Tta = Literal["none", "flip", "tencrop"]
Resize = Literal["squash", "fit"]
JpegScaling = Literal["auto", "off"]
Alpha = Literal["white", "black", "drop"]
DecodePlace = Literal["auto", "local", "remote", "gpu"]
OnDeleted = Literal["keep", "hide"]
Switch = Literal["auto", "on", "off"]
Engine = Literal["auto", "local", "ray"]

FIRST_LOCALIZATION: dict[str, Any] = {"method": "cam", "tta": "none", "scales": [1.0]}
"""The default settings of the maps. Outputs of versions without these options have maps of the same kind."""
MOST_SCALES = 6
"""The most values of ``--scales``, because torch.compile stops compiling after eight sizes of the input."""


def _actor_range(value: Any) -> Any:
    """Turn "2:8" or 4 into (2, 8) or (4, 4)."""
    if isinstance(value, int):
        return value, value
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+)(?::(\d+))?", value.strip())
        if not match:
            raise ValueError("allowed: MIN or MIN:MAX, whole numbers")
        low = int(match[1])
        return low, int(match[2] or low)
    return value


class AnnotateConfig(NetworkLayers, BoxConfig):
    """The options of ``camlake annotate``."""

    input: str = required(
        "folder, prefix, glob, manifest (Parquet, CSV, JSONL with a uri column), Parquet file with image bytes, or"
        " WebDataset shards"
    )
    out: str = required("where the tables go: any fsspec URL", flag=True)

    model: str | None = option(
        None,
        "network by name (`camlake models`), timm/NAME, hf/FOLDER-OR-NAME, or package.module:function of your own;"
        " default: the one that the weights' card names, or resnet50",
        "Network",
    )
    weights: str = file_option(
        "DEFAULT", "published name, or safetensors or state-dict file, or its folder/, at any URL", "Network"
    )
    weights_key: str | None = option(
        None,
        "key of the state dict in a file with several, such as state_dict or model_ema; default: averaged (EMA) weights"
        " where there are any",
        "Network",
    )
    labels: str | None = file_option(
        None,
        "file of class names, one a line or a JSON list, or a JSON object between numbers and names; of a network with"
        " one logit the positive class's name, or the negative's and the positive's",
        "Network",
    )

    head: str | None = file_option(
        None,
        "file of `camlake head fit` on this network's features: its classes take the place of the network's own",
        "Localization",
    )
    topk: int = option(
        5,
        "maps and boxes for this many most probable classes; by default fewer where there are fewer",
        "Localization",
        ge=1,
        le=1000,
    )
    classes: str | None = file_option(
        None,
        "CSV or Parquet that names classes for each image, or what else `evaluate --truth` reads; they get maps and"
        " boxes beside the top-k; done images keep what they have",
        "Localization",
    )
    method: Method = option(
        "cam",
        "cam: exact class activation maps; gradcam, layercam: by gradients in the last maps; backprop: by gradients in"
        " the input; these three take networks with fully connected layers too. regress: by the head of weights that"
        " were trained with boxes",
        "Localization",
    )
    calibration: str | None = file_option(
        None,
        "output with boxes of the same network and rule that `evaluate --calibrate` was run on, for box_score; default:"
        " OUT itself",
        "Localization",
    )
    tta: Tta = option(
        "none",
        "average over the picture and its mirror image (flip), or over five crops and their mirror images (tencrop)",
        "Localization",
    )
    scales: Annotated[tuple[Annotated[float, Field(ge=0.25, le=4)], ...], COMMA_SEPARATED] = option(
        (1.0,),
        "average over inputs of the image size times these, comma-separated",
        "Localization",
        min_length=1,
        max_length=MOST_SCALES,
    )

    resize: Resize = option(
        "squash", "of the whole picture: squash to a square, or fit: keep its aspect ratio, padded", "Images"
    )
    image_size: int | None = option(
        None, "side of the network's input in pixels; default: the network's own", "Images", ge=32, le=4096
    )
    jpeg_scaling: JpegScaling = option(
        "auto", "auto: decode a JPEG much larger than the network's input at 1/2, 1/4 or 1/8 of its size", "Images"
    )
    input_kind: InputKind | None = option(
        None,
        "read INPUT as single images, as Parquet files or tar shards with images inside, or as a manifest; default: by"
        " what holds nearly all of its bytes",
        "Images",
    )
    uri_column: str | None = option(None, "column of a manifest that names the images; default: by its name", "Images")
    image_column: str | None = option(
        None, "column of a Parquet file that holds the images' bytes; default: by its name and type", "Images"
    )
    id_column: str | None = option(
        None,
        "column of a manifest or Parquet file that image_id is made of in the place of the uri, so that a moved bucket"
        " is not annotated anew",
        "Images",
    )
    alpha: Alpha = option(
        "white", "lay transparent pictures on white or black, or drop: the colours that are stored under it", "Images"
    )
    on_deleted: OnDeleted = option(
        "keep",
        "rows of images that the output has and INPUT no longer has: keep and say how many, or hide from the current"
        " rows until INPUT has them again",
        "Images",
    )
    limit: int | None = option(None, "annotate at most this many images", "Images", ge=1)
    sample: float = option(1.0, "annotate this share of the images, always the same ones", "Images", gt=0, le=1)
    max_pixels: int = option(100_000_000, "reject images with more pixels", "Images", ge=1)
    max_bytes: int = option(100_000_000, "reject objects with more bytes", "Images", ge=1)
    decode_timeout_s: float = option(30.0, "reject images whose decoding takes longer", "Images", gt=0)
    max_rejected: float = option(
        0.05, "share of rejected inputs above which the job exits with status 3", "Images", ge=0, le=1
    )
    retry_rejected: bool = option(False, "try permanently rejected images again", "Images")

    outputs: Annotated[tuple[str, ...], COMMA_SEPARATED] = option(
        ("boxes", "heatmaps", "features"), "tables to write beside images and quarantine, comma-separated", "Output"
    )
    feature_type: FeatureType = option("float32", "number type of the features", "Output")
    feature_map_bits: int = option(
        3, "bits of each value in feature_maps, from which `camlake localize` maps any later head", "Output", ge=2, le=4
    )
    images_per_commit: int | None = option(
        None, "images whose rows become part of the output together; default: chosen by the run's size", "Output", ge=1
    )

    device: Device = option("auto", "where the network runs; auto takes CUDA where the cluster has it", "Compute")
    precision: Precision = option(
        "auto",
        "number type of the network; auto: bf16 where the device multiplies it, else fp16 on CUDA and fp32 on CPU",
        "Compute",
    )
    compile: Switch = option(
        "auto", "run the network through torch.compile; auto: where it pays; never with --method backprop", "Compute"
    )
    batch_size: int | None = option(None, "images a forward pass; default: chosen by device", "Compute", ge=1, le=4096)
    actors: Annotated[tuple[int, int] | None, BeforeValidator(_actor_range)] = option(
        None, "MIN or MIN:MAX network actors; default: one for each GPU, or each CPU core", "Compute"
    )
    gpus_per_actor: float = option(1.0, "share of a GPU that an actor takes", "Compute", gt=0, le=8)
    decode: DecodePlace = option(
        "auto",
        "decode beside the network (local), in own tasks (remote) or by nvJPEG (gpu); auto: local on CPU",
        "Compute",
    )
    engine: Engine = option(
        "auto",
        "run in a few processes of this machine (local), or on Ray; auto: Ray with --address or RAY_ADDRESS, on a"
        " machine with a GPU and from 20,000 images on, else local",
        "Compute",
    )
    address: str | None = option(None, "a running Ray cluster; default with Ray: start one here", "Compute")

    notify: Annotated[SecretStr | None, WEB_URL] = option(
        None, "post how the run ended, as JSON, to this webhook; its URL is kept secret", "Run"
    )
    metrics: str | None = option(
        None, "keep the run's figures for Prometheus in this local file, for node_exporter's textfile collector", "Run"
    )
    dry_run: bool = option(False, "print the resolved plan and an estimate, write nothing", "Run")
    cluster: str | None = file_option(
        None, "Ray cluster file like cluster.yaml for the dry run: what it would take there, all workers up", "Run"
    )
    prices: str | None = file_option(
        None, "YAML or JSON file for the dry run: per_hour of the cluster, or of each instance type; currency", "Run"
    )

    @model_validator(mode="before")
    @classmethod
    def _outputs_without_maps(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("method") == "regress":
            return {"outputs": ("boxes", "features"), "min_prob": 0.0, **values}
        return values

    @model_validator(mode="before")
    @classmethod
    def _uncompiled(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("method") == "backprop" and values.get("compile") in (None, "auto"):
            return {**values, "compile": "off"}
        return values

    @model_validator(mode="after")
    def _check_regress(self) -> Self:
        if self.method != "regress":
            return self
        given = self.model_fields_set
        if "heatmaps" in self.outputs:
            raise ValueError("--outputs heatmaps: allowed with --method regress: boxes, features; it makes no maps")
        if self.box_rule not in ("auto", "paper"):
            raise ValueError(f"--box-rule {self.box_rule}: --method regress cuts no maps")
        if self.foreground not in ("auto", "off"):
            raise ValueError(f"--foreground {self.foreground}: --method regress cuts no maps")
        if "threshold" in given and self.threshold != (PAPER_THRESHOLD,):
            raise ValueError(f"--threshold {','.join(map(str, self.threshold))}: --method regress cuts no maps")
        if self.tta != "none" or len(self.scales) > 1:
            shown = f"--tta {self.tta} --scales {','.join(f'{scale:g}' for scale in self.scales)}"
            raise ValueError(f"{shown}: allowed with --method regress: --tta none and one scale; boxes don't average")
        return self

    @model_validator(mode="after")
    def _check_feature_maps(self) -> Self:
        if "feature_maps" not in self.outputs:
            if "feature_map_bits" in self.model_fields_set:
                raise ValueError(f"--feature-map-bits {self.feature_map_bits}: allowed: with --outputs feature_maps")
            return self
        if "features" not in self.outputs:
            raise ValueError("--outputs feature_maps: allowed: with features, which they are read against")
        if self.method != "cam":
            raise ValueError(f"--outputs feature_maps: allowed: with --method cam, here {self.method}")
        if self.tta != "none" or self.scales != (1.0,):
            shown = f"--tta {self.tta} --scales {','.join(f'{scale:g}' for scale in self.scales)}"
            raise ValueError(f"--outputs feature_maps: allowed: with one view of each picture, here {shown}")
        return self

    @model_validator(mode="after")
    def _check(self) -> Self:
        unknown = [name for name in self.outputs if name not in optional_tables()]
        if unknown:
            raise ValueError(f"--outputs {shown_value(unknown[0])}: allowed: {', '.join(optional_tables())}")
        if self.box_rule == "heuristic" and self.topk < HEURISTIC_CLASSES:
            raise ValueError(f"--topk {self.topk}: allowed with --box-rule heuristic: {HEURISTIC_CLASSES} or more")
        if self.head and (self.method != "cam" or self.labels):
            given = "--labels" if self.labels else f"--method {self.method}"
            raise ValueError(f"{given}: allowed with --head: --method cam, and no --labels, for a head has its own")
        if len(set(self.scales)) < len(self.scales):
            raise ValueError(f"--scales {','.join(f'{scale:g}' for scale in self.scales)}: allowed: each value once")
        if self.method == "backprop" and self.compile == "on":
            raise ValueError("--compile on: allowed with --method backprop: auto, off; it keeps a graph of each layer")
        if self.gpus_per_actor > 1 and self.gpus_per_actor % 1:
            raise ValueError(f"--gpus-per-actor {self.gpus_per_actor:g}: allowed: up to 1, or a whole number")
        if self.actors and not 1 <= self.actors[0] <= self.actors[1]:
            raise ValueError(f"--actors {self.actors[0]}:{self.actors[1]}: allowed: 1 <= MIN <= MAX")
        if self.engine == "local" and self.address:
            raise ValueError(f"--engine local: allowed: without --address, here {self.address!r}")
        if self.engine == "local" and self.decode == "remote":
            raise ValueError("--decode remote: allowed with --engine local: auto, local, gpu")
        if self.cluster and (self.address or not self.dry_run):
            raise ValueError(f"--cluster {self.cluster!r}: allowed: with --dry-run, and without --address")
        return self

    @property
    def input_options(self) -> InputOptions:
        """Return the options that choose how the input is read."""
        return InputOptions(self.input_kind, self.uri_column, self.image_column, self.id_column)

    def settings(self) -> dict[str, Any]:
        """Return the options that affect the rows; all runs of one output and one model must have the same values."""
        shaping = {"topk", "box_rule", "threshold", "min_area", "min_prob", "alpha", "jpeg_scaling"}
        shaping |= {"outputs", "feature_type"}
        shaping |= {"feature_map_bits"} if "feature_maps" in self.outputs else set()
        if self.method == "regress":
            shaping -= {"threshold", "box_rule"}
        return self.model_dump(mode="json", include=shaping | set(FIRST_LOCALIZATION))
