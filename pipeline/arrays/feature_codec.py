"""The codec of the table ``feature_maps``: all feature maps of an image in 2, 3 or 4 bits a value.

A code is q = n · f / max_xy f, rounded, for each image and each channel, with n = 2^b − 1 steps. Codes of 3 bits have
the room of 4: n = 7 · (max_xy f / m)^0.8, from 1 to 15, where m is the mean of the maxima of the image's channels that
are not zero. So channels of large values get more steps, at about the same bytes. A decoded map is

    f̂_k = F_k · q_k / mean_xy(q_k),    F_k = mean_xy f_k, the image's row in ``features``.

The step of the codes cancels, so that no scale is stored, and mean_xy(f̂_k) = F_k exactly. Hence the map
M_c = Σ_k w_k f̂_k of any linear head on the features keeps the identity mean_xy(M_c) + b_c = S_c. The codec holds for
maps that are nowhere negative (behind a ReLU) and for features that are their means (global average pooling).

Shapes: N images, K feature maps of h×w cells. Codes are packed channel by channel, row by row, the first code in the
low bits of a byte: four codes a byte with 2 bits, two with 3 or 4 bits. Three bits without gaps would be 1.5 % smaller
in the file and take much longer to unpack.
"""

import math

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def codes_a_byte(bits: int) -> int:
    """Return how many codes of ``bits``, which is 2, 3 or 4, a byte holds."""
    return 4 if bits == 2 else 2


def packed_bytes(codes: int, bits: int) -> int:
    """Return the number of bytes of ``codes`` packed codes; what is left of the last byte is zero."""
    return math.ceil(codes / codes_a_byte(bits))


def encode(maps: Tensor, bits: int) -> Tensor:
    """Return the codes of ``maps`` (N, K, h, w) float32, packed, (N, ``packed_bytes``) uint8, on the same device.

    A channel with a positive value has its greatest code at its maximum; a channel of zeros has zeros only. The maps
    must not be negative. An image with a NaN or an infinity gets codes without a meaning; other images keep theirs.
    """
    most = 2 ** (8 // codes_a_byte(bits)) - 1
    peak = maps.amax((2, 3), keepdim=True)
    steps = torch.full_like(peak, 2**bits - 1)
    if 2**bits - 1 < most:
        mean = (peak.sum(1, keepdim=True) / (peak > 0).sum(1, keepdim=True).clamp_min(1)).clamp_min(_LEAST_PEAK)
        steps = (steps * (peak / mean).pow(_STEPS_EXPONENT)).round().clamp(1, most)
    codes = (maps * (steps / peak.clamp_min(_LEAST_PEAK))).add_(0.5)
    # A code is at most its channel's steps, so that nothing is to be cut off; the conversion drops the fraction.
    # On a CPU PyTorch converts to int8 ten times as fast as to uint8.
    return pack(codes.to(torch.int8).flatten(1).view(torch.uint8), bits)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Return codes (N, n) uint8, under 4 with 2 ``bits`` and else under 16, packed (N, ``packed_bytes``) uint8."""
    each = codes_a_byte(bits)
    missing = -codes.shape[1] % each
    whole = torch.nn.functional.pad(codes, (0, missing)) if missing else codes.contiguous()
    wide = whole.view(torch.int32 if each == 4 else torch.int16)
    packed = wide.clone()
    for place in range(1, each):
        packed |= wide >> (8 - 8 // each) * place
    return packed.to(torch.uint8)


def unpack(packed: NDArray[np.uint8], bits: int, codes: int) -> NDArray[np.uint8]:
    """Return the codes (N, ``codes``) uint8 of packed bytes (N, ``packed_bytes``).

    Each byte is widened to one integer, whose bytes then hold one code each; so few operations run over all codes.
    """
    if codes_a_byte(bits) == 2:
        wide = packed.astype("<u2")
        spread = (wide | (wide << 4)) & np.uint16(0x0F0F)
    else:
        spread = packed.astype("<u4")
        spread = (spread | (spread << 12)) & np.uint32(0x000F000F)
        spread = (spread | (spread << 6)) & np.uint32(0x03030303)
    found: NDArray[np.uint8] = spread.view(np.uint8)[:, :codes]
    return found


def scales(codes: NDArray[np.float32], features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (N, K) float32 by which the ``codes`` (N, K, cells) of each channel are multiplied: F_k / mean_xy(q_k).

    ``features``: (N, K), the means of the maps. A channel without a code has the scale 0.
    """
    cells = codes.shape[2]
    sums: NDArray[np.float32] = codes @ np.ones(cells, np.float32)
    found: NDArray[np.float32] = (features * (cells / np.where(sums > 0, sums, np.inf))).astype(np.float32)
    return found


def decode(
    packed: NDArray[np.uint8], bits: int, map_hw: tuple[int, int], features: NDArray[np.floating]
) -> NDArray[np.float32]:
    """Return the feature maps (N, K, h, w) float32 of packed codes (N, ``packed_bytes``) and ``features`` (N, K).

    The error of a value is at most (f + F) / (2 · mean(q)), where f is the true value and F its channel's mean.
    """
    images, channels = features.shape
    codes = unpack(packed, bits, channels * map_hw[0] * map_hw[1]).reshape(images, channels, -1).astype(np.float32)
    maps = codes * scales(codes, features.astype(np.float32, copy=False))[:, :, None]
    return maps.reshape(images, channels, *map_hw)


def head_maps(
    packed: NDArray[np.uint8],
    bits: int,
    map_hw: tuple[int, int],
    features: NDArray[np.float32],
    weights: NDArray[np.float32],
    chosen: NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:
    """Return the maps M_c = Σ_k w_k f̂_k of a linear head, (N, n, h, w) float32.

    ``weights`` is (C, K); ``chosen`` (N, n) has the classes that each image gets, None: all, in their order.

    The bias of the head is in none of them: mean_xy(M_c) + b_c = S_c. The feature maps are never written out: the
    scales of the channels go into the weights. A few images at a time are unpacked, into memory that is used again.
    """
    images, channels = features.shape
    cells = map_hw[0] * map_hw[1]
    classes = len(weights) if chosen is None else chosen.shape[1]
    maps = np.empty((images, classes, cells), np.float32)
    table = _TABLES[bits]
    unpacked = np.empty((AT_ONCE, packed.shape[1]), table.dtype)
    for start in range(0, images, AT_ONCE):
        own = slice(start, min(start + AT_ONCE, images))
        found = unpacked[: own.stop - own.start]
        cv2.LUT(packed[own], table, found)
        codes = found.view(_CODE[bits])[:, : channels * cells].astype(np.float32, copy=False)
        codes = codes.reshape(len(found), channels, cells)
        own_weights = weights if chosen is None else weights[chosen[own]]
        np.matmul(own_weights * scales(codes, features[own])[:, None, :], codes, out=maps[own])
    return maps.reshape(images, classes, *map_hw)


_STEPS_EXPONENT = 0.8
"""Between 0, where each channel has as many steps, and 1, where each step is as high.

Chosen on the first halves of ilsvrc300 and coco60, with MobileNetV2 and 3 bits: with 0.8 the boxes of heads fitted
later have a median IoU of .984 and .983 with the exact ones, for 12,430 bytes of codes an image; with 0.5 they have
.981 and .977 for 12,120 bytes, with 1 .985 and .982 for 12,580 bytes.
"""
_LEAST_PEAK = 1e-30
"""A channel without a greater value counts as zero; the quotient of its codes would not be finite."""
AT_ONCE = 4
"""Images whose codes are unpacked at once: 1 MB of float32 with MobileNetV2, which fits into a core's cache."""


def _table(bits: int) -> NDArray[np.float64] | NDArray[np.int32]:
    """Return the codes of each of the 256 bytes as the bytes of one number: two float32, or four uint8 with 2 bits.

    A look-up of bytes is four times as fast as shifts and a conversion.
    """
    each = codes_a_byte(bits)
    shifts = 8 // each * np.arange(each)
    codes = (np.arange(256)[:, None] >> shifts) & (2 ** (8 // each) - 1)
    found: NDArray[np.float64] | NDArray[np.int32]
    found = codes.astype(np.uint8).view(np.int32) if bits == 2 else codes.astype(np.float32).view(np.float64)
    return found.reshape(1, 256)


_CODE: dict[int, type[np.generic]] = {2: np.uint8, 3: np.float32, 4: np.float32}
_TABLES = {bits: _table(bits) for bits in (2, 3, 4)}
