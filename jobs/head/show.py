"""``camlake head show``: the card of a head."""

from functools import partial
from typing import TYPE_CHECKING

from jobs.terminal.console import Screen
from schemas.options.head import HeadConfig
from schemas.url_secrets import safe_url

if TYPE_CHECKING:
    from pipeline.models.weights.head_file import Head


def run(config: HeadConfig, screen: Screen) -> None:
    """Print the card of a head."""
    from pipeline.models.weights.head_file import read_head
    from pipeline.storage.filesystems import read_url

    show(read_head(config.place, partial(read_url, storage=config)), safe_url(config.place), screen)


def show(head: "Head", where: str, screen: Screen) -> None:
    """Print the card of ``head``, which lies at ``where``."""
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
