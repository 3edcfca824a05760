"""Kill runs at random moments while their store fails; the completed outputs must equal those of an undisturbed run.

The input is a bucket of moto's S3 server behind the proxy of ``tests.faulty_s3``; the outputs are in a bucket behind it
too, or on the local disk. A reader that globs looks at each output all the while.
"""

import logging
import os
import random
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer

from jobs.benchmark.machine import Figures, spread
from jobs.terminal.console import main
from pipeline.annotate.reporter import Reporter
from pipeline.annotate.stopping import DRAIN_S
from pipeline.images.synthetic.scenes import write_corpus
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.integrity.verify import verify
from pipeline.storage.lake.records import load_runs
from schemas.errors import CamlakeError, Stopped
from schemas.options.benchmark import MeasureConfig
from schemas.options.config import StorageConfig, option
from schemas.tables import TABLES
from tests import jobs_on
from tests.benchmarks.command import benchmark
from tests.benchmarks.glob_reader import GlobReader
from tests.benchmarks.soak_kills import ENDING, KINDS, Engine, Nodes, kill, nodes
from tests.faulty_s3 import FaultyS3, MixedFaults, faulty
from tests.jobs_on import ROOT, run_annotate
from tests.references.equal_rows import same_rows

KILLS_PER_OUTPUT = 5
STOPS_WITHIN_S = 20.0
"""How long a run may take to end after SIGTERM or Ctrl-C."""
_RUN_S = 240.0
_LOOK_S = 0.05
_BUCKET = "soak"
ACCOUNT = {"AWS_ACCESS_KEY_ID": "soak", "AWS_SECRET_ACCESS_KEY": "soak", "AWS_DEFAULT_REGION": "us-east-1"}


class SoakConfig(MeasureConfig):
    """The kills of a soak; of the photographs only ``count`` is used, a number of tiny rendered pictures."""

    count: int = option(96, "pictures", "Options", ge=32)
    kills: int = option(32, "kills of runs of the local engine", "Options", ge=0)
    ray_kills: int = option(12, "kills of runs on Ray, on a cluster of two nodes", "Options", ge=0)
    faults: float = option(0.2, "share of the store's answers that are faults", "Options", ge=0, le=0.5)
    seed: int = option(0, "seed of the moments, kinds and faults", "Options")


@dataclass
class Told:
    """What a soak has seen so far."""

    kills: Counter[str] = field(default_factory=Counter)
    stop_s: list[float] = field(default_factory=list)
    """Seconds from a signal to the end of the command."""
    decided: int = 0
    """Images that the workers of stopped runs, of which none had died, had annotated."""
    committed: int = 0
    """Images that these runs had committed."""
    looks: int = 0
    moved: int = 0
    rows: Counter[str] = field(default_factory=Counter)


class Output:
    """An output of a soak: starts runs that write to it, and counts their commits without faults."""

    def __init__(self, engine: Engine, url: str, endpoints: tuple[str, str], cluster: Nodes | None) -> None:
        """``endpoints``: of the store itself, and of the proxy in front of it."""
        self.engine, self.url, self.cluster, self._proxy = engine, url, cluster, endpoints[1]
        self.storage = StorageConfig(endpoint_url=endpoints[0])
        self.fs, self.root = connect(url, self.storage)
        self.metrics = Path(tempfile.mkdtemp()) / "run.prom"

    def start(self) -> subprocess.Popen[str]:
        """Start a run whose store fails now and then."""
        words = jobs_on.command("annotate", f"s3://{_BUCKET}/photos/", "--out", self.url, "--model", "camlake_demo")
        words += ["--topk", "2", "--actors", "1", "--batch-size", "4", "--images-per-commit", "8"]
        words += ["--precision", "fp32", "--box-rule", "paper", "--max-rejected", "1", "--engine", self.engine]
        words += ["--endpoint-url", self._proxy, "--metrics", str(self.metrics)]
        words += ["--address", self.cluster.address] if self.cluster else []
        return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def commits(self) -> int:
        """Return the number of commit records."""
        self.fs.invalidate_cache()
        return sum("/commits/" in path for path in self.fs.find(f"{self.root}/_runs"))

    def decided(self) -> int:
        """Return how many images the workers of the last run had annotated."""
        lines = self.metrics.read_text().splitlines()
        return int(float(next(one for one in lines if one.startswith("camlake_images_total{")).split()[-1]))


def measure(config: SoakConfig, reporter: Reporter) -> Figures:
    """Return the kills and what followed; raises CamlakeError for everything that should not be."""
    for name, value in ACCOUNT.items():
        os.environ.setdefault(name, value)
    told, generator = Told(), random.Random(config.seed)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # The server logs every request.
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with tempfile.TemporaryDirectory() as temporary, faulty(f"http://{host}:{port}") as proxy, ExitStack() as at_end:
        at_end.callback(server.stop)
        folder, direct = Path(temporary), f"http://{host}:{port}"
        _fill(folder, config.count, direct)
        whole = folder / "whole"
        run_annotate(f"s3://{_BUCKET}/photos/", whole, batch_size=4, endpoint_url=direct)
        proxy.fault = MixedFaults(config.faults, config.seed)
        places = cycle([str(folder), f"s3://{_BUCKET}"])
        engines: tuple[tuple[Engine, int], ...] = (("local", config.kills), ("ray", config.ray_kills))
        for engine, kills in engines:
            if not kills:
                continue
            cluster = at_end.enter_context(nodes()) if engine == "ray" else None
            kinds = _kinds(engine, kills, generator)
            for number in range(kills):  # more outputs than needed
                if not kinds:
                    break
                out = Output(engine, f"{next(places)}/{engine}-{number}", (direct, proxy.url), cluster)
                _soak(out, kinds, generator, told, reporter.say)
                _check(out, whole, config.count, told)
    if told.looks == told.moved:
        raise CamlakeError(f"the reader that globs saw no files at rest in {told.looks} looks")
    return _figures(config, told, proxy)


def _fill(folder: Path, count: int, endpoint_url: str) -> None:
    """Make the bucket and upload the pictures, one of which is broken."""
    write_corpus(folder, count - 1, seed=5, size_hw=(48, 64), broken=1)
    client = boto3.client("s3", endpoint_url=endpoint_url)
    client.create_bucket(Bucket=_BUCKET)
    for path in sorted((folder / "images").iterdir()):
        client.put_object(Bucket=_BUCKET, Key=f"photos/{path.name}", Body=path.read_bytes())


def _kinds(engine: Engine, kills: int, generator: random.Random) -> list[str]:
    """Return the kinds of the kills in random order, each about equally often."""
    kinds = [kind for kind, _ in zip(cycle(KINDS[engine]), range(kills), strict=False)]
    generator.shuffle(kinds)
    return kinds


def _soak(out: Output, kinds: list[str], generator: random.Random, told: Told, say: Callable[[str], None]) -> None:
    """Run until the output is complete, and kill up to KILLS_PER_OUTPUT times; ``kinds`` loses the kinds used."""
    left = KILLS_PER_OUTPUT
    with GlobReader(out.fs, out.root) as reader:
        process: subprocess.Popen[str] | None = None
        unhurt = True
        while left and kinds:
            if process is None:
                process, unhurt = out.start(), True
            if not _at_work(out, process, generator):
                break
            kind, began_s = kinds[-1], time.monotonic()
            if kill(kind, process, out.cluster, generator):
                if kind in ENDING and not _ended(kind, process, out, began_s, unhurt, told):
                    process = None  # It was complete before the signal came; the next run finds nothing to do.
                    break
                kinds.pop()
                left -= 1
                told.kills[f"{out.engine}: {kind}"] += 1
                say(f"{out.url.rpartition('/')[2]}: {kind}, {out.commits()} commits, {len(kinds)} kills to go")
                process, unhurt = None if kind in ENDING else process, False
        process = process or out.start()
        _complete(process)
    told.looks, told.moved = told.looks + reader.looks, told.moved + reader.moved
    if reader.wrong:
        raise CamlakeError(f"{out.url}: a reader that globs saw {reader.wrong[:3]}")


def _at_work(out: Output, process: subprocess.Popen[str], generator: random.Random) -> bool:
    """Wait for one or two more commits and a moment; return whether the run is still at work."""
    wanted, until_s = out.commits() + generator.randint(1, 2), time.monotonic() + _RUN_S
    while out.commits() < wanted:
        if process.poll() is not None:
            return False
        if time.monotonic() > until_s:
            raise CamlakeError(f"{out.url}: no commit in {_RUN_S:g} s")
        time.sleep(_LOOK_S)
    time.sleep(generator.uniform(0, 0.3))
    return process.poll() is None


def _ended(kind: str, process: subprocess.Popen[str], out: Output, began_s: float, unhurt: bool, told: Told) -> bool:
    """Wait for the end of a killed or stopped command; return whether it had not ended by itself.

    An ``unhurt`` run has lost no process and no machine before: of another one some images were decided twice.
    """
    _, said = process.communicate(timeout=_RUN_S)
    took_s, run = time.monotonic() - began_s, load_runs(out.fs, out.root)[-1]
    if run.status == "complete":
        return False
    if kind == "driver":
        return True
    if process.returncode != Stopped.exit_status or took_s > STOPS_WITHIN_S:
        raise CamlakeError(f"{out.url}: status {process.returncode} {took_s:.1f} s after {kind}: {said[-500:]}")
    told.stop_s.append(took_s)
    if not unhurt:
        return True
    told.decided += out.decided()
    told.committed += run.counts.annotated
    if run.counts.annotated < out.decided() and took_s < DRAIN_S:
        numbers = f"{out.decided()} images decided, {run.counts.annotated} committed"
        raise CamlakeError(f"{out.url}: {numbers} {took_s:.1f} s after {kind}: {said[-1500:]}")
    return True


def _complete(process: subprocess.Popen[str]) -> None:
    _, said = process.communicate(timeout=_RUN_S)
    if process.returncode:
        raise CamlakeError(f"a run that nobody killed ended with status {process.returncode}: {said[-1000:]}")


def _check(out: Output, whole: Path, count: int, told: Told) -> None:
    """Compare a complete output with the undisturbed one, after a night without faults that tries again what failed."""
    run_annotate(f"s3://{_BUCKET}/photos/", out.url, batch_size=4, endpoint_url=out.storage.endpoint_url)
    found = verify(out.fs, out.root).problems
    if found:
        raise CamlakeError(f"{out.url}: verify: {found[0]}")
    rows = {table: same_rows(whole, out.url, table, endpoint_url=out.storage.endpoint_url) for table in TABLES}
    told.rows.update(rows)
    endings = rows["images"] + rows["quarantine"]
    if endings != count:
        raise CamlakeError(f"{out.url}: {endings} endings of {count} images")


def _figures(config: SoakConfig, told: Told, proxy: FaultyS3) -> Figures:
    stops = {"seconds from signal to end": spread(told.stop_s)} if told.stop_s else {}
    return {
        "kills": sum(told.kills.values()),
        "kills by kind": dict(sorted(told.kills.items())),
        "answers by fault": dict(sorted(proxy.faults.items())),
        **stops,
        "stopped runs: images decided, committed": [told.decided, told.committed],
        "looks of the globbing reader, of these at removed files": [told.looks, told.moved],
        "equal rows": dict(told.rows),
    }


command = benchmark(
    "soak",
    "Kill runs at random moments while the store fails; the tables must equal those of an undisturbed run.",
    SoakConfig,
    measure,
    "--kills 32 --ray-kills 12",
)

if __name__ == "__main__":
    main(command)
