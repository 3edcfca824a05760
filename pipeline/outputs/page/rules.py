"""How the page's scripts cut the boxes of an output anew, or why they can't."""

from typing import Any

from pipeline.models.localize.foreground import foreground_of
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.whole_objects import read_whole
from schemas.options.config import StorageConfig
from schemas.runs import RunManifest


def cutting_rule(run: RunManifest, out: str, storage: StorageConfig) -> dict[str, Any]:
    """Return the rule by which a run's stored maps become boxes, for the scripts.

    ``name``: the box rule. ``threshold``: the run's first one. ``min_area``: smaller boxes, as
    shares of the picture, are left out. ``all``: a box for each component. ``combination``: how
    class maps are fused with figure/ground maps, None where they are not. ``refusal``: why no box can be cut anew,
    empty where it can. The boxes of a rule with several thresholds or ranks are cut at one threshold, one for each map.
    """
    settings = run.settings
    name, outputs = settings.get("box_rule", "paper"), settings.get("outputs", [])
    digest = settings.get("foreground", "off")
    combination, refusal = None, ""
    if "heatmaps" not in outputs:
        refusal = "the output has no heatmaps"
    elif settings.get("method") == "regress":
        refusal = "the boxes come from a box head, not from maps"
    elif digest != "off" and "foreground" not in outputs:
        refusal = "the output does not store the figure/ground maps that its boxes were cut with"
    elif digest != "off":
        fs, root = connect(out, storage, anonymous=storage.anonymous)
        content = read_whole(fs, LakePaths(root).foreground_file(run.model))
        found = None if content is None else foreground_of(content, "the figure/ground direction")
        if found is None or found.digest != digest:
            refusal = "the figure/ground direction of the maps is lost or changed"
        else:
            combination = found.card.combination
    return {
        "name": name,
        "threshold": (settings.get("threshold") or [None])[0],
        "min_area": settings.get("min_area", 0.0),
        "all": name == "all-components",
        "combination": combination,
        "refusal": refusal,
    }
