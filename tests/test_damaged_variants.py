"""Thousands of damaged files through the whole job: no crash, no hang, each of them in exactly one table."""

import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.outputs import reader as camlake
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.integrity.verify import verify
from schemas.options.config import StorageConfig
from tests.jobs_on import run_annotate

VARIANTS, SEED = 2000, 277
LIMIT_S = 180.0
"""What the run may take on two cores."""


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Return ``data`` cut off, or with 1 to 100 flipped bits, or both."""
    kind = rng.integers(3)
    values = np.frombuffer(data, np.uint8).copy()
    if kind != 0 and len(values):
        flipped = rng.integers(0, len(values), int(rng.integers(1, 101)))
        np.bitwise_xor.at(values, flipped, (1 << rng.integers(0, 8, len(flipped))).astype(np.uint8))
    return values[: rng.integers(0, len(values) + 1)].tobytes() if kind != 1 else values.tobytes()


def write_variants(odd: Path, folder: Path) -> None:
    """Write VARIANTS files to ``folder``, each made of one of the files of ``odd``, which take turns."""
    files = [path for path in sorted(odd.iterdir()) if path.name != "LIST.csv"]
    assert len(files) == 277
    for number in range(VARIANTS):
        path = files[number % len(files)]
        data = damaged(path.read_bytes(), np.random.default_rng((SEED, number)))
        (folder / f"{number:04d}{path.suffix or '.jpg'}").write_bytes(data)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_damaged_variants_of_every_odd_file(shared: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "damaged", tmp_path / "labels"
    folder.mkdir()
    write_variants(shared / "real" / "odd", folder)
    started_s = time.monotonic()
    counts = run_annotate(folder, out, batch_size=64, engine="ray").counts
    took_s = time.monotonic() - started_s
    assert counts.listed == counts.annotated + counts.rejected == VARIANTS
    with camlake.open(str(out)) as lake:
        images, rejected = (set(lake.arrow(table)["uri"].to_pylist()) for table in ("images", "quarantine"))
        reasons = lake.arrow("quarantine")["reason_code"].to_pylist()
    assert not images & rejected
    assert images | rejected == {str(path) for path in folder.iterdir()}
    assert not {"crashed", "decode_timeout", "fetch_failed"} & set(reasons)
    assert len(images) > VARIANTS / 10
    assert len(rejected) > VARIANTS / 10
    assert list(verify(*connect(str(out), StorageConfig())).problems) == []
    assert took_s < LIMIT_S
