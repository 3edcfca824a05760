"""A lease file that holds no lease: nobody holds it for longer than a lease lasts."""

import time

import pytest

from pipeline.storage.lake.layout import LakePaths
from pipeline.storage.lake.lease import Lease
from schemas.errors import LeaseError
from tests.fake_lake import FakeLake


def test_a_lease_that_cannot_be_read_expires_too(lake: FakeLake) -> None:
    Lease.acquire(lake.fs, lake.root, "one").release()
    garbage = LakePaths(lake.root).full("_runs/lease/00000002.json")
    lake.fs.pipe_file(garbage, b'{"run_id": 7')
    with pytest.raises(LeaseError, match=r"00000002.json can't be read; unless a run renews it until then, it is free"):
        Lease.acquire(lake.fs, lake.root, "two")
    time.sleep(1.1)  # S3 tells whole seconds.
    lease = Lease.acquire(lake.fs, lake.root, "two", ttl_s=0.1)
    assert lease.generation == 3
    lease.release()
