"""``camlake head top``: the images that a head or a feature ranks first."""

from functools import partial

from jobs.terminal.console import Screen
from schemas.options.head import HeadConfig
from schemas.url_secrets import safe_url


def run(config: HeadConfig, screen: Screen) -> None:
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
