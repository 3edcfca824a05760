"""``camlake foreground``: learns from photographs, without labels, what a network takes for object and background."""

from pathlib import Path
from typing import TYPE_CHECKING

from jobs.terminal.console import Screen, main, verb
from pipeline.storage.inputs.folders import refuse_missing
from schemas.errors import UsageError
from schemas.options.annotate import AnnotateConfig
from schemas.options.box_rules import Combination
from schemas.options.config import StorageConfig, file_option, option, required
from schemas.options.network_names import NetworkLayers
from schemas.url_secrets import safe_url

if TYPE_CHECKING:
    from pipeline.annotate.foreground.foreground_learning import Check
    from pipeline.models.localize.foreground import Foreground


class ForegroundConfig(NetworkLayers):
    """The options of ``camlake foreground``."""

    input: str = required("photographs: any input that `camlake annotate` reads")
    out: str = required("the file to write, *.safetensors, for `camlake annotate --foreground`", flag=True)
    model: str | None = option(None, "network by name; default: as for `camlake annotate`", "Network")
    weights: str = file_option("DEFAULT", "its weights: as for `camlake annotate`", "Network")
    labels: str | None = file_option(None, "file of class names, one a line or a JSON list", "Network")
    image_size: int | None = option(None, "side of the network's input; default: its own", "Network", ge=32, le=4096)
    truth: str | None = file_option(
        None, "true boxes, as for `camlake evaluate`: they choose the rule and check it", "Truth"
    )
    combination: Combination | None = option(
        None, "how maps are fused; default: sumprod, or with --truth the best on half of the photographs", "Truth"
    )
    images: int = option(300, "photographs to learn from", "Options", ge=6, le=10_000)


def run(config: ForegroundConfig, screen: Screen) -> None:
    """Learn the direction, choose and check its rule, and write the file; raises UsageError for another suffix."""
    if Path(config.out).suffix != ".safetensors":
        raise UsageError(f"--out {safe_url(config.out)}: allowed: a .safetensors file")
    refuse_missing(config.input, config)
    from pipeline.annotate.foreground.foreground_learning import area_matched_rule, check, learn_from
    from pipeline.annotate.model import load_model
    from pipeline.arrays.foreground_scores import COMBINATIONS
    from pipeline.models.localize.foreground import foreground_bytes
    from pipeline.storage.filesystems import connect
    from pipeline.storage.lake.whole_objects import write_whole
    from pipeline.storage.truth.truth import read_truth

    shared = config.model_dump(
        include={"input", "out", "model", "weights", "labels", "image_size"} | set(StorageConfig.model_fields)
    )
    job = AnnotateConfig.resolve(shared)
    truth = read_truth(config.truth, config) if config.truth else None
    if truth and (said := truth.skipped_sentence(f"--truth {safe_url(config.truth or '')}")):
        screen.say(said)
    model = load_model(job)
    screen.say(f"learning from up to {config.images} images with {model.network.name}")
    learned = learn_from(job, model, config.images)
    found, low, high = learned.direction, *learned.direction.interval
    screen.say(
        f"{len(learned.looked.uris)} images: halves agree by {found.halves_cosine:.2f}, correlation with the maps"
        f" {found.correlation:.2f} [{low:.2f}, {high:.2f}], {found.explained:.1%} of the variance"
    )
    if truth:
        checked = check(learned, model, truth, (config.combination,) if config.combination else COMBINATIONS)
        foreground = checked.foreground
        _show(checked, screen)
    else:
        foreground = area_matched_rule(learned, config.combination or "sumprod")
        screen.result(
            "known: the direction is stable and agrees with the class maps; not known: whether it gains, which --truth"
            " says; the threshold follows from the mean area of the boxes"
        )
    fs, path = connect(config.out, config)
    write_whole(fs, path, foreground_bytes(foreground))
    _say_file(foreground, safe_url(config.out), screen)


def _show(checked: "Check", screen: Screen) -> None:
    rows = [
        [
            one.name,
            f"{one.fused:.3f}",
            f"{one.plain:.3f}",
            f"{one.fused - one.plain:+.3f}",
            f"[{one.interval[0]:+.3f}, {one.interval[1]:+.3f}]",
        ]
        for one in (*checked.comparisons, checked.against_centre)
    ]
    title = f"{checked.pairs} pairs of image and class; each half is scored by the rules that the other half chose"
    screen.table(title, ["figure", "fused", "plain", "gain", "95 %"], rows)
    screen.result(checked.verdict)


def _say_file(foreground: "Foreground", where: str, screen: Screen) -> None:
    card = foreground.card
    screen.result(
        f"{where}: {card.combination} at {card.threshold:g}, share of right boxes {card.right_share:g}, "
        f"digest {foreground.digest[:8]}",
        digest=foreground.digest,
    )


ABOUT = "Learn from photographs, without labels, what a network takes for object and background."

command = verb(
    ABOUT,
    ForegroundConfig,
    run,
    "camlake foreground photos/ --model mobilenet_v2 --truth annotations.csv --out mobilenet.safetensors",
)

if __name__ == "__main__":
    main(command)
