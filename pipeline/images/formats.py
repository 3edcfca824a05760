"""Finds the format of an encoded image by its content, opens its header, and explains decoders' errors.

No pixel is decoded here.
"""

import io
import re
import struct
import warnings
from collections.abc import Callable
from typing import NamedTuple

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    CurImagePlugin,
    DdsImagePlugin,
    GifImagePlugin,
    IcoImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PcxImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    PsdImagePlugin,
    QoiImagePlugin,
    SgiImagePlugin,
    SunImagePlugin,
    TgaImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from pillow_heif import HeifImageFile

from pipeline.images.truncation import DECODER_ERRORS, ends_early
from schemas.errors import RejectedImage
from schemas.reasons import Reason

_HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1"}


class Header(NamedTuple):
    """The format and the header of an image whose pixels are not decoded yet."""

    format: str
    """Name of the format by content, such as "JPEG"."""
    image: Image.Image
    """Pillow's image without pixels; ``size`` (as stored, before the orientation), ``mode`` and ``info`` are set."""


def _icon(stream: io.BytesIO) -> Image.Image:
    """Return the largest picture of an icon file; among equally large pictures the one with most colours.

    No pixel is decoded before ``load``. IcoImageFile would decode a picture at once, however large it is.
    """
    icons = IcoImagePlugin.IcoFile(stream)
    sizes = [(entry.square, entry.color_depth) for entry in icons.entry]
    return icons.frame(sizes.index(max(sizes)))


class _Format(NamedTuple):
    name: str
    accepts: Callable[[bytes], bool | str]
    open: Callable[[io.BytesIO], Image.Image]


def _registered(name: str, opener: Callable[[io.BytesIO], Image.Image]) -> _Format:
    accepts = Image.OPEN[name][1]
    return _Format(name, accepts or (lambda prefix: True), opener)


# The formats are tried in this order. Pillow's classes are called directly, because Image.open would also apply the
# process-wide limit of pixels. Multi-picture files (MPO) are read as JPEG, because their first picture is the main one.
# EPS, which runs another program, and WMF, which describes a drawing, are left out on purpose. TGA has no signature, so
# it is tried last.
_FORMATS = (
    _registered("JPEG", JpegImagePlugin.JpegImageFile),
    _registered("PNG", PngImagePlugin.PngImageFile),
    _registered("WEBP", WebPImagePlugin.WebPImageFile),
    _registered("GIF", GifImagePlugin.GifImageFile),
    _registered("BMP", BmpImagePlugin.BmpImageFile),
    _registered("TIFF", TiffImagePlugin.TiffImageFile),
    _registered("AVIF", AvifImagePlugin.AvifImageFile),
    _Format("HEIF", lambda prefix: prefix[4:8] == b"ftyp" and prefix[8:12] in _HEIF_BRANDS, HeifImageFile),
    _registered("JPEG2000", Jpeg2KImagePlugin.Jpeg2KImageFile),
    _registered("PSD", PsdImagePlugin.PsdImageFile),
    _registered("PPM", PpmImagePlugin.PpmImageFile),
    _registered("QOI", QoiImagePlugin.QoiImageFile),
    _registered("ICO", _icon),
    _registered("CUR", CurImagePlugin.CurImageFile),
    _registered("DDS", DdsImagePlugin.DdsImageFile),
    _registered("SGI", SgiImagePlugin.SgiImageFile),
    _registered("SUN", SunImagePlugin.SunImageFile),
    _registered("PCX", PcxImagePlugin.PcxImageFile),
    _registered("TGA", TgaImagePlugin.TgaImageFile),
)

# Image formats that are recognised but not read. They are rejected as UNSUPPORTED, not as NOT_AN_IMAGE.
_UNREAD_FORMATS = (
    ("JPEG XL", re.compile(rb"\xff\x0a|\0\0\0\x0cJXL ")),
    ("PostScript", re.compile(rb"%!PS|\xc5\xd0\xd3\xc6")),
    ("SVG", re.compile(rb"\s*(<\?xml[^>]*>|<!--.*?-->|<!DOCTYPE svg[^>]*>|\s)*<svg[\s>]", re.DOTALL)),
    ("Radiance HDR", re.compile(rb"#\?(RADIANCE|RGBE)")),
    ("OpenEXR", re.compile(rb"\x76\x2f\x31\x01")),
    ("JPEG XR", re.compile(rb"II\xbc")),
    ("FITS", re.compile(rb"SIMPLE  =")),
    ("Canon CR3", re.compile(rb"....ftypcrx ", re.DOTALL)),
    ("Canon CRW", re.compile(rb"II.{4}HEAPCCDR", re.DOTALL)),
    ("Fujifilm RAF", re.compile(rb"FUJIFILMCCD-RAW")),
    ("Olympus ORF", re.compile(rb"IIR[OS]|MMOR")),
    ("Panasonic RW2", re.compile(rb"IIU\0")),
    ("Sigma X3F", re.compile(rb"FOVb")),
    ("ICNS", re.compile(rb"icns")),
    ("GIMP XCF", re.compile(rb"gimp xcf")),
    ("DjVu", re.compile(rb"AT&TFORM")),
    ("XPM", re.compile(rb"/\* XPM \*/")),
    ("WMF", re.compile(rb"\xd7\xcd\xc6\x9a")),
    ("PAM", re.compile(rb"P7\n")),
)
_SIGNATURE_BYTES = 1024


def open_header(data: bytes) -> Header:
    """Return the format and the header of an encoded image; the content decides, not a file name.

    ``data`` is one whole file, not empty. Raises RejectedImage, which rejects the row: NOT_AN_IMAGE where no format's
    signature matches; UNSUPPORTED, TRUNCATED or CORRUPT where a signature matches but the header can't be read.
    """
    # Pillow warns about odd metadata and large pictures; camlake handles both elsewhere. The filter is set again for
    # each image, because filters are process-wide and a catch_warnings block in another module removes it.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    prefix = data[:16]
    refused: RejectedImage | None = None
    for name, accepts, opener in _FORMATS:
        accepted = accepts(prefix)
        if isinstance(accepted, str):
            refused = refused or RejectedImage(Reason.UNSUPPORTED, accepted)
        elif accepted:
            try:
                return Header(name, opener(io.BytesIO(data)))
            except DECODER_ERRORS as error:
                if name != "TGA":
                    refused = refused or refusal(error, name, data)
    if refused:
        raise refused
    for name, signature in _UNREAD_FORMATS:
        if signature.match(data[:_SIGNATURE_BYTES]):
            raise RejectedImage(Reason.UNSUPPORTED, f"{name} is not read")
    raise RejectedImage(Reason.NOT_AN_IMAGE, f"no image format begins with the bytes {prefix[:8].hex(' ')}")


_TRUNCATED = re.compile(r"truncat|end of (file|data|input)|\beof\b|incomplete|not enough|buffer is not large", re.I)
_UNSUPPORTED = re.compile(r"unsupported|not supported|unimplemented|unknown|cannot handle|too (large|much)", re.I)


def refusal(error: BaseException, name: str, data: bytes) -> RejectedImage:
    """Return the rejection for a decoder's ``error`` about the file ``data`` of the format ``name``.

    A picture over Pillow's hard limit is TOO_MANY_PIXELS. A file that ends before the lengths in it say, or a read past
    the end, is TRUNCATED. A variant that the decoder does not know is UNSUPPORTED. Every other error is CORRUPT.
    """
    cause = error.__cause__ or error
    detail = f"{name}: {str(error) or type(error).__name__}"
    if isinstance(error, Image.DecompressionBombError):
        return RejectedImage(Reason.TOO_MANY_PIXELS, detail)
    if ends_early(name, data) or isinstance(cause, struct.error | EOFError | IndexError) or _TRUNCATED.search(detail):
        return RejectedImage(Reason.TRUNCATED, detail)
    if isinstance(cause, KeyError | NotImplementedError) or _UNSUPPORTED.search(detail):
        return RejectedImage(Reason.UNSUPPORTED, detail)
    return RejectedImage(Reason.CORRUPT, detail)
