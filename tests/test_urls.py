"""URLs to filesystems and exact paths, without secrets; the stores' failures as camlake's errors."""

import pytest

from pipeline.storage.filesystems import canonical_url, connect, protocol_of
from pipeline.storage.store_failures import store_errors
from schemas.errors import InputError, StoreError, UsageError
from schemas.url_secrets import safe_url
from tests.listings import LOCAL


def test_paths_are_exact_and_local_ones_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert connect("x/../y//z#?.jpg", LOCAL)[1] == f"{tmp_path}/y/z#?.jpg"
    assert connect("file:///a/b%20c", LOCAL)[1] == "/a/b%20c"
    assert connect("s3a://b/k#a?x*::y", LOCAL)[1] == "b/k#a?x*::y"
    assert connect("memory://a/b", LOCAL)[1] == "/a/b"
    assert canonical_url("s3a://b/k") == "s3://b/k"
    assert canonical_url("memory:///a/b") == "memory://a/b"
    assert canonical_url("file:///a/../b") == "/b"
    assert protocol_of("/a/s3://b") == "file"


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("https://u:p@h/x.jpg?id=3&X-Amz-Signature=abc&sig=1", "https://h/x.jpg?id=3"),
        ("https://token@h/x?access_token=1&v=2&X-Amz-Security-Token=q", "https://h/x?v=2"),
        ("s3://key:secret@b/a?token=x", "s3://b/a?token=x"),
        ("sftp://me:pw@h/x@y:z", "sftp://h/x@y:z"),
        ("abfs://c@account/x", "abfs://c@account/x"),
        ("/a/b?token=1", "/a/b?token=1"),
        ("https://me:hush@host/a/net.pt?sig=hush#x", "https://host/a/net.pt#x"),
        ("s3://bucket/a@b/what?net#1.pt", "s3://bucket/a@b/what?net#1.pt"),
        ("/data/a?b@c.pt", "/data/a?b@c.pt"),
    ],
)
def test_safe_url_drops_secrets_and_nothing_else(url, safe):
    assert safe_url(url) == safe


def test_store_errors_says_one_line_without_secrets():
    def fail(error: Exception) -> str:
        with pytest.raises(StoreError) as caught, store_errors("reading x"):
            raise error
        return str(caught.value)

    assert fail(FileNotFoundError("/a")) == "reading x: not found"
    assert fail(OSError(28, "No space left on device")) == "reading x: No space left on device"
    told = fail(OSError("403, url='https://u:pw@h/x?X-Amz-Credential=AK&a=1&X-Amz-Signature=zz'\nmore"))
    assert told == "reading x: 403, url='https://h/x?a=1'"
    with pytest.raises(ZeroDivisionError), store_errors("reading x"):
        raise ZeroDivisionError
    with pytest.raises(InputError), store_errors("reading x", InputError):
        raise PermissionError("no")


def test_unknown_protocols_and_missing_packages_are_one_line():
    with pytest.raises(UsageError, match=r"^foo://a: can't use foo://: Protocol not known: foo$"):
        connect("foo://a", LOCAL)
    with pytest.raises(UsageError, match="gcsfs"):
        connect("gs://b/x", LOCAL)


def test_s3_checksums_are_sent_only_where_required_unless_the_environment_says_so(monkeypatch):
    config = connect("s3://b/x", LOCAL)[0].config_kwargs
    assert config["request_checksum_calculation"] == config["response_checksum_validation"] == "when_required"
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    config = connect("s3://b/x", LOCAL)[0].config_kwargs
    assert "request_checksum_calculation" not in config
    assert connect("s3://b/x", LOCAL, anonymous=True)[0].anon is True
