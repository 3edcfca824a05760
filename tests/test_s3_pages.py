"""Pages of keys of S3: what botocore makes of them, errors among them, and stores without an order."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from botocore import handlers
from botocore.hooks import HierarchicalEmitter
from fsspec.asyn import sync

from pipeline.storage.filesystems import connect
from pipeline.storage.inputs.s3_pages import list_bucket
from schemas.errors import InputError
from tests.listings import listed


def test_s3_pages_and_what_list_and_head_say_agree(object_store, monkeypatch):
    monkeypatch.setattr("pipeline.storage.inputs.s3_pages.PAGE_KEYS", 7)
    bucket = object_store.bucket()
    names = [f"p/{number:04d}.jpg" for number in range(150)] + [
        "p/é/x.jpg",
        "p/猫/x.jpg",
        "p/\U0001f600.jpg",
        "p/~.jpg",
    ]
    with ThreadPoolExecutor(8) as pool:
        put = object_store.client.put_object
        list(pool.map(lambda name: put(Bucket=bucket, Key=name, Body=name.encode()), names))
    found = {row["uri"]: row for row in listed(f"s3://{bucket}/p", object_store.storage)}
    assert sorted(found) == sorted(f"s3://{bucket}/{name}" for name in names)
    (alone,) = listed(f"s3://{bucket}/p/0105.jpg", object_store.storage)
    same = found[alone["uri"]]
    assert same["modified_at"].replace(microsecond=0) == alone["modified_at"]  # a HEAD names whole seconds
    assert {**same, "modified_at": None} == {**alone, "modified_at": None}


def test_objects_of_a_page_are_what_botocore_makes_of_them(object_store):
    bucket = object_store.bucket()
    for key in ("a b+&<>%20", "ü", "c/"):
        object_store.client.put_object(Bucket=bucket, Key=key, Body=key.encode())
    fs, _ = connect(f"s3://{bucket}", object_store.storage)
    botocores = fs.call_s3("list_objects_v2", Bucket=bucket)
    ours = list(list_bucket(fs, bucket, ""))
    assert {item["Key"] for item in ours} == {"a b+&<>%20", "ü", "c/"}
    fields = ("Key", "ETag", "Size", "LastModified", "StorageClass")
    assert ours == [{name: item[name] for name in fields if name in item} for item in botocores["Contents"]]
    assert fs.call_s3("list_objects_v2", Bucket=bucket)["Contents"] == ours  # what s3fs itself lists, too
    with pytest.raises(FileNotFoundError):
        list(list_bucket(fs, "no-such-bucket-here", ""))


class UnsortedStore:
    """As much of s3fs as a listing takes, of a store that has its own order and gives two keys a page."""

    def __init__(self, keys: list[str]) -> None:
        self.keys = keys
        self.s3 = SimpleNamespace(meta=SimpleNamespace(events=HierarchicalEmitter()))

    def call_s3(self, method: str, ContinuationToken: str = "0", **_) -> dict:  # noqa: N803 (as S3 names it)
        start = int(ContinuationToken)
        more = start + 2 < len(self.keys)
        page = {"Contents": [{"Key": key} for key in self.keys[start : start + 2]], "IsTruncated": more}
        return page | ({"NextContinuationToken": str(start + 2)} if more else {})


ERROR = b"<Error><Code>InternalError</Code></Error>"
PAGE = b'<?xml version="1.0" encoding="utf8"?><ListBucketResult/>'


@pytest.mark.parametrize(
    ("operation", "body", "status", "looks"),
    [
        ("ListObjectsV2", PAGE, 200, 0),
        ("ListObjectsV2", ERROR, 500, 1),
        ("ListObjectsV2", b"<ListBucketResult><Contents>", 500, 1),
        ("CopyObject", ERROR, 500, 1),
        ("CopyObject", b"<CopyObjectResult/>", 200, 1),
    ],
)
def test_botocore_looks_for_errors_in_all_answers_but_pages(s3, monkeypatch, operation, body, status, looks):
    """An error may have the status 200; botocore asks again where it finds one and sets the status 500."""
    bucket, looked = s3.bucket(), []
    look = handlers._looks_like_special_case_error
    monkeypatch.setattr(handlers, "_looks_like_special_case_error", lambda *a: looked.append(a) or look(*a))
    fs, _ = connect(f"s3://{bucket}", s3.storage)
    for _ in range(2):
        assert list(list_bucket(fs, bucket, "")) == []
    assert not looked
    answer = {"status_code": 200, "body": body}
    facts = {"operation_model": fs.s3.meta.service_model.operation_model(operation), "response_dict": answer}
    event = f"before-parse.s3.{operation}"
    sync(fs.loop, fs.s3.meta.events.emit, event, **facts, customized_response_dict={})
    assert (answer["status_code"], len(looked)) == (status, looks)


def test_an_answer_that_is_no_list_is_one_line():
    with pytest.raises(InputError, match=r"^s3://bucket: can't be listed: the store's answer is no list of keys$"):
        list(list_bucket(SimpleNamespace(s3=UnsortedStore([]).s3, call_s3=lambda *_, **__: {}), "bucket", ""))


def test_a_store_without_an_order_is_listed_page_by_page():
    keys = ["d", "b", "a", "c", "e"]
    assert [item["Key"] for item in list_bucket(UnsortedStore(keys), "bucket", "")] == keys
    with pytest.raises(InputError, match="does not list keys in their order"):
        list(list_bucket(UnsortedStore(sorted(keys)), "bucket", ""))  # sorted at first, but deaf to StartAfter
