"""``camlake head apply``: probabilities of a head for every image."""

from functools import partial
from pathlib import PurePosixPath

from jobs.terminal.console import Screen
from schemas.options.head import HeadConfig
from schemas.url_secrets import safe_url


def run(config: HeadConfig, screen: Screen) -> None:
    """Write the probabilities of a head for every image of an output."""
    from pipeline.models.weights.head_file import read_head, refuse_other_backbone
    from pipeline.outputs.heads.features import open_features
    from pipeline.outputs.heads.head_jobs import apply
    from pipeline.storage.filesystems import connect, read_url
    from pipeline.storage.lake.whole_objects import write_whole

    assert config.head is not None
    assert config.out is not None
    head = read_head(config.head, partial(read_url, storage=config))
    source = open_features(config.place, config, config.model, head.card.model_digest)
    refuse_other_backbone(head, source.run.lineage.backbone_digest, safe_url(config.head), source.has)
    content, images, positives = apply(source, head, PurePosixPath(config.out).suffix)
    write_whole(*connect(config.out, config), content)
    rows = [[name, count, count / max(1, images)] for name, count in positives.items()]
    screen.table(f"{images} images", ["class", "positive", "share"], rows)
    screen.result(f"{safe_url(config.out)}: {images} images, {len(positives)} classes", images=images)
