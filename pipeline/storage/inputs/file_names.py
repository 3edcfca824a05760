"""Tell images, other files and files without data apart, by a file's name or its first bytes."""

import functools
import re
from urllib.parse import urlsplit

_IMAGES = """
.jpg .jpeg .jpe .jfif .jps .mpo .png .apng .webp .gif .bmp .dib .tif .tiff .avif .avifs .heic .heics .heif .hif .jp2
.j2k .j2c .jpx .jpf .jxl .jxr .ppm .pgm .pbm .pnm .pam .pfm .ico .cur .tga .psd .pcx .dds .sgi .ras .qoi .exr .hdr .svg
.dng .nef .cr2 .cr3 .arw .orf .rw2 .raf .pef .srw .img .image .input
"""
IMAGE_SUFFIXES = frozenset(_IMAGES.split())
"""Extensions of images in a tar shard; the last three are WebDataset's. The decoder looks only at the content."""

_SIDECARS = """
.txt .csv .tsv .json .jsonl .ndjson .xml .md .rst .html .htm .yaml .yml .toml .ini .cfg .conf .log .lock .pdf .doc
.docx .xls .xlsx .py .ipynb .sh .js .css .mat .npy .npz .npk .pt .pth .pkl .pickle .safetensors .onnx .h5 .hdf5
.tfrecord .arrow .feather .db .sqlite .lmdb .mdb .idx .zip .gz .tgz .bz2 .tbz2 .xz .txz .zst .7z .rar .md5 .sha1 .sha256
.sha512 .asc .sig .xmp .aae .mp3 .wav .flac .mp4 .mov .avi .mkv .webm .ds_store .crc .parquet .pq .tar
"""
SIDECAR_SUFFIXES = frozenset(_SIDECARS.split())
"""Extensions of files beside images that are counted as skipped, not listed. Files with other extensions are listed."""
PARQUET_SUFFIXES = frozenset({".parquet", ".pq"})
MANIFEST_SUFFIXES = frozenset({".csv", ".tsv", ".jsonl", ".ndjson"}) | PARQUET_SUFFIXES
_ARCHIVE_SUFFIXES = frozenset({".zip", ".tgz", ".tbz2", ".txz", ".7z", ".rar"})
_COMPRESSED_SUFFIXES = frozenset({".gz", ".bz2", ".xz", ".zst"})

_HIDDEN_FILES = frozenset({"_SUCCESS", "_metadata", "_common_metadata"})
_HIDDEN_FOLDERS = frozenset({"_temporary", "_runs", "_delta_log", "__MACOSX", "lost+found"})
_WINDOWS = frozenset({"thumbs.db", "ehthumbs.db", "$recycle.bin", "system volume information"})
_EMR_FOLDER = "_$folder$"
"""End of the empty object that Hadoop on EMR writes for a folder."""


def suffix_of(path: str) -> str:
    """Return the last extension of a path with its dot, in lower case; empty where there is none.

    For a web address it is the extension before the query.
    """
    if path[:8].lower().startswith(("http://", "https://")):
        path = urlsplit(path).path
    return _name_and_suffix(path)[1]


def kind_of(path: str) -> str:
    """Return the kind under which a skipped file counts: its extension, for a compressed tar with ``.tar``."""
    name, suffix = _name_and_suffix(path)
    return f".tar{suffix}" if name.endswith(".tar") and suffix in _COMPRESSED_SUFFIXES else suffix or "no extension"


def _name_and_suffix(path: str) -> tuple[str, str]:
    """Return what posixpath.splitext(posixpath.basename(path).lower()) returns, in a third of its time."""
    last = path.rpartition("/")[2].lower()
    name, dot, suffix = last.rpartition(".")
    return (name, dot + suffix) if name.strip(".") else (last, "")


def is_archive(path: str) -> bool:
    """Return whether a file is an archive that camlake can't read, because no image in it is readable by itself."""
    kind = kind_of(path)
    return kind in _ARCHIVE_SUFFIXES or kind.startswith(".tar.")


def is_hidden(name: str, *, is_folder: bool = False) -> bool:
    """Return whether a file or a folder of this name is known to contain no data; ``name`` has no ``/``.

    Such names begin with a dot, or are what Spark, Delta, camlake, EMR, macOS and Windows leave beside data.
    """
    known = _HIDDEN_FOLDERS if is_folder else _HIDDEN_FILES
    return name.startswith(".") or name in known or name.lower() in _WINDOWS or name.endswith(_EMR_FOLDER)


def hidden_part(path: str) -> str | None:
    """Return the beginning of a relative path up to its first hidden folder or file; None where no part is hidden.

    A hidden folder ends with ``/``.
    """
    folder, _, name = path.rpartition("/")
    return _hidden_folder(folder) or (path if is_hidden(name) else None)


@functools.lru_cache(maxsize=4096)
def _hidden_folder(path: str) -> str | None:
    """Return the beginning of a folder's path up to its first hidden folder, with ``/`` at its end; None without one.

    A store lists the files of a folder one after another, so that nearly every answer is known.
    """
    folders = path.split("/")
    for depth, folder in enumerate(folders, start=1):
        if folder not in ("", ".", "..") and is_hidden(folder, is_folder=True):
            return "/".join(folders[:depth]) + "/"
    return None


SIGNATURE_BYTES = 64
_SIGNATURES = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP|BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0"
    rb"|II[*+]\0|MM\0[*+]|II\xbc|IIRO|IIU\0"
    rb"|....ftyp(?:avi[fs]|hei[cxms]|hev[cxms]|mi[fa][1f]|msf1|crx )|\0\0\0\x0cjP  \r\n|\xff\x4f\xff\x51|\xff\x0a"
    rb"|\0\0\0\x0cJXL |8BPS\0[\x01\x02]|P[1-7fF]\s|qoif|DDS |\x76\x2f\x31\x01|#\?(?:RADIANCE|RGBE)|\x59\xa6\x6a\x95"
    rb"|\0\0[\x01\x02]\0[^\0]\0|\n[\0\x02-\x05]\x01[\x01\x02\x04\x08]"
    rb"|\x01\xda[\0\x01][\x01\x02]|FUJIFILMCCD|SIMPLE  =|gimp xcf|\s*<svg[\s>]",
    re.DOTALL,
)
"""The first bytes of files in the formats that ``pipeline.images.formats`` reads or names as unsupported."""


def looks_like_image(data: bytes) -> bool:
    """Return whether a file is an image by its first bytes ``data``: at least SIGNATURE_BYTES, or the whole file."""
    return _SIGNATURES.match(data) is not None
