"""The screen of a job: messages, results, tables, progress and the last error, as text or as lines of JSON."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.annotate.reporter import Advance, every_few_seconds, progress_bar, progress_lines
from schemas.url_secrets import without_secrets


class Screen:
    """Writes a job's reports as text or JSON lines, and its progress as a bar on a terminal or as log lines elsewhere.

    Results go to standard output, everything else to standard error, so that a job's output can be piped.
    """

    def __init__(self, log_format: Literal["text", "json"] = "text") -> None:
        self.json = log_format == "json"
        self.run_id: str | None = None
        """The run of this process; known from the first line that has it among its facts."""
        width = None if sys.stdout.isatty() else 200
        self.out = Console(file=sys.stdout, width=width, highlight=False, soft_wrap=True)
        self.err = Console(stderr=True, highlight=False, soft_wrap=True)

    def say(self, text: str, **facts: Any) -> None:
        """Report a step with ``text``; ``--log-format json`` also writes ``facts``, its values."""
        self.run_id = facts.get("run_id", self.run_id)
        if self.json:
            self._line(event="message", text=text, **facts)
        else:
            self.err.print(without_secrets(text), markup=False)

    def result(self, text: str, **facts: Any) -> None:
        """Print a result to standard output; ``--log-format json`` also writes ``facts``, its values."""
        if self.json:
            self._line(event="result", text=text, **facts)
        else:
            self.out.print(without_secrets(text), markup=False)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Print a table to standard output; columns of numbers are aligned to the right."""
        if self.json:
            self._line(event="table", title=title, rows=[dict(zip(columns, row, strict=True)) for row in rows])
            return
        table = Table(title=Text(title), title_justify="left")
        for index, name in enumerate(columns):
            numeric = all(isinstance(row[index], int | float) for row in rows)
            justify: Literal["left", "right"] = "right" if numeric else "left"
            table.add_column(Text(name), justify=justify, overflow="fold", no_wrap=numeric or index == 0)
        for row in rows:
            table.add_row(
                *(Text(f"{cell:.4g}" if isinstance(cell, float) else without_secrets(str(cell))) for cell in row)
            )
        self.out.print(table)

    def fail(self, text: str, kind: str, exit_status: int) -> None:
        """Write the error that ends the job, the last line of all; ``kind`` is the name of its class."""
        if self.json:
            self._line(event="error", text=text, kind=kind, exit_status=exit_status)
        else:
            print(f"camlake: {without_secrets(text)}", file=sys.stderr)

    @contextmanager
    def status(self) -> Iterator[Callable[..., None]]:
        """Yield a function that shows a text in the place of the last one; without a terminal a line now and then.

        It takes the text's facts too, as ``say`` does.
        """
        if self.err.is_terminal and not self.json:
            with self.err.status("") as shown:
                yield lambda text, **facts: shown.update(Text(without_secrets(text)))
        else:
            yield every_few_seconds(self.say)

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Advance]:
        """Show the progress of ``total`` inputs, with inputs/s, time left and rejects."""
        if self.err.is_terminal and not self.json:
            with progress_bar(self.err, what, total) as advance:
                yield advance
        else:
            yield progress_lines(self.say, what, total)

    def _line(self, **facts: Any) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        facts = {"run_id": self.run_id, **facts} if self.run_id else facts
        stream = self.out.file if facts["event"] in {"result", "table"} else sys.stderr
        print(json.dumps({"time": stamp, **public(facts)}, default=str), file=stream, flush=True)


def public(value: Any) -> Any:
    """Return ``value`` without the secrets in its texts, so that it can be shown."""
    if isinstance(value, dict):
        return {key: public(one) for key, one in value.items()}
    if isinstance(value, list):
        return [public(one) for one in value]
    return without_secrets(value) if isinstance(value, str) else value
