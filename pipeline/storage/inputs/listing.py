"""Finds out what kind of input INPUT is, and lists it as a stream of batches; memory does not grow with its size."""

import hashlib
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from threading import Lock
from typing import Literal

import pyarrow as pa
from fsspec import AbstractFileSystem

from pipeline.storage.filesystems import Stores, canonical_url, connect, is_local, protocol_of, safe_url
from pipeline.storage.inputs.containers import CONTAINER_THREADS, open_parquet, suffix_of
from pipeline.storage.inputs.entries import Container, Entry, version_at, with_versions
from pipeline.storage.inputs.folders import is_glob, iter_glob, iter_objects
from pipeline.storage.inputs.manifests import MANIFEST_SUFFIXES, has_uris, list_manifest
from pipeline.storage.inputs.parquet_images import find_image_column, has_usual_image_column, list_parquet
from pipeline.storage.inputs.versions import Version
from pipeline.storage.inputs.webdataset import list_shard
from pipeline.storage.prefetch import chain_ahead
from pipeline.storage.store_failures import is_damage, store_errors
from schemas.config import StorageConfig
from schemas.errors import InputError
from schemas.reasons import Reason
from schemas.tables import PLAN, TABLES, TIMESTAMP

Kind = Literal["folder", "manifest", "parquet images", "webdataset"]
BATCH_ROWS = 10_000
_SIDECARS = """
.txt .csv .tsv .json .jsonl .ndjson .xml .md .rst .html .htm .yaml .yml .toml .ini .cfg .conf .log .lock .pdf .doc
.docx .xls .xlsx .py .ipynb .sh .js .css .mat .npy .npz .npk .pt .pth .pkl .pickle .safetensors .onnx .h5 .hdf5
.tfrecord .arrow .feather .db .sqlite .lmdb .mdb .idx .zip .gz .tgz .bz2 .xz .zst .7z .rar .md5 .sha1 .sha256 .mp3
.wav .flac .mp4 .mov .avi .mkv .webm .ds_store .crc .parquet .tar
"""
SIDECAR_SUFFIXES = frozenset(_SIDECARS.split())
"""Files beside images that are no images by their extension: counted, not listed. Any other file is listed."""


@dataclass
class Listing:
    """The listed inputs. Read ``batches`` to its end before the counters."""

    kind: Kind
    batches: Iterator[pa.RecordBatch]
    """Of the schema PLAN, ``classes`` null, at most BATCH_ROWS rows each."""
    ordered: bool
    """Whether the order is the input's own; a folder comes in whatever order its store lists it."""
    skipped_kinds: Counter[str] = field(default_factory=Counter)
    """Files that are no images, by extension."""
    chunk_starts: "array[int]" = field(default_factory=lambda: array("q"))
    """Places of the inputs that are the first of a row group, ascending: who reads one of its rows reads all before."""

    @property
    def skipped_files(self) -> int:
        """Files that are no images by their extension."""
        return self.skipped_kinds.total()


def image_id(uri: str) -> str:
    """Return the stable id of a uri: 128 bits of BLAKE2b over its UTF-8 bytes, as 32 hex digits."""
    return hashlib.blake2b(uri.encode(), digest_size=16).hexdigest()


def list_inputs(input_url: str, storage: StorageConfig, *, out: str | None = None) -> Listing:
    """Return the listing of a folder, prefix, glob, manifest, Parquet file of images, tar shard or single image.

    What the output at ``out`` holds is no input, where it lies inside the folder. Raises InputError, at once or while
    ``batches`` is read, where nothing is there, no kind fits or the store fails; UsageError for a URL that no
    filesystem here understands.
    """
    stores = Stores(storage, anonymous=storage.anonymous)
    skipped: Counter[str] = Counter()
    with store_errors(f"can't list {safe_url(input_url)}", InputError):
        kind, entries = _open(input_url, out, stores, skipped)
    chunk_starts = array("q")
    batches = _batches(entries, chunk_starts, f"can't list {safe_url(input_url)}")
    return Listing(kind, batches, kind != "folder", skipped, chunk_starts)


def _open(url: str, out: str | None, stores: Stores, skipped: Counter[str]) -> tuple[Kind, Iterator[Entry]]:
    fs, path = connect(url, stores.storage, anonymous=stores.anonymous)
    uri = canonical_url(url).rstrip("/")
    found = _what_is(fs, path, url)
    if found == "file":
        return _open_file(fs, Container(uri, path, version_at(stores, url, path)), stores, skipped)
    if found == "folder":
        objects = _outside(out, iter_objects(fs, uri, path, skipped))
        return _open_folder(url, objects, SIDECAR_SUFFIXES, stores, skipped)
    if is_glob(path):
        return _open_folder(url, _outside(out, iter_glob(fs, uri, path)), frozenset(), stores, skipped)
    hint = "; to match the beginning of a name, end it with *" if protocol_of(url) != "file" else ""
    raise InputError(f"no input at {safe_url(url)}: neither a file nor a folder{hint}")


def _outside(out: str | None, objects: Iterator[Entry]) -> Iterator[Entry]:
    """Leave out the tables and runs of the output at ``out``."""
    if out is None:
        return objects
    root = canonical_url(out).rstrip("/") + "/"
    own = (f"{root}_", *(f"{root}{table}/model=" for table in TABLES))
    return (entry for entry in objects if not entry.uri.startswith(own))


def _what_is(fs: AbstractFileSystem, path: str, url: str) -> Literal["file", "folder"] | None:
    if url.endswith("/") and not is_local(fs):
        return "folder"
    try:
        return "folder" if fs.info(path)["type"] == "directory" else "file"
    except FileNotFoundError:
        return None


def _open_file(
    fs: AbstractFileSystem, file: Container, stores: Stores, skipped: Counter[str]
) -> tuple[Kind, Iterator[Entry]]:
    suffix = suffix_of(file.path)
    if suffix == ".tar":
        return "webdataset", _list_shards(fs, [file], skipped)
    if suffix == ".parquet":
        return _open_parquets(fs, [file], stores)
    if suffix in MANIFEST_SUFFIXES:
        return "manifest", list_manifest(fs, file, stores)
    if suffix in SIDECAR_SUFFIXES:
        raise InputError(
            f"{file.uri} is no image; allowed files: an image, a manifest ({', '.join(sorted(MANIFEST_SUFFIXES))}), "
            "a Parquet file of images, a .tar shard"
        )
    return "folder", iter([Entry(file.uri, file.path, *file.version)])


def _open_folder(
    url: str, objects: Iterator[Entry], sidecars: frozenset[str], stores: Stores, skipped: Counter[str]
) -> tuple[Kind, Iterator[Entry]]:
    """Read on to the first file that could be an image; only shards up to the end mean a folder of shards."""
    shards: dict[str, list[Entry]] = {".tar": [], ".parquet": []}
    for entry in objects:
        suffix = suffix_of(entry.path)
        if suffix in shards:
            shards[suffix].append(entry)
        elif suffix in sidecars:
            skipped[suffix] += 1
        else:
            return "folder", _without(sidecars, chain(*shards.values(), [entry], objects), skipped)
    kinds = [kind for kind, found in shards.items() if found]
    if len(kinds) != 1:
        raise InputError(_nothing_usable(safe_url(url), kinds, skipped))
    files = [Container(each.uri, each.path, Version(*each[2:5])) for each in sorted(shards[kinds[0]])]
    fs = stores.filesystem(url)
    if kinds[0] == ".parquet":
        return _open_parquets(fs, files, stores)
    return "webdataset", _list_shards(fs, files, skipped)


def _list_shards(fs: AbstractFileSystem, shards: Iterable[Container], skipped: Counter[str]) -> Iterator[Entry]:
    counting = Lock()

    def list_one(shard: Container) -> Iterator[Entry]:
        own: Counter[str] = Counter()
        yield from list_shard(fs, shard, own)
        with counting:
            skipped.update(own)

    return chain_ahead(map(list_one, shards), CONTAINER_THREADS)


def _without(sidecars: frozenset[str], objects: Iterable[Entry], skipped: Counter[str]) -> Iterator[Entry]:
    for entry in objects:
        suffix = suffix_of(entry.path)
        if suffix in sidecars:
            skipped[suffix] += 1
        else:
            yield entry


def _nothing_usable(url: str, kinds: list[str], skipped: Counter[str]) -> str:
    if kinds:
        return f"{url} holds both {' and '.join(kinds)} files; name one kind, such as {url.rstrip('/')}/**/*{kinds[0]}"
    there = ", ".join(f"{count} {suffix}" for suffix, count in skipped.most_common(5))
    return f"no images at {url}" + (
        f": only {there} files; a manifest must be named itself" if there else ": it is empty"
    )


def _open_parquets(fs: AbstractFileSystem, files: list[Container], stores: Stores) -> tuple[Kind, Iterator[Entry]]:
    """Tell images from manifests by the first file that can be read; raises InputError where none can or fits."""
    problem = "no file"
    for file in files:
        try:
            with open_parquet(fs, file.path) as parquet:
                schema = parquet.schema_arrow
        except (pa.ArrowException, OSError) as error:
            if not is_damage(error):
                raise
            problem = f"{file.uri} is no sound Parquet file: {str(error).strip().splitlines()[0][:200]}"
            continue
        if not has_usual_image_column(schema) and has_uris(schema.names):
            return "manifest", chain.from_iterable(list_manifest(fs, each, stores) for each in files)
        if find_image_column(schema) is not None:
            rows = chain_ahead((list_parquet(fs, each, stores) for each in files), CONTAINER_THREADS)
            return "parquet images", with_versions(rows, stores)
        raise InputError(f"{file.uri} has neither a column uri nor image bytes; it has {', '.join(schema.names)}")
    raise InputError(problem)


def _batches(entries: Iterator[Entry], chunk_starts: "array[int]", doing: str) -> Iterator[pa.RecordBatch]:
    """Yield the entries as rows of PLAN, and note where chunks begin."""
    start = 0
    with store_errors(doing, InputError):
        while chunk := list(islice(entries, BATCH_ROWS)):
            chunk_starts.extend(start + place for place, entry in enumerate(chunk) if entry.begins_chunk)
            start += len(chunk)
            try:
                batch = _to_batch(chunk)
            except UnicodeEncodeError:
                batch = _to_batch([_in_unicode(entry) for entry in chunk])
            yield batch


def _in_unicode(entry: Entry) -> Entry:
    """Return the entry; one whose name is not UTF-8 is rejected, with the odd bytes written out."""
    try:
        entry.uri.encode()
        entry.path.encode()
    except UnicodeEncodeError:
        uri, path = (os.fsencode(name).decode("utf-8", "backslashreplace") for name in (entry.uri, entry.path))
        return entry._replace(uri=uri, path=path, reason=Reason.BAD_NAME, detail="its name is not valid UTF-8")
    return entry


def _to_batch(entries: list[Entry]) -> pa.RecordBatch:
    uri, path, etag, size_bytes, modified_us, offset, reason, detail, _ = zip(*entries, strict=True)
    columns = {
        "image_id": pa.array(map(image_id, uri), pa.string()),
        "uri": pa.array(uri, pa.string()),
        "etag": pa.array(etag, pa.string()),
        "size_bytes": pa.array(size_bytes, pa.int64()),
        "modified_at": pa.array(modified_us, pa.int64()).cast(TIMESTAMP),
        "path": pa.array(path, pa.string()),
        "offset": pa.array(offset, pa.int64()),
        "reason_code": pa.array(reason, pa.string()),
        "detail": pa.array(detail, pa.string()),
        "classes": pa.nulls(len(entries), PLAN.field("classes").type),
    }
    return pa.record_batch(columns, schema=PLAN)
