"""Lists the objects of an S3 bucket, a thousand a request, many requests at once."""

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any
from xml.etree import ElementTree as ET

from fsspec import AbstractFileSystem

from pipeline.storage.fsspec_private import parse_pages
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
    parse_pages(fs, _parse_contents)
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


def _parse_contents(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
    """Parse the objects of an answer before botocore does, into what botocore's own parser would return.

    A page then takes a quarter of the CPU time. botocore parses an answer that has a time in another format than ISO
    8601, and asks again where an answer is broken off or an error in spite of its status.
    """
    if response_dict["status_code"] != 200:
        return
    root = _root_of(response_dict["body"])
    if root is None:
        response_dict["status_code"] = 500
        return
    namespace = root.tag.removesuffix("ListBucketResult")
    fields = {namespace + name: (name, read) for name, read in _FIELDS.items()}
    contents = root.findall(f"{namespace}Contents")
    try:
        items = [_item_of(element, fields) for element in contents]
    except ValueError:
        return
    for element in contents:
        root.remove(element)
    if items:
        customized_response_dict["Contents"] = items
        response_dict["body"] = ET.tostring(root)


def _root_of(body: bytes) -> ET.Element | None:
    """Return the root of an answer's body; None where it is broken off, or an error."""
    try:
        root = ET.fromstring(body)
    except ET.ParseError:
        return None
    return None if root.tag == "Error" else root


def _item_of(element: ET.Element, fields: Mapping[str, tuple[str, Callable[[str], Any]]]) -> Item:
    """Return the named values of an element's children; ``fields`` has names and readers by the children's tags."""
    found = ((fields.get(child.tag), child.text) for child in element)
    return {field[0]: field[1](text) for field, text in found if field and text}


_FIELDS: dict[str, Callable[[str], Any]] = {
    "Key": str,
    "ETag": str,
    "Size": int,
    "LastModified": datetime.fromisoformat,
    "StorageClass": str,
}
