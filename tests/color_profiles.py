"""ICC profiles made from their definition: three primaries, a gamma, D50 as the connection space's white."""

import struct

import numpy as np

D50 = np.array([0.9642, 1.0, 0.8249])
SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06)), (0.3127, 0.3290), 2.2
ADOBE_RGB = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)), (0.3127, 0.3290), 2.2
DISPLAY_P3 = ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06)), (0.3127, 0.3290), 2.2
PROPHOTO = ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001)), (0.3457, 0.3585), 1.8
REC2020 = ((0.708, 0.292), (0.17, 0.797), (0.131, 0.046)), (0.3127, 0.3290), 2.2
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def to_xyz(space):
    """Return the matrix (3, 3) from linear RGB to XYZ under D50."""
    primaries, (x, y), _ = space
    columns = np.array([[px / py, 1, (1 - px - py) / py] for px, py in primaries]).T
    white = np.array([x / y, 1, (1 - x - y) / y])
    matrix = columns * np.linalg.solve(columns, white)
    adapt = np.linalg.inv(BRADFORD) @ np.diag((BRADFORD @ D50) / (BRADFORD @ white)) @ BRADFORD
    return adapt @ matrix


def profile(space, color_space=b"RGB "):
    """Return a matrix-and-gamma profile (ICC v2)."""

    def xyz(values):
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(space[2] * 256)) + b"\0\0"
    text = b"a space\0"
    desc = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78 + (-(12 + len(text) + 78)) % 4)
    matrix = to_xyz(space)
    tags = {b"desc": desc, b"cprt": b"text\0\0\0\0none\0\0\0\0", b"wtpt": xyz(D50)}
    tags |= {name: xyz(column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), matrix.T, strict=True)}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    offset, table, body = 132 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        table += name + struct.pack(">II", offset + len(body), len(content))
        body += content
    head = struct.pack(">I4sI4s4s4s", offset + len(body), b"lcms", 0x02400000, b"mntr", color_space, b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + b"".join(struct.pack(">i", round(v * 65536)) for v in D50) + bytes(48)
    assert len(head) == 128
    return head + struct.pack(">I", len(tags)) + table + body


def in_srgb(pixels, space):
    """Convert pixels (…, 3) of the colour space ``space`` to sRGB by both definitions, clipped to [0, 255]."""
    linear = (pixels / 255.0) ** space[2]
    srgb = np.clip(linear @ (np.linalg.inv(to_xyz(SRGB)) @ to_xyz(space)).T, 0, 1)
    encoded = np.where(srgb <= 0.0031308, 12.92 * srgb, 1.055 * srgb ** (1 / 2.4) - 0.055)
    return encoded * 255
