"""Compare runs on Ray whose store fails in one of five answers with runs whose store is in order, in turns.

Input and output are in a bucket of moto's S3 server behind the proxy of ``tests.faulty_s3``: 500, 503, lost answers,
connections that end, late answers, short bodies, other bodies.
"""

import logging
import os
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer

from jobs.benchmark.machine import Figures, spread
from jobs.benchmark.photographs import make_photographs, weights_file
from jobs.terminal.console import main
from pipeline.annotate.reporter import Reporter
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.integrity.verify import verify
from pipeline.storage.lake.records import load_runs
from schemas.errors import CamlakeError
from schemas.options.benchmark import MeasureConfig
from schemas.options.config import StorageConfig, option
from tests import jobs_on
from tests.benchmarks.command import benchmark, resolved_precision
from tests.benchmarks.soak import ACCOUNT
from tests.faulty_s3 import MixedFaults, faulty
from tests.jobs_on import ROOT

_BUCKET = "faults"
_SIDES = ("in order", "failing")


class FaultsConfig(MeasureConfig):
    """The configuration of this measurement."""

    share: float = option(0.2, "share of the store's answers that are faults", "Options", gt=0, le=0.5)


def measure(config: FaultsConfig, reporter: Reporter) -> Figures:
    """Return images/s of both sides, their ratio and the faults; raises CamlakeError for an image without an ending."""
    for name, value in ACCOUNT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # The server logs every request.
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    direct, rates, rejected = f"http://{host}:{port}", {side: [] for side in _SIDES}, []
    with tempfile.TemporaryDirectory() as temporary, faulty(direct) as proxy, ExitStack() as at_end:
        at_end.callback(server.stop)
        folder = Path(temporary)
        make_photographs(config, folder / "images", config.count)
        client = boto3.client("s3", endpoint_url=direct)
        client.create_bucket(Bucket=_BUCKET)
        for path in sorted((folder / "images").iterdir()):
            client.put_object(Bucket=_BUCKET, Key=f"photos/{path.name}", Body=path.read_bytes())
        options = ["--model", config.model, "--weights", weights_file(config, folder), "--device", "cpu"]
        options += ["--precision", resolved_precision(config), "--engine", "ray", "--max-rejected", "1"]
        faults = MixedFaults(config.share, seed=0)
        for repeat in range(config.repeats):
            for side in _SIDES:
                proxy.fault = faults if side == "failing" else (lambda request: None)
                out = f"s3://{_BUCKET}/{side.replace(' ', '-')}-{repeat}"
                words = jobs_on.command("annotate", f"s3://{_BUCKET}/photos/", "--out", out, *options)
                _run([*words, "--endpoint-url", proxy.url])
                rate, refused = _checked(out, direct, config.count)
                rates[side].append(rate)
                rejected += [refused] if side == "failing" else []
                reporter.say(f"{side}: {rate:.1f} images/s, {refused} rejected")
    return {
        "images": config.count,
        "precision": resolved_precision(config),
        "share of faults": config.share,
        "answers by fault": dict(sorted(proxy.faults.items())),
        **{f"images/s, store {side}": spread(values) for side, values in rates.items()},
        "ratio": spread([bad / good for good, bad in zip(*rates.values(), strict=True)]),
        "rejected for now, of each failing run": rejected,
    }


def _run(words: list[str]) -> None:
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CamlakeError(f"annotate failed: {done.stderr.strip()[-1000:]}")


def _checked(out: str, endpoint_url: str, count: int) -> tuple[float, int]:
    """Return a run's images/s and rejections; raises CamlakeError where an input has no ending."""
    fs, root = connect(out, StorageConfig(endpoint_url=endpoint_url))
    (run,) = load_runs(fs, root)
    problems = verify(fs, root).problems
    if problems or run.counts.annotated + run.counts.rejected != count:
        raise CamlakeError(f"{out}: {run.counts.annotated} of {count} images annotated; {problems[:1]}")
    assert run.summary
    return run.summary.images_per_s, run.counts.rejected


command = benchmark(
    "faults",
    "Compare runs on Ray whose store fails in one of five answers with runs whose store is in order.",
    FaultsConfig,
    measure,
    "--images PHOTOS --model mobilenet_v2 --count 1000",
    lambda: {"load before": round(os.getloadavg()[0], 2)},
)

if __name__ == "__main__":
    main(command)
