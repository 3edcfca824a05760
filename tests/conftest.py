"""Fixtures of the whole suite: real S3 servers, one local Ray, the folder of real photographs."""

import logging
import os
import random
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import ray
import s3fs
import torch
from botocore.config import Config
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import settings
from moto.server import ThreadedMotoServer

from pipeline.images.synthetic.scenes import write_corpus
from schemas.options.config import StorageConfig
from tests.compacting import fill
from tests.fake_lake import FakeLake
from tests.groups import Groups, order_of
from tests.jobs_on import run_annotate

KEY, SECRET, REGION = "testkey", "testsecret", "us-east-1"
CEPH_SCRIPT = Path(__file__).with_name("ceph_s3.sh")
CEPH_PROGRAMS = ("ceph-mon", "ceph-mgr", "ceph-osd", "ceph", "radosgw", "radosgw-admin")
ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "pipeline", "jobs", "schemas", "tests")
"""The files and folders that a wheel is built from, and the tests, which a wheel must not contain."""

# An example's first call imports libraries, and a busy machine takes its time: no example has a deadline.
settings.register_profile("camlake", deadline=None)
settings.load_profile("camlake")
torch.set_num_threads(1)
logging.getLogger("werkzeug").setLevel(logging.WARNING)  # moto's server logs every request


class ObjectStore:
    """A running S3 server. Its credentials are environment variables, as a user would set them."""

    def __init__(self, name: str, endpoint_url: str) -> None:
        self.name = name
        self.endpoint_url = endpoint_url
        self.storage = StorageConfig(endpoint_url=endpoint_url)
        # Only this client of the tests gets a setting for checksums: the tests show that camlake works without it.
        self.client = boto3.client(
            "s3", endpoint_url=endpoint_url, config=Config(request_checksum_calculation="when_required")
        )

    def bucket(self) -> str:
        """Return the name of a fresh, empty bucket."""
        name = f"camlake-{uuid.uuid4().hex[:12]}"
        self.client.create_bucket(Bucket=name)
        return name

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """Return every key under ``prefix`` as the server lists it now, without the cache of camlake's client."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the largest groups of tests first."""
    items.sort(key=lambda item: order_of(item.nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Groups:
    """Share the tests between pytest-xdist's processes by groups."""
    return Groups(config, log)


@pytest.fixture(scope="session", autouse=True)
def _environment() -> Iterator[None]:
    """Give this process, Ray's workers and started commands the test servers' credentials and no others."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ACCESS_KEY_ID", KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", REGION)
        patch.setenv("AWS_REGION", REGION)
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(autouse=True)
def _fresh_filesystems() -> Iterator[None]:
    """Clear listing caches, connections and in-memory files after each test, so that the next test starts fresh."""
    yield
    s3fs.S3FileSystem.clear_instance_cache()
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real photographs, weights and damaged files beside the project."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "real").is_dir():
        pytest.skip("no ../shared/real beside the project: its photographs and weights are not part of it")
    return folder


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an output of 14 small rendered pictures, annotated with the demo network; tests only read it."""
    folder = tmp_path_factory.mktemp("rendered")
    write_corpus(folder, 14, seed=3, size_hw=(96, 128), broken=1)
    run_annotate(folder / "images", folder / "labels", box_rule="auto", topk=3)
    return folder / "labels"


def _two_free_ports() -> int:
    """Return the first of two neighbouring free ports, below the range that outgoing connections use."""
    while True:
        first = random.randrange(20_000, 32_000)
        with socket.socket() as one, socket.socket() as two:
            try:
                one.bind(("127.0.0.1", first))
                two.bind(("127.0.0.1", first + 1))
            except OSError:
                continue
        return first


@pytest.fixture(scope="session")
def s3() -> Iterator[ObjectStore]:
    """Run moto's S3 server over HTTP."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield ObjectStore("moto", f"http://{host}:{port}")
    finally:
        server.stop()


@pytest.fixture(scope="session")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """Run Ceph's RADOS gateway: a real S3 server with authentication, multipart uploads and conditional writes."""
    missing = [name for name in CEPH_PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"Ceph's RADOS gateway is not installed ({missing[0]} is missing); .ci/run installs it on Debian")
    folder, port = tmp_path_factory.mktemp("ceph"), _two_free_ports()
    try:
        subprocess.run([CEPH_SCRIPT, "start", folder, str(port)], check=True, timeout=240)
        yield ObjectStore("ceph", f"http://127.0.0.1:{port}")
    finally:
        subprocess.run([CEPH_SCRIPT, "stop", folder], check=True, timeout=60)


@pytest.fixture(scope="session", params=["s3", "ceph"])
def object_store(request: pytest.FixtureRequest) -> ObjectStore:
    """Return each S3 server in turn."""
    store: ObjectStore = request.getfixturevalue(request.param)
    return store


@pytest.fixture(params=["local", "memory", "s3", "ceph"])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> FakeLake:
    """Return an output on each kind of storage in turn; its name has the characters that could break a query."""
    if request.param == "local":
        return FakeLake(str(tmp_path / "out [1]" / "model=x" / "date=it's"))
    if request.param == "memory":
        return FakeLake(f"memory://{uuid.uuid4().hex}/model=x/out")
    store: ObjectStore = request.getfixturevalue(request.param)
    return FakeLake(f"s3://{store.bucket()}/out=1/it's *", store.storage)


@pytest.fixture
def local(tmp_path: Path) -> FakeLake:
    """Return an output on the local disk."""
    return FakeLake(str(tmp_path / "out"))


@pytest.fixture(scope="session")
def ray_session(_environment: None) -> Iterator[None]:
    """Run one local Ray for all tests that need one."""
    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=0,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        object_store_memory=512 * 2**20,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def sources(tmp_path_factory) -> Path:
    """Return the folder of a copy of SOURCES, because building a wheel writes files beside them."""
    folder = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="session")
def wheel(sources, tmp_path_factory) -> Path:
    """Build the wheel and return its path."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    done = subprocess.run([*command, "--wheel-dir", folder, sources], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("camlake-*.whl")
    return built


@pytest.fixture(scope="session")
def filled(tmp_path_factory) -> FakeLake:
    """Return an output of many small files with superseded rows, which no test changes."""
    return fill(FakeLake(str(tmp_path_factory.mktemp("filled") / "out")))


@pytest.fixture
def output(filled, tmp_path) -> FakeLake:
    """Return a copy of the filled output."""
    shutil.copytree(filled.out, tmp_path / "out")
    return FakeLake(str(tmp_path / "out"), hours=filled.hours)
