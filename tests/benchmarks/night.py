"""Measure a night without news: ``camlake annotate`` on a bucket of a million objects, all of them done.

The store is simulated (tests.benchmarks.fake_store: it computes keys, and all bodies are equal) and runs on the same
machine. The output is on the local disk. Its first images are annotated by the real job; the rows of the others are
made up and committed by the real Committer, as many in a commit as in a long run. Only the table ``images`` gets rows,
because a run without news reads no other but ``quarantine``. The measured command is a new process each time.
"""

import itertools
import resource
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from jobs.benchmark.machine import Figures
from jobs.benchmark.photographs import make_photographs
from jobs.terminal.console import main
from pipeline.annotate.reporter import Reporter
from pipeline.storage.filesystems import connect
from pipeline.storage.inputs.listing import list_inputs
from pipeline.storage.lake.commit import done_images
from pipeline.storage.lake.records import load_runs
from pipeline.storage.lake.run import RunRequest, open_run
from schemas.errors import CamlakeError
from schemas.options.benchmark import MeasureConfig
from schemas.options.config import StorageConfig, option
from schemas.runs import Counts, RunManifest
from schemas.tables import TABLES
from tests.benchmarks.command import benchmark, run_watched
from tests.benchmarks.fake_store import BUCKET, StoreSpec, fake_store

PHOTOS = f"s3://{BUCKET}/photos/"
MODEL = "camlake_demo"
ANNOTATED = 32
"""Images of the real run."""
COMMIT_ROWS = 32_768
"""Images of a commit in a long run, see pipeline.annotate.resources.images_per_commit."""
SIZE_HW = (48, 48)
ALLOWED = {1_000_000: (60, 1.0), 10_000_000: (480, 4.0)}
"""Seconds and GB that a night without news may take, by the number of objects."""


class NightConfig(MeasureConfig):
    """The configuration of this measurement."""

    objects: int = option(1_000_000, "objects in the bucket", "Options", ge=1_000, le=20_000_000)


@dataclass(frozen=True)
class Night:
    """What one run of the command took."""

    seconds: float
    cpu_s: float
    peak_gb: float


def measure(config: NightConfig, reporter: Reporter) -> Figures:
    """Return the seconds, CPU seconds and peak memory of a run that finds nothing to do."""
    with tempfile.TemporaryDirectory() as temporary:
        (picture,) = make_photographs(MeasureConfig(), Path(temporary) / "one", 1, SIZE_HW)
        with fake_store(StoreSpec(config.objects), picture.read_bytes()) as endpoint:
            out = str(Path(temporary) / "out")
            finish_every_image(out, endpoint, config.objects)
            reporter.say(f"{config.objects} images are done; now the nights without news")
            nights = [_night(out, endpoint, config.objects) for _ in range(config.repeats)]
    seconds, cpu_s, peak_gb = (
        sorted(values)[len(nights) // 2]
        for values in zip(*((night.seconds, night.cpu_s, night.peak_gb) for night in nights), strict=True)
    )
    most_s, most_gb = ALLOWED.get(config.objects, (None, None))
    return {
        "objects": config.objects,
        "night without news: s": round(seconds, 1),
        "night without news: CPU s": round(cpu_s, 1),
        "night without news: peak GB": round(peak_gb, 2),
        "slowest of all: s": round(max(night.seconds for night in nights), 1),
        "allowed: s": most_s,
        "allowed: GB": most_gb,
    }


def finish_every_image(out: str, endpoint: str, objects: int) -> None:
    """Make an output in which every object of the store is done."""
    run_watched("annotate", f"{PHOTOS}000000/", *_options(out, endpoint), "--limit", str(ANNOTATED))
    fs, root = connect(out, StorageConfig())
    (first,) = load_runs(fs, root)
    done = {name for batch in done_images(fs, root, first.model) for name in batch["image_id"].to_pylist()}
    request = RunRequest(out, StorageConfig(), first.model, first.settings, first.config, first.lineage)
    with open_run(request) as opened:
        run = opened.begin(Counts(listed=objects, already_done=len(done), planned=objects - len(done)))
        committer = run.committer({"images": TABLES["images"].schema(), "quarantine": TABLES["quarantine"].schema()})
        for number, rows in enumerate(_rows(endpoint, run.manifest, done)):
            committer.commit(f"{number:06d}", {"images": rows})
        run.finish()


def _rows(endpoint: str, run: RunManifest, done: set[str]) -> Iterator[pa.Table]:
    """Yield rows of ``images`` for the listed objects that are not ``done``, COMMIT_ROWS at a time."""
    made_up = {"width_px": 48, "height_px": 48, "format": "JPEG", "top1_class_id": 0, "top1_label": "disk"}
    made_up |= {"top1_prob": 0.5, "n_boxes": 0, "annotated_at": datetime.now(UTC), "run_id": run.run_id}
    schema = TABLES["images"].columns
    listing = list_inputs(PHOTOS, StorageConfig(endpoint_url=endpoint, anonymous=True))
    waiting: list[pa.Table] = []
    for batch in itertools.chain(listing.batches, [None]):
        if batch is not None:
            fresh = pa.table(batch).filter(pa.array([name not in done for name in batch["image_id"].to_pylist()]))
            for name, value in made_up.items():
                fresh = fresh.append_column(name, pa.repeat(pa.scalar(value, schema.field(name).type), len(fresh)))
            waiting.append(fresh.select(schema.names).cast(schema))
        if waiting and (batch is None or sum(map(len, waiting)) >= COMMIT_ROWS):
            yield pa.concat_tables(waiting).combine_chunks()
            waiting = []


def _night(out: str, endpoint: str, objects: int) -> Night:
    """Run the command; raises CamlakeError where it found something to do."""
    cpu_before_s = _children_cpu_s()
    done = run_watched("annotate", PHOTOS, *_options(out, endpoint))
    if f"{objects} listed, {objects} done, 0 to do" not in done.said:
        raise CamlakeError(f"this was no night without news: {' | '.join(done.said.splitlines()[-5:])}")
    return Night(done.seconds, _children_cpu_s() - cpu_before_s, done.peak / 1e9)


def _options(out: str, endpoint: str) -> tuple[str, ...]:
    return ("--out", out, "--model", MODEL, "--endpoint-url", endpoint, "--anonymous")


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


ABOUT = "Measure a night without news: a run over a million objects that are all done."

command = benchmark("night", ABOUT, NightConfig, measure, "--repeats 1 --result night-2cores.json")

if __name__ == "__main__":
    main(command)
