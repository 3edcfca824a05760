"""Writes the figures of a run to a local file in Prometheus' text format, for node_exporter's textfile collector."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pipeline.annotate.reporter import RunProgress
from schemas.errors import HeldError, UsageError
from schemas.prometheus import METRICS, OUTPUT_LABEL
from schemas.runs import Counts, RunManifest

EVERY_S = 5.0
"""Seconds between two writes; Prometheus usually reads every 15 or 60 seconds."""


class RunMetrics(Collector):
    """The figures of a run, and the file that they go to; without a file nothing is written."""

    def __init__(self, file: str | None, output: str, say: Callable[[str], None]) -> None:
        """``output``: the output's URL without secrets; ``say`` gets a line where a later write fails."""
        self._file, self._output, self._say = file, output, say
        self._registry, self._written_s, self._warned = CollectorRegistry(), 0.0, False
        self.values: dict[str, float] = dict.fromkeys(METRICS, 0.0)
        self.mirror: Callable[[Mapping[str, float]], None] = lambda values: None
        """Gets the figures at every report of the run."""
        self._registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """Yield every figure."""
        for name, (kind, about) in METRICS.items():
            family = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
            figure = family(name, about, labels=[OUTPUT_LABEL])
            figure.add_metric([self._output], self.values[name])
            yield figure

    def begin(self, counts: Counts) -> None:
        """Write what the run has to do; raises UsageError where the file can't be written."""
        self.values["camlake_run_started_timestamp_seconds"] = time.time()
        self.values["camlake_planned_images"] = counts.planned
        self.values["camlake_done_before_images"] = counts.already_done
        try:
            self._write()
        except OSError as error:
            raise UsageError(f"--metrics {self._file!r}: can't be written: {error.strerror or error}") from error

    def follow(self, done: RunProgress, workers: int) -> None:
        """Write how far the run is, at most every EVERY_S."""
        self.values |= {
            "camlake_images_total": done.images,
            "camlake_rejected_images_total": done.rejected,
            "camlake_read_bytes_total": done.bytes_in,
            "camlake_store_retries_total": done.retries,
            "camlake_decode_seconds_total": done.decode_s,
            "camlake_network_seconds_total": done.busy_s,
            "camlake_workers": workers,
        }
        self.mirror(self.values)
        if time.monotonic() - self._written_s >= EVERY_S:
            self._write_or_warn()

    def finished(self, manifest: RunManifest) -> None:
        """Keep the final figures of a run that is complete."""
        self.values["camlake_images_total"] = manifest.counts.annotated
        self.values["camlake_rejected_images_total"] = manifest.counts.rejected
        if manifest.summary:
            self.values["camlake_written_bytes_total"] = manifest.summary.bytes_out
            self.values["camlake_store_retries_total"] = manifest.summary.retries
        self.values["camlake_run_succeeded"] = 1

    def end(self) -> None:
        """Write the figures with the time of the end."""
        self.values["camlake_run_ended_timestamp_seconds"] = time.time()
        self._write_or_warn()

    def _write_or_warn(self) -> None:
        try:
            self._write()
        except OSError as error:
            if not self._warned:
                self._say(f"warning: --metrics {self._file!r}: can't be written: {error.strerror or error}")
            self._warned = True

    def _write(self) -> None:
        if self._file is not None:
            write_to_textfile(self._file, self._registry)
            self._written_s = time.monotonic()


@contextmanager
def run_metrics(file: str | None, output: str, say: Callable[[str], None]) -> Iterator[RunMetrics]:
    """Give a run its figures, and write the last ones when the block ends, also by an error.

    A run that another one keeps from working leaves the file to that one. Raises UsageError where the file's folder is
    missing.
    """
    if file is not None and not Path(file).absolute().parent.is_dir():
        raise UsageError(f"--metrics {file!r}: {Path(file).absolute().parent} is no folder")
    metrics = RunMetrics(file, output, say)
    try:
        yield metrics
    except HeldError:
        raise
    except BaseException:
        metrics.end()
        raise
    metrics.end()
