"""``camlake head fit``: a head from labels."""

from jobs.head.show import show
from jobs.terminal.console import Screen
from schemas.options.head import HeadConfig
from schemas.url_secrets import safe_url


def run(config: HeadConfig, screen: Screen) -> None:
    """Fit a head and write it."""
    from pipeline.models.weights.head_file import head_bytes
    from pipeline.outputs.heads.features import open_features
    from pipeline.outputs.heads.head_jobs import fit
    from pipeline.storage.filesystems import connect
    from pipeline.storage.lake.whole_objects import write_whole
    from pipeline.storage.truth.image_labels import read_image_labels

    assert config.labels is not None
    assert config.out is not None
    labels = read_image_labels(config.labels, config)
    source = open_features(config.place, config, config.model)
    head = fit(source, labels, config.kind, screen)
    write_whole(*connect(config.out, config), head_bytes(head))
    show(head, safe_url(config.out), screen)
