"""The private parts of fsspec and s3fs that camlake uses, and the failures it knows by name, are where they were."""

import subprocess
import sys

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore import handlers
from botocore.exceptions import NoCredentialsError
from fsspec.implementations.http import HTTPFileSystem
from fsspec.implementations.local import LocalFileSystem
from s3fs import S3FileSystem, core

from pipeline.storage.filesystems import connect
from pipeline.storage.fsspec_private import options_in, path_on
from pipeline.storage.store_failures import describe_failure, is_damage, is_denied, is_not_found, is_store_failure
from tests.listings import LOCAL


def test_paths_and_options_of_urls_come_from_fsspecs_own_ways():
    assert path_on(LocalFileSystem, "file:///a%20b") == "/a%20b"
    assert path_on(S3FileSystem, "s3://b/k?v#1") == "b/k?v#1"
    assert options_in(fsspec.get_filesystem_class("ftp"), "ftp://me@h:21/x")["host"] == "h"


@pytest.mark.parametrize("name", ["_find_bucket_key", "_call_s3", "split_path", "set_session"])
def test_s3fs_has_what_camlake_replaces_or_calls(name):
    assert callable(getattr(S3FileSystem, name))
    assert callable(core._error_wrapper)


def test_botocore_looks_for_errors_where_camlake_replaces_that_look():
    assert ("before-parse.s3.*", handlers._handle_200_error) in [entry[:2] for entry in handlers.BUILTIN_HANDLERS]


@pytest.mark.parametrize("name", ["set_session", "encode_url", "_raise_not_found_for_status"])
def test_the_http_client_has_what_camlake_calls(name):
    assert callable(getattr(HTTPFileSystem, name))


def test_s3fs_would_cut_a_key_that_names_a_version():
    """Where s3fs leaves the key whole, ``adapt_s3`` need not replace ``split_path`` any more."""
    assert S3FileSystem(anon=True).__class__.split_path(S3FileSystem(anon=True), "b/q?versionId=1.jpg")[1] == "q"


@pytest.mark.parametrize(
    "key", ["q?versionId=1.jpg", "q?versionId=", "?versionId=x/y", "a/", "a//", "/a", "a b", "%3F"]
)
def test_a_key_is_what_stands_behind_the_bucket(key):
    fs, _ = connect("s3://b/x", LOCAL, anonymous=True)
    assert fs.split_path(f"b/{key}") == ("b", key, None)


def test_a_bucket_alone_and_an_access_point():
    fs, _ = connect("s3://b/x", LOCAL, anonymous=True)
    assert fs.split_path("b") == fs.split_path("s3://b/") == ("b", "", None)
    point = "arn:aws:s3:us-west-2:123456789012:accesspoint/mine"
    assert fs.split_path(f"{point}/k/l") == (point, "k/l", None)


def test_failures_known_by_name(tmp_path):
    missing = NoCredentialsError()
    assert is_store_failure(missing)
    assert is_denied(missing)
    assert "AWS_ACCESS_KEY_ID" in describe_failure(missing)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(OSError, match="symbolic links") as caught:
        loop.open()
    assert is_not_found(caught.value)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no Parquet", b"PAR1" + b"x" * 20 + b"PAR1"])
def test_pyarrow_says_damage_by_these_errors(tmp_path, content):
    path = tmp_path / "x.parquet"
    path.write_bytes(content)
    with pytest.raises((pa.ArrowException, OSError)) as caught:
        pq.ParquetFile(path)
    assert is_damage(caught.value)
    with pytest.raises(OSError, match="No such file") as caught:
        pq.ParquetFile(tmp_path / "none.parquet")
    assert not is_damage(caught.value)


COMPILER = "import sys; print(sorted({'torch._dynamo', 'torch._inductor', 'sympy'} & {*sys.modules}))"


def said_by(code: str) -> str:
    """Return what a Python program prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_networks_of_torchvision_are_built_and_measured_without_its_compiler():
    code = "from pipeline.models import registry; print(registry.get('mobilenet_v2').outline().map_size(224))"
    assert said_by(f"{code}; {COMPILER}; import torch._dynamo.utils") == "(7, 7)\n[]\n"


def test_torchvision_itself_imports_the_compiler():
    """Where it no longer does, ``pipeline.models.networks.torchvision_private`` can go."""
    assert "torch._dynamo" in said_by(f"import torchvision; {COMPILER}")


def test_the_processes_that_read_images_on_ray_import_no_torch():
    assert said_by("import sys, pipeline.graph.read_tasks; print('torch' in sys.modules)") == "False\n"
