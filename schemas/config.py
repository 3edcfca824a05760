"""The validated configuration of each job: one field is one option, one key of the YAML file, one help text."""

import difflib
import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from schemas.errors import UsageError
from schemas.tables import OPTIONAL_TABLES, FeatureType

BoxRuleName = Literal["paper", "heuristic", "all-components"]
Method = Literal["cam", "gradcam", "layercam", "backprop", "regress"]
Tta = Literal["none", "flip", "tencrop"]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Resize = Literal["squash", "fit"]
JpegScaling = Literal["auto", "off"]
DecodePlace = Literal["auto", "local", "remote", "gpu"]
Switch = Literal["auto", "on", "off"]

HEURISTIC_THRESHOLDS = (0.2, 0.5)
"""Of the loose box, the paper's own, and of the tight one, for which it names none: half of the maximum."""
FIRST_LOCALIZATION: dict[str, Any] = {"method": "cam", "tta": "none", "scales": [1.0]}
"""Settings that say how maps are made, as they were of every output before they could be chosen."""
MOST_SCALES = 6
"""torch.compile gives up after eight sides of inputs."""
NO_CUT = (0.0,)
"""The thresholds of boxes that are told, not cut from a map."""
HEURISTIC_CLASSES = 3
"""Classes that the heuristic's five boxes come from."""


def _split(value: Any) -> Any:
    """Turn "a,b" into ("a", "b"), and one bare value into a tuple of it: how flags give lists."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return (value,) if isinstance(value, int | float) else value


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


def option(default: Any, about: str, group: str, **limits: Any) -> Any:
    """Declare a configuration field with its help text and the heading it stands under in ``--help``."""
    return Field(default, description=about, json_schema_extra={"group": group}, **limits)


def required(about: str, *, flag: bool = False) -> Any:
    """Declare a configuration field that has no default: an argument of the command, or with ``flag`` an option."""
    return Field(description=about, json_schema_extra={"group": "Options", "flag": flag})


class JobConfig(BaseModel):
    """A frozen, strict configuration: unknown keys are refused, and the message names the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def resolve(cls, values: dict[str, Any]) -> Self:
        """Return the configuration of ``values``; raises UsageError with one line for the first thing that is wrong."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UsageError(cls._first_problem(error)) from error

    @classmethod
    def is_argument(cls, name: str) -> bool:
        """Return whether the command takes this field by position."""
        field = cls.model_fields[name]
        extra = field.json_schema_extra
        return field.is_required() and not (isinstance(extra, dict) and extra.get("flag"))

    @classmethod
    def _first_problem(cls, error: ValidationError) -> str:
        problem = error.errors(include_url=False)[0]
        name = str(problem["loc"][0]) if problem["loc"] else ""
        if problem["type"] == "extra_forbidden":
            known = list(cls.model_fields)
            near = difflib.get_close_matches(name, known, n=1)
            return f"unknown option {name!r}; " + (
                f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            )
        shown = name.upper() if name and cls.is_argument(name) else "--" + name.replace("_", "-")
        if problem["type"] == "missing":
            return f"{shown} is missing"
        message = problem["msg"].removeprefix("Value error, ")
        return f"{shown} {problem['input']!r}: {message}" if name else message


class StorageConfig(JobConfig):
    """How camlake reaches object storage; credentials themselves come from the usual places, never from here."""

    endpoint_url: str | None = option(None, "URL of an S3-compatible store", "Storage")
    profile: str | None = option(None, "profile of the AWS credentials file", "Storage")
    anonymous: bool = option(False, "read the input without credentials (public buckets)", "Storage")


class BoxConfig(StorageConfig):
    """How boxes are cut from maps."""

    threshold: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], BeforeValidator(_split)] = option(
        (0.2,),
        "share of the map's maximum that cuts the foreground; several, comma-separated, allowed; with --box-rule"
        f" heuristic two, by default {','.join(map(str, HEURISTIC_THRESHOLDS))}",
        "Localization",
        min_length=1,
    )
    box_rule: BoxRuleName = option(
        "paper",
        "paper: the largest connected component's box at each threshold; heuristic: its five guesses an image, a tight"
        " and a loose box of the first two classes and a loose one of the third; all-components: a box for each",
        "Localization",
    )
    min_area: float = option(0.0, "leave out boxes under this share of the image's area", "Localization", ge=0, lt=1)

    @model_validator(mode="before")
    @classmethod
    def _thresholds_of_the_heuristic(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("box_rule") == "heuristic":
            return {"threshold": HEURISTIC_THRESHOLDS, **values}
        return values

    @model_validator(mode="after")
    def _check_thresholds(self) -> Self:
        shown = f"--threshold {','.join(map(str, self.threshold))}"
        if len(set(self.threshold)) < len(self.threshold):
            raise ValueError(f"{shown}: allowed: each value once")
        if self.box_rule == "heuristic" and len(self.threshold) != len(HEURISTIC_THRESHOLDS):
            raise ValueError(f"{shown}: allowed with --box-rule heuristic: two values, of a loose and a tight box")
        return self


class AnnotateConfig(BoxConfig):
    """What ``camlake annotate`` does."""

    input: str = required(
        "folder, prefix, glob, manifest (Parquet, CSV, JSONL with a uri column), Parquet file with image bytes, or"
        " WebDataset shards"
    )
    out: str = required("where the tables go: any fsspec URL", flag=True)

    model: str | None = option(
        None,
        "network by name (`camlake models`); default: the one that the weights' card names, or resnet50",
        "Network",
    )
    weights: str = option(
        "DEFAULT", "torchvision's name of the weights, or a safetensors or state-dict file at any URL", "Network"
    )
    labels: str | None = option(None, "file of class names, one a line or a JSON list", "Network")

    topk: int = option(5, "maps and boxes for this many most probable classes", "Localization", ge=1, le=1000)
    classes: str | None = option(
        None,
        "CSV or Parquet that names classes for each image; they get maps and boxes beside the top-k; done images keep"
        " what they have",
        "Localization",
    )
    method: Method = option(
        "cam",
        "cam: exact class activation maps; gradcam, layercam: by gradients in the last maps; backprop: by gradients in"
        " the input; these three take networks with fully connected layers too. regress: by the head of weights that"
        " were trained with boxes",
        "Localization",
    )
    calibration: str | None = option(
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
    scales: Annotated[tuple[Annotated[float, Field(ge=0.25, le=4)], ...], BeforeValidator(_split)] = option(
        (1.0,),
        "average over inputs of the image size times these, comma-separated",
        "Localization",
        min_length=1,
        max_length=MOST_SCALES,
    )

    resize: Resize = option(
        "squash", "squash to a square, or fit: keep the aspect ratio to the nearest map cell and pad", "Images"
    )
    image_size: int | None = option(
        None, "side of the network's input in pixels; default: the network's own", "Images", ge=32, le=4096
    )
    jpeg_scaling: JpegScaling = option(
        "auto", "auto: decode a JPEG much larger than the network's input at 1/2, 1/4 or 1/8 of its size", "Images"
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

    outputs: Annotated[tuple[str, ...], BeforeValidator(_split)] = option(
        ("boxes", "heatmaps", "features"), "tables to write beside images and quarantine, comma-separated", "Output"
    )
    feature_type: FeatureType = option("float32", "number type of the features", "Output")
    images_per_commit: int | None = option(
        None, "images whose rows become part of the output together; default: chosen by the run's size", "Output", ge=1
    )

    device: Device = option("auto", "where the network runs; auto takes CUDA where the cluster has it", "Compute")
    precision: Precision = option(
        "auto",
        "number type of the network; auto: bf16 where the device multiplies it, else fp16 on CUDA and fp32 on CPU",
        "Compute",
    )
    compile: Switch = option("auto", "run the network through torch.compile; auto: where it pays", "Compute")
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
    address: str | None = option(None, "a running Ray cluster; default: start one here", "Compute")

    dry_run: bool = option(False, "print the resolved plan and an estimate, write nothing", "Run")
    cluster: str | None = option(
        None, "Ray cluster file like cluster.yaml for the dry run: what it would take there, all workers up", "Run"
    )
    prices: str | None = option(
        None, "YAML or JSON file for the dry run: per_hour of the cluster, or of each instance type; currency", "Run"
    )

    @model_validator(mode="before")
    @classmethod
    def _outputs_without_maps(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("method") == "regress":
            return {"outputs": ("boxes", "features"), **values}
        return values

    @model_validator(mode="after")
    def _check_regress(self) -> Self:
        if self.method != "regress":
            return self
        given = self.model_fields_set
        if "heatmaps" in self.outputs:
            raise ValueError("--outputs heatmaps: allowed with --method regress: boxes, features; it makes no maps")
        if self.box_rule != "paper":
            raise ValueError(f"--box-rule {self.box_rule}: --method regress cuts no maps")
        if "threshold" in given:
            raise ValueError(f"--threshold {','.join(map(str, self.threshold))}: --method regress cuts no maps")
        if self.tta != "none" or len(self.scales) > 1:
            shown = f"--tta {self.tta} --scales {','.join(f'{scale:g}' for scale in self.scales)}"
            raise ValueError(f"{shown}: allowed with --method regress: --tta none and one scale; boxes don't average")
        return self

    @model_validator(mode="after")
    def _check(self) -> Self:
        unknown = [name for name in self.outputs if name not in OPTIONAL_TABLES]
        if unknown:
            raise ValueError(f"--outputs {unknown[0]!r}: allowed: {', '.join(OPTIONAL_TABLES)}")
        if self.box_rule == "heuristic" and self.topk < HEURISTIC_CLASSES:
            raise ValueError(f"--topk {self.topk}: allowed with --box-rule heuristic: {HEURISTIC_CLASSES} or more")
        if len(set(self.scales)) < len(self.scales):
            raise ValueError(f"--scales {','.join(f'{scale:g}' for scale in self.scales)}: allowed: each value once")
        if self.gpus_per_actor > 1 and self.gpus_per_actor % 1:
            raise ValueError(f"--gpus-per-actor {self.gpus_per_actor:g}: allowed: up to 1, or a whole number")
        if self.actors and not 1 <= self.actors[0] <= self.actors[1]:
            raise ValueError(f"--actors {self.actors[0]}:{self.actors[1]}: allowed: 1 <= MIN <= MAX")
        if self.cluster and (self.address or not self.dry_run):
            raise ValueError(f"--cluster {self.cluster!r}: allowed: with --dry-run, and without --address")
        return self

    def settings(self) -> dict[str, Any]:
        """Return what shapes the rows: all runs of one output and one model must agree on it."""
        shaping = {"topk", "threshold", "box_rule", "min_area", "jpeg_scaling", "outputs", "feature_type"}
        if self.method == "regress":
            shaping -= {"threshold", "box_rule"}
        return self.model_dump(mode="json", include=shaping | set(FIRST_LOCALIZATION))


class ModelsConfig(JobConfig):
    """What ``camlake models`` lists."""

    name: str = option("", "only networks whose name contains this", "Options")


class VerifyConfig(StorageConfig):
    """What ``camlake verify`` checks."""

    out: str = required("An output of `camlake annotate`: any fsspec URL")


class ReportConfig(StorageConfig):
    """What ``camlake report`` shows."""

    out: str = required("An output of `camlake annotate`: any fsspec URL")
    page: str | None = option(None, "where the page goes; default: OUT/_reports/report.html", "Options")
    pictures: int = option(24, "how many pictures the page shows, spread over the images", "Options", ge=0, le=500)
    truth: str | None = option(None, "file of true boxes to draw beside the found ones", "Options")
    model: str | None = option(None, "which model's rows; default: the newest run's", "Options")


class DemoConfig(JobConfig):
    """What ``camlake demo`` makes."""

    folder: str = option("camlake-demo", "where pictures, tables and the page go", "Options")
    images: int = option(120, "pictures to render, beside two broken files", "Options", ge=10, le=10_000)
    seed: int = option(0, "seed of the pictures", "Options", ge=0)


Suite = Literal[
    "stages",
    "end-to-end",
    "peers",
    "boxes",
    "encoding",
    "scale",
    "gpu",
    "reference",
    "label-free",
    "memory",
    "kills",
]


class BenchmarkConfig(JobConfig):
    """What ``camlake benchmark`` measures."""

    suite: Suite = required(
        "stages (each alone, and its limit), end-to-end (images/s against a plain loop), peers (against Ray's own"
        " pattern, Daft, a DataLoader, pytorch-grad-cam, torch-cam), boxes (exact against OpenCV), encoding (of the"
        " tables: size, write and query time), scale (a simulated cluster), gpu, reference (published scores),"
        " label-free (what resolutions, views and methods bring and cost), memory (of the driver), or kills (five times"
        " kill -9)"
    )
    images: str | None = option(None, "folder of photographs; default: rendered pictures of 500×375", "Options")
    truth: str | None = option(None, "file of true boxes of these photographs (reference, label-free)", "Options")
    model: str = option("squeezenet1_1", "network by name", "Options")
    weights: str | None = option(None, "its weights; default: random ones where scores don't matter", "Options")
    precision: Precision = option(
        "auto",
        "number type of the networks of all sides; auto: as annotate (end-to-end, peers, gpu), fp32 (reference)",
        "Options",
    )
    count: int = option(2000, "images of a run; photographs are repeated under new names", "Options", ge=16)
    repeats: int = option(3, "interleaved runs of each side", "Options", ge=1, le=20)
    result: str | None = option(None, "JSON file for the figures, with machine, versions and commit", "Options")


class EvaluateConfig(StorageConfig):
    """What ``camlake evaluate`` scores."""

    out: str = required("An output of `camlake annotate`: any fsspec URL")
    truth: str = required(
        "true boxes: CSV or Parquet (file, class_id or label, xmin, ymin, xmax, ymax), COCO JSON, or a folder of ILSVRC"
        " XML or wsolevaluation text files",
        flag=True,
    )
    model: str | None = option(None, "which model's rows; default: the newest run's", "Options")
    iou: Literal["half-open", "inclusive"] = option(
        "half-open",
        "how the truth means xmax and ymax: half-open, or the last pixel inside (ILSVRC, wsolevaluation)",
        "Options",
    )
    calibrate: bool = option(
        False,
        "fit box_score on half of the truth's images, report its reliability on the others, and keep it in OUT for the"
        " next `camlake annotate`",
        "Options",
    )
    report: str | None = option(
        None, "folder for scores.json, scores.md and pictures of the curves; default: OUT/_reports", "Options"
    )
