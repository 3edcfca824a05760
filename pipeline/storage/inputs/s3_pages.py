"""Lists the objects of an S3 bucket, a thousand a request, many requests at once."""

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any
from xml.etree import ElementTree as ET

from fsspec import AbstractFileSystem

from pipeline.storage.inputs.key_ranges import Item, Page, is_ascending, list_ranges

PAGE_KEYS = 1000
"""The most keys that S3 gives at once."""
LIST_THREADS = 16
"""Requests at once. Each takes 16 ms of CPU, so that 16 requests keep a core busy if an answer takes up to 200 ms."""


def list_bucket(fs: AbstractFileSystem, bucket: str, prefix: str) -> Iterator[Item]:
    """Yield Key, ETag, Size and LastModified of each object whose key begins with ``prefix``, each once, in no order.

    Many ranges of keys are requested at once from a store that sorts its keys (S3 sorts by UTF-8 bytes); other stores
    are listed page by page. Raises InputError for a store whose order changes during the listing.
    """
    fs.s3.meta.events.register(_PARSE_EVENT, _parse_contents, unique_id="camlake-contents")
    request = {"Bucket": bucket, "Prefix": prefix, "MaxKeys": PAGE_KEYS}

    def list_page(after: str) -> Page:
        return _page_of(fs.call_s3("list_objects_v2", **request, StartAfter=after))

    answer = fs.call_s3("list_objects_v2", **request)
    first = _page_of(answer)
    if is_ascending(first.items):
        yield from list_ranges(first, list_page, prefix, LIST_THREADS)
        return
    yield from first.items
    while answer["IsTruncated"]:
        answer = fs.call_s3("list_objects_v2", **request, ContinuationToken=answer["NextContinuationToken"])
        yield from answer.get("Contents", [])


def _page_of(answer: dict[str, Any]) -> Page:
    return Page(answer.get("Contents", []), answer["IsTruncated"])


_PARSE_EVENT = "before-parse.s3.ListObjectsV2"


def _parse_contents(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
    """Parse the objects of an answer before botocore does, into what botocore's own parser would return.

    A page of a thousand objects then takes 16 ms of CPU instead of 62. botocore parses an answer that is no page, or
    that has a time in another format than ISO 8601.
    """
    if response_dict["status_code"] != 200:
        return
    try:
        root = ET.fromstring(response_dict["body"])
        namespace = root.tag.removesuffix("ListBucketResult")
        contents = root.findall(f"{namespace}Contents")
        items = [_item_of(element, namespace) for element in contents]
    except (ET.ParseError, ValueError):
        return
    for element in contents:
        root.remove(element)
    if items:
        customized_response_dict["Contents"] = items
        response_dict["body"] = ET.tostring(root)


def _item_of(element: ET.Element, namespace: str) -> Item:
    item: Item = {}
    for name, read in _FIELDS.items():
        if text := element.findtext(namespace + name):
            item[name] = read(text)
    return item


_FIELDS: dict[str, Callable[[str], Any]] = {
    "Key": str,
    "ETag": str,
    "Size": int,
    "LastModified": datetime.fromisoformat,
    "StorageClass": str,
}
