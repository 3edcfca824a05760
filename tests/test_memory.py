"""Freed memory stays with the process: its pages are touched once, not once a batch."""

import subprocess
import sys

import pytest

from pipeline.models.allocator import keep_freed_memory
from tests.jobs_on import ROOT

PAGES = """
import resource, sys
import torch
from pipeline.models.allocator import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
blocks = lambda: [torch.ones(2**22) is None for _ in range(20)]  # 16 MB each
blocks()
before = faults()
blocks()
print(faults() - before)
"""


def new_pages(how: str) -> int:
    environment = {"MALLOC_MMAP_THRESHOLD_": "131072", "PATH": "/usr/bin"}
    done = subprocess.run(
        [sys.executable, "-c", PAGES, how], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(not keep_freed_memory(), reason="the C library has no mallopt")
def test_a_block_like_the_last_one_touches_no_new_pages():
    given_back = new_pages("give back")
    assert given_back >= 20 * 2**24 // 2**21, "at least the huge pages of 20 blocks"
    assert new_pages("keep") < given_back / 10
