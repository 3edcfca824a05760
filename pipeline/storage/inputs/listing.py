"""Finds out what kind of input INPUT is, and lists it as a stream of batches; memory does not grow with its size."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from threading import Lock
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage.filesystems import Stores, canonical_url, connect
from pipeline.storage.inputs.containers import CONTAINER_THREADS, open_parquet
from pipeline.storage.inputs.entries import Container, Entry, in_unicode, version_at, with_versions
from pipeline.storage.inputs.file_names import (
    MANIFEST_SUFFIXES,
    PARQUET_SUFFIXES,
    SIDECAR_SUFFIXES,
    SIGNATURE_BYTES,
    is_archive,
    looks_like_image,
    suffix_of,
)
from pipeline.storage.inputs.folder_kind import UNPACK, Folder
from pipeline.storage.inputs.folders import (
    expand_braces,
    has_braces,
    is_glob,
    iter_glob,
    iter_objects,
    no_input,
    what_is,
)
from pipeline.storage.inputs.manifests import list_manifest
from pipeline.storage.inputs.parquet_images import find_image_column, has_usual_image_column, is_text, list_parquet
from pipeline.storage.inputs.versions import Version
from pipeline.storage.inputs.webdataset import list_shard
from pipeline.storage.names import IMAGE_COLUMNS, find_columns
from pipeline.storage.prefetch import chain_ahead
from pipeline.storage.store_failures import describe_failure, is_damage, is_store_failure, store_errors
from schemas.errors import InputError
from schemas.input_options import AS_IT_IS, InputKind, InputOptions
from schemas.options.config import StorageConfig
from schemas.runs import say_kinds
from schemas.tables import PLAN, TABLES
from schemas.url_secrets import safe_url

Kind = Literal["folder", "manifest", "parquet images", "webdataset"]
BATCH_ROWS = 10_000


@dataclass
class Listing:
    """The listed inputs. Read ``batches`` to its end before the counters."""

    kind: Kind
    batches: Iterator[pa.RecordBatch]
    """Batches of the schema PLAN; ``classes`` is null."""
    ordered: bool
    """Whether the order is that of the input; a folder has the order in which its store lists it."""
    skipped_kinds: Counter[str] = field(default_factory=Counter)
    """Numbers of files that are not images by their names, by kind: an extension, or for example ``hidden file``."""
    chunk_starts: "array[int]" = field(default_factory=lambda: array("q"))
    """Indices, ascending, of the inputs that are the first of a row group; a row group is read from its beginning."""
    has_own_ids: bool = False
    """Whether image_id is the digest of the user's own ids instead of the uris."""
    scope: str | None = None
    """How the uris of all listed files begin; None for patterns and manifests, which name files of any place."""

    @property
    def skipped_files(self) -> int:
        """Return the number of files that are not images by their names."""
        return self.skipped_kinds.total()


def image_id(uri: str) -> str:
    """Return the stable id of a uri: 128 bits of BLAKE2b over its UTF-8 bytes, as 32 hex digits.

    The uri has no secrets, see ``safe_url``, so that a URL with a new signature each night keeps its id.
    """
    return hashlib.blake2b(uri.encode(), digest_size=16).hexdigest()


def list_inputs(
    input_url: str,
    storage: StorageConfig,
    *,
    out: str | None = None,
    how: InputOptions = AS_IT_IS,
    batch_rows: int | None = None,
) -> Listing:
    """Return the listing of a folder, prefix, glob, manifest, Parquet file of images, tar shard or single image.

    Files of the output at ``out`` are not listed if it is inside the folder. ``how`` has the user's choices. Raises
    InputError, at once or while ``batches`` is read, where the input is missing, has no known kind or no image, or the
    store fails; UsageError for a URL that no filesystem here understands, and for an option of ``how`` that does not
    apply to this kind of input.
    """
    opening = _Opening(input_url, Stores(storage, anonymous=storage.anonymous), how)
    with store_errors(f"can't list {opening.shown}", InputError):
        kind, entries = opening.open(out)
    how.refuse_unfit(kind, opening.shown)
    chunk_starts = array("q")
    shown = f"{opening.shown}, read as {kind}"
    batches = _batches(entries, chunk_starts, shown, opening.skipped, batch_rows or BATCH_ROWS)
    scope = None if kind == "manifest" else opening.scope
    return Listing(kind, batches, kind != "folder", opening.skipped, chunk_starts, how.id_column is not None, scope)


class _Opening:
    """One input that is being opened."""

    def __init__(self, url: str, stores: Stores, how: InputOptions) -> None:
        self.url, self.stores, self.how = url, stores, how
        self.shown = safe_url(url)
        self.skipped: Counter[str] = Counter()
        self.fs, self.path = connect(url, stores.storage, anonymous=stores.anonymous)
        self.uri = canonical_url(url).rstrip("/")
        """As in Listing; set by ``open``."""

    def open(self, out: str | None) -> tuple[Kind, Iterator[Entry]]:
        """Return the input's kind and its entries."""
        found = what_is(self.fs, self.path, self.url)
        self.scope = f"{self.uri}{'#' if found == 'file' else '/'}" if found else None
        if found == "file":
            return self._file(Container(self.uri, self.path, version_at(self.stores, self.url, self.path)))
        if found == "folder":
            files = iter_objects(self.fs, self.uri, self.path, self.skipped)
            return self._folder(self._outside(out, files), sniff=True)
        names = zip(expand_braces(self.uri), expand_braces(self.path), strict=True)
        if has_braces(self.path):
            return self._folder(self._outside(out, chain.from_iterable(self._named(*each) for each in names)))
        if is_glob(self.path):
            return self._folder(self._outside(out, iter_glob(self.fs, self.uri, self.path)))
        raise no_input(self.url)

    def _named(self, uri: str, path: str) -> Iterator[Entry]:
        """Yield the entries of one name from a pattern in braces; raises InputError where the name does not exist."""
        found = what_is(self.fs, path, path)
        if found == "file":
            yield Entry(uri, path, *version_at(self.stores, self.url, path))
        elif found == "folder":
            yield from iter_objects(self.fs, uri, path, self.skipped)
        elif is_glob(path):
            yield from iter_glob(self.fs, uri, path)
        else:
            raise InputError(f"no input at {uri}, which {self.shown} names: neither a file nor a folder")

    def _outside(self, out: str | None, objects: Iterator[Entry]) -> Iterator[Entry]:
        """Leave out the tables and runs of the output at ``out``."""
        if out is None:
            return objects
        root = canonical_url(out).rstrip("/") + "/"
        own = (f"{root}_", *(f"{root}{table}/model=" for table in TABLES))
        return (entry for entry in objects if not entry.uri.startswith(own))

    def _file(self, file: Container) -> tuple[Kind, Iterator[Entry]]:
        chosen = self.how.kind or _kind_of_name(file)
        if chosen == "shards":
            return "webdataset", self._shards([file])
        if chosen == "manifest" and suffix_of(file.path) not in PARQUET_SUFFIXES:
            return "manifest", list_manifest(self.fs, file, self.stores, self.how)
        if chosen != "images":
            return self._parquets([file])
        return "folder", iter([Entry(file.uri, file.path, *file.version)])

    def _folder(self, objects: Iterator[Entry], *, sniff: bool = False) -> tuple[Kind, Iterator[Entry]]:
        looks = self._looks_like_image if sniff else None
        pile, entries = Folder(self.shown, objects, self.skipped, looks, self.how.kind, BATCH_ROWS).open()
        if pile == "images":
            return "folder", entries
        files = [Container(each.uri, each.path, Version(*each[2:5])) for each in entries]
        if pile == "shards":
            return "webdataset", self._shards(files)
        if pile == "manifest":
            lists = (list_manifest(self.fs, each, self.stores, self.how) for each in files)
            return "manifest", chain.from_iterable(lists)
        return self._parquets(files)

    def _looks_like_image(self, entry: Entry) -> bool:
        """Return whether a file begins like an image; an unreadable file counts as an image and is rejected later."""
        if entry.size_bytes == 0:
            return False
        try:
            return looks_like_image(self.fs.cat_file(entry.path, start=0, end=SIGNATURE_BYTES))
        except Exception as error:
            if not is_store_failure(error):
                raise
            return True

    def _shards(self, shards: Iterable[Container]) -> Iterator[Entry]:
        counting = Lock()

        def list_one(shard: Container) -> Iterator[Entry]:
            own: Counter[str] = Counter()
            yield from list_shard(self.fs, shard, own)
            with counting:
                self.skipped.update(own)

        return chain_ahead(map(list_one, shards), CONTAINER_THREADS)

    def _parquets(self, files: list[Container]) -> tuple[Kind, Iterator[Entry]]:
        """Return kind and entries, by the first readable file; raises InputError where no file is readable or fits."""
        problem = "no file"
        for file in files:
            try:
                with open_parquet(self.fs, file.path) as parquet:
                    holds = self._holds(parquet)
                    schema = parquet.schema_arrow
            except (pa.ArrowException, OSError) as error:
                if not is_damage(error):
                    raise
                problem = f"{file.uri} is no sound Parquet file: {describe_failure(error)}"
                continue
            if holds == "manifest":
                lists = (list_manifest(self.fs, each, self.stores, self.how) for each in files)
                return "manifest", chain.from_iterable(lists)
            if holds == "parquet":
                lists = (list_parquet(self.fs, each, self.stores, self.how) for each in files)
                return "parquet images", with_versions(chain_ahead(lists, CONTAINER_THREADS), self.stores)
            columns = ", ".join(f"{column.name} ({column.type})" for column in schema)
            raise InputError(
                f"{file.uri} has neither a column uri nor image bytes; it has {columns}; --uri-column or"
                " --image-column chooses one"
            )
        raise InputError(problem)

    def _holds(self, parquet: pq.ParquetFile) -> InputKind | None:
        """Return the kind of a Parquet file, which holds images or names them; None where it does neither."""
        if self.how.kind in ("parquet", "manifest"):
            return self.how.kind
        if self.how.image_column or self.how.uri_column:
            return "parquet" if self.how.image_column else "manifest"
        texts = [column.name for column in parquet.schema_arrow if is_text(column.type)]
        if find_columns(texts, IMAGE_COLUMNS) and not has_usual_image_column(parquet):
            return "manifest"
        return "parquet" if find_image_column(parquet) is not None else None


def _kind_of_name(file: Container) -> InputKind:
    """Return the kind of a file by its extension; raises InputError for a file that can't be an input."""
    suffix = suffix_of(file.path)
    if suffix == ".tar":
        return "shards"
    if suffix in MANIFEST_SUFFIXES:
        return "manifest" if suffix not in PARQUET_SUFFIXES else "parquet"
    if is_archive(file.path):
        raise InputError(f"{file.uri}: {UNPACK}")
    if suffix in SIDECAR_SUFFIXES:
        raise InputError(
            f"{file.uri} is no image; allowed files: an image, a manifest ({', '.join(sorted(MANIFEST_SUFFIXES))}), "
            "a Parquet file of images, a .tar shard"
        )
    return "images"


def _batches(
    entries: Iterator[Entry], chunk_starts: "array[int]", shown: str, skipped: Counter[str], batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """Yield the entries as rows of PLAN, and note where chunks begin; raises InputError where there are none."""
    start = 0
    with store_errors(f"can't list {shown}", InputError):
        while chunk := list(islice(entries, batch_rows)):
            chunk_starts.extend(start + place for place, entry in enumerate(chunk) if entry.begins_chunk)
            start += len(chunk)
            try:
                batch = _to_batch(chunk)
            except UnicodeEncodeError:
                batch = _to_batch([in_unicode(entry) for entry in chunk])
            yield batch
    if not start:
        found = f"only {say_kinds(skipped)} files" if skipped else "no row, no member"
        raise InputError(f"no images in {shown}: {found}")


def _to_batch(entries: list[Entry]) -> pa.RecordBatch:
    uri, path, etag, size_bytes, modified_us, offset, rejected, _, own_id = zip(*entries, strict=True)
    columns = {
        "image_id": pa.array([image_id(own or name) for own, name in zip(own_id, uri, strict=True)], pa.string()),
        "uri": pa.array(uri, pa.string()),
        "etag": pa.array(etag, pa.string()),
        "size_bytes": pa.array(size_bytes, pa.int64()),
        "modified_at": pa.array(modified_us, pa.int64()).cast(PLAN.field("modified_at").type),
        "path": pa.array(path, pa.string()),
        "offset": pa.array(offset, pa.int64()),
        "reason_code": pa.array([each and each.reason for each in rejected], pa.string()),
        "detail": pa.array([each and each.detail for each in rejected], pa.string()),
        "classes": pa.nulls(len(entries), PLAN.field("classes").type),
    }
    return pa.record_batch(columns, schema=PLAN)
