"""Writes the HTML page of an output: one file that contains everything and loads nothing.

``camlake view`` serves the same page; its pictures and rows come from the server instead.
"""

import base64
import numbers
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
from jinja2.utils import htmlsafe_json_dumps

SCRIPTS = ("boxes.js", "overlay.js", "source.js", "gallery.js", "detail.js", "start.js")
"""The page's scripts in the order in which they run; each adds one name that the next ones use."""
POLICY = (
    "default-src 'none'; img-src {images}; connect-src {connect}; style-src 'nonce-{nonce}';"
    " script-src 'nonce-{nonce}'; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
)


@dataclass(frozen=True)
class Gallery:
    """The pictures of a page."""

    entries: Sequence[Mapping[str, Any]]
    """What the scripts know of each picture, in the order of the page; see ``page_entries.py``."""
    rule: Mapping[str, Any]
    """How the scripts cut boxes; see ``rules.py``."""
    labels: Sequence[str]
    """The classes that a reader may choose from."""
    total: int
    """The number of pictures: of ``entries``, or of the output where ``live``."""
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    """The WebP files by image_id; one that is missing could not be read."""
    live: bool = False
    """Whether a server answers the page's questions, so that ``entries`` and ``pictures`` are empty."""
    features: bool = False
    """Whether the server finds similar pictures."""

    def shown(self) -> dict[str, Any]:
        """Return the values that the template shows."""
        setup = {"rule": self.rule, "total": self.total, "live": self.live, "features": self.features}
        return {
            "live": self.live,
            "labels": self.labels,
            "refusal": self.rule["refusal"],
            "truth": any(entry["iou"] is not None for entry in self.entries),
            "setup": htmlsafe_json_dumps(setup),
            "images": htmlsafe_json_dumps(list(self.entries)),
        }


@dataclass(frozen=True)
class Overview:
    """Which classes the boxes have, how good and how large they are."""

    boxes: int
    classes: Sequence[tuple[str, int]]
    """The most frequent classes with their numbers of boxes, most first."""
    n_classes: int
    scores: Sequence[int]
    """Numbers of boxes by score, in equal steps from 0 to 1."""
    scored: bool
    """Whether the score is box_score; class_prob stands in where no box has one."""
    areas: Sequence[int]
    """Numbers of boxes by the share of the picture that they cover, in equal steps from 0 to 1."""


def render_page(
    title: str,
    counts: Mapping[str, str | float],
    summary: Mapping[str, str | float],
    *,
    overview: Overview | None = None,
    gallery: Gallery | None = None,
    scores: Sequence[Mapping[str, Any]] = (),
    tables: Mapping[str, int] | None = None,
    rejected: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[str] = (),
    out: str | None = None,
    nonce: str | None = None,
) -> bytes:
    """Return the page as UTF-8.

    ``counts`` and ``summary``: the facts of the head by name, large and small. ``scores`` and ``rejected``: rows of two
    tables, whose columns are the keys of the first row; a float in [0, 1] in ``scores`` gets a bar. ``tables``: the
    number of rows of each table. ``notes``: sentences below the facts. ``out``: the output's URL in the example
    queries; None leaves them out. ``nonce``: allows the page's own scripts and styles to run; None draws one. All
    values are escaped. What is empty leaves out its section.
    """
    nonce = nonce or secrets.token_urlsafe(16)
    root = out.rstrip("/") if out else ""
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            title=title,
            nonce=nonce,
            policy=content_policy(nonce, live=gallery is not None and gallery.live),
            styles=_asset("page.css"),
            scripts=[_asset(name) for name in SCRIPTS],
            numbers=counts,
            summary=summary,
            notes=notes,
            overview=overview,
            scores=scores,
            gallery=gallery.shown() if gallery else None,
            pictures={one: base64.b64encode(data).decode() for one, data in gallery.pictures.items()}
            if gallery
            else {},
            tables=tables or {},
            rejected=rejected,
            sql_out=root.replace("'", "''"),
            python_out=repr(f"{root}/boxes"),
        )
    )
    return page.encode("utf-8", errors="replace")


def content_policy(nonce: str, *, live: bool) -> str:
    """Return the page's Content-Security-Policy: its own scripts and styles, its own pictures, nothing else."""
    return POLICY.format(
        nonce=nonce, images="'self' data:" if live else "data:", connect="'self'" if live else "'none'"
    )


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.outputs.page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["shown"] = _shown
    environment.tests["share"] = _is_share
    return environment


@cache
def _asset(name: str) -> str:
    return files("pipeline.outputs.page").joinpath("assets", name).read_text(encoding="utf-8")


def _shown(value: Any) -> str:
    """Return the text of a table's cell, such as 12,345, 0.731 or yes; – for None."""
    if value is None:
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, numbers.Integral):
        return f"{int(value):,}"
    if isinstance(value, numbers.Real):
        number = float(value)
        return f"{number:.3f}" if abs(number) < 10 else f"{number:,.1f}"
    return str(value)


def _is_share(value: Any) -> bool:
    """Return whether a value is a share in [0, 1] that a bar can show."""
    return isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral) and 0.0 <= float(value) <= 1.0
