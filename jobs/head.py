"""``camlake head``: linear heads on stored features, fitted to labels, shown, applied, and to rank images by."""

from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from jobs.terminal.console import Screen, main, verb
from schemas.options.head import HeadConfig
from schemas.url_secrets import safe_url

if TYPE_CHECKING:
    from pipeline.models.weights.head_file import Head


def run(config: HeadConfig, screen: Screen) -> None:
    """Run the action of ``config`` and print what came of it."""
    {"fit": fit, "show": show, "apply": apply, "top": top}[config.action](config, screen)


def fit(config: HeadConfig, screen: Screen) -> None:
    """Fit a head and write it."""
    from pipeline.models.weights.head_file import head_bytes
    from pipeline.outputs.heads.features import open_features
    from pipeline.outputs.heads.head_jobs import fit as fit_head
    from pipeline.storage.filesystems import connect
    from pipeline.storage.lake.whole_objects import write_whole
    from pipeline.storage.truth.image_labels import read_image_labels

    assert config.labels is not None
    assert config.out is not None
    labels = read_image_labels(config.labels, config)
    source = open_features(config.place, config, config.model)
    head = fit_head(source, labels, config.kind, screen)
    write_whole(*connect(config.out, config), head_bytes(head))
    _show(head, safe_url(config.out), screen)


def show(config: HeadConfig, screen: Screen) -> None:
    """Print the card of a head."""
    from pipeline.models.weights.head_file import read_head
    from pipeline.storage.filesystems import read_url

    _show(read_head(config.place, partial(read_url, storage=config)), safe_url(config.place), screen)


def apply(config: HeadConfig, screen: Screen) -> None:
    """Write the probabilities of a head for every image of an output."""
    from pipeline.models.weights.head_file import read_head, refuse_other_backbone
    from pipeline.outputs.heads.features import open_features
    from pipeline.outputs.heads.head_jobs import apply as apply_head
    from pipeline.storage.filesystems import connect, read_url
    from pipeline.storage.lake.whole_objects import write_whole

    assert config.head is not None
    assert config.out is not None
    head = read_head(config.head, partial(read_url, storage=config))
    source = open_features(config.place, config, config.model, head.card.model_digest)
    refuse_other_backbone(head, source.run.lineage.backbone_digest, safe_url(config.head), source.has)
    content, images, positives = apply_head(source, head, PurePosixPath(config.out).suffix)
    write_whole(*connect(config.out, config), content)
    rows = [[name, count, count / max(1, images)] for name, count in positives.items()]
    screen.table(f"{images} images", ["class", "positive", "share"], rows)
    screen.result(f"{safe_url(config.out)}: {images} images, {len(positives)} classes", images=images)


def top(config: HeadConfig, screen: Screen) -> None:
    """Print the first images of an output by a head or a feature, and write their page."""
    from pipeline.models.weights.head_file import read_head, refuse_other_backbone
    from pipeline.outputs.heads.features import open_features
    from pipeline.outputs.heads.top import by_channel, by_head, pictures_of, top_images, with_boxes
    from pipeline.outputs.heads.top_page import page
    from pipeline.storage.filesystems import connect, read_url
    from pipeline.storage.lake.whole_objects import write_whole

    head = read_head(config.head, partial(read_url, storage=config)) if config.head else None
    source = open_features(config.place, config, config.model, head.card.model_digest if head else None)
    if head:
        refuse_other_backbone(head, source.run.lineage.backbone_digest, safe_url(config.head or ""), source.has)
    ranking = by_head(head) if head else by_channel(config.channel or 0, source)
    ranked = with_boxes(source, ranking, top_images(source, ranking, config.images))
    notes = []
    if "feature_maps" not in source.run.settings["outputs"]:
        notes.append("no maps and boxes: the output has no feature_maps (annotate with --outputs ...,feature_maps)")
        screen.say(notes[0])
    for name, some in zip(ranking.names, ranked, strict=True):
        rows = [[place, one.value, _sides(one.box_xyxy), one.uri] for place, one in enumerate(some)]
        screen.table(f"{name}: the first images of {source.where}", ["rank", "value", "box (pixels)", "uri"], rows)
    if config.out is None:
        return
    shown = [one for some in ranked for one in some]
    pictures = pictures_of(source, config.storage, shown)
    if missing := len({one.image_id for one in shown}) - len(pictures):
        notes.append(f"{missing} of the pictures can't be read any more")
        screen.say(notes[-1])
    title = f"{safe_url(config.head)} on {source.where}" if config.head else f"features of {source.where}"
    write_whole(*connect(config.out, config), page(title, notes, ranking.names, ranked, pictures))
    screen.result(f"{safe_url(config.out)}: {len(pictures)} pictures", pictures=len(pictures))


def _sides(box: tuple[float, ...] | None) -> str:
    return "" if box is None else " ".join(f"{side:.0f}" for side in box)


def _show(head: "Head", where: str, screen: Screen) -> None:
    card, rows = head.card, []
    for name in card.classes:
        facts = card.facts.get("classes", {}).get(name, {})
        shown = [_figure(facts.get(key)) for key in ("auc", "average_precision", "precision", "recall")]
        rows.append(
            [name, facts.get("positives", "?"), facts.get("negatives", "?"), f"{facts.get('threshold', 0):.3f}"]
        )
        rows[-1] += shown
    columns = ["class", "with", "without", "threshold", "AUC", "average precision", "precision", "recall"]
    screen.table(f"{card.kind} head of {card.model}; figures on held-out folds, 95 % intervals", columns, rows)
    screen.result(
        f"{where}: {len(card.classes)} classes on {head.weight.shape[1]} features of {card.model}, labels"
        f" {card.labels[:8]}, digest {head.digest[:8]}",
        digest=head.digest,
        classes=list(card.classes),
        model=card.model,
    )


def _figure(values: list[float | None] | None) -> str:
    if not values or values[0] is None:
        return "not known"
    low, high = values[1:]
    return f"{values[0]:.3f}" + (f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else "")


ABOUT = "Fit linear heads to labels on stored features, show them, and apply them, without network and images."

command = verb(
    "head",
    ABOUT,
    HeadConfig,
    run,
    "camlake head fit s3://bucket/labels --labels mirror-in-lake.csv --out mirror-in-lake.safetensors",
)

if __name__ == "__main__":
    main(command)
