"""PNG as quickly as zlib can make it: every row holds the differences to the row above, and only runs are sought in them.

For camera images this is as small as Pillow's quickest level and takes a quarter of its time;
any PNG reader opens it.  Written from the PNG specification (W3C, third edition), sections 5 and 9.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
import numpy.typing as npt

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_UP = 2  # filter type: minus the byte above
_TRUE_COLOUR = 2
_LEVEL, _WINDOW_BITS, _MEMORY = 1, 15, 8


def encode_png(image: npt.NDArray[np.uint8]) -> bytes:
    """An image uint8 [H, W, 3] RGB as a PNG file."""
    height, width, _ = image.shape
    pixels = np.ascontiguousarray(image).reshape(height, 3 * width)
    rows = np.empty((height, 1 + 3 * width), np.uint8)
    rows[:, 0] = _UP
    rows[0, 1:] = pixels[0]
    np.subtract(pixels[1:], pixels[:-1], out=rows[1:, 1:])  # modulo 256, as the filter wants it
    squeeze = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW_BITS, _MEMORY, zlib.Z_RLE)
    data = squeeze.compress(rows.tobytes()) + squeeze.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, _TRUE_COLOUR, 0, 0, 0)
    return _SIGNATURE + _chunk(b"IHDR", head) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
