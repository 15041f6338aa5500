"""Strips and tiles of TIFF files: bytes unpacked, bits made numbers, and files of one strip for Pillow to decode."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from zsad.errors import ImageError
from zsad.images.pixels import MAX_PIXELS, pillow_limit_lifted

_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _STRIP, _CHANNELS, _ROWS, _STRIP_SIZE = (
    256,
    257,
    258,
    262,
    273,
    277,
    278,
    279,
)
_JPEG_TABLES = 347
_CHUNK = 1 << 20
_XZ_MEMORY = 1 << 27  # bytes of the dictionary that a stream may ask for


def single_strip(
    content: bytes, size: tuple[int, int], bits: tuple[int, ...], tags: Mapping[int, tuple[int, ...]]
) -> bytes:
    """Return a TIFF file of one strip.

    Args:
        content: the strip, as it is compressed.
        size: (W,H).
        bits: of each channel.
        tags: further tags; without a photometric interpretation it is grey.
    """
    entries: dict[int, tuple[int, ...]] = {_PHOTOMETRIC: (1,), **tags}
    entries |= {_WIDTH: size[:1], _HEIGHT: size[1:], _ROWS: size[1:], _BITS: bits, _CHANNELS: (len(bits),)}
    entries |= {_STRIP: (0,), _STRIP_SIZE: (len(content),)}
    start = 8 + 2 + 12 * len(entries) + 4
    sizes = {tag: (1 if tag == _JPEG_TABLES else 4) * len(values) for tag, values in entries.items()}
    entries[_STRIP] = (start + sum(size for size in sizes.values() if size > 4),)
    behind, directory = b"", struct.pack("<2sHLH", b"II", 42, 8, len(entries))
    for tag, values in sorted(entries.items()):
        code, kind = ("B", 7) if tag == _JPEG_TABLES else ("L", 4)
        data = struct.pack(f"<{len(values)}{code}", *values)
        field = data.ljust(4, b"\0") if len(data) <= 4 else struct.pack("<L", start + len(behind))
        behind += data if len(data) > 4 else b""
        directory += struct.pack("<HHL", tag, kind, len(values)) + field
    return directory + b"\0" * 4 + behind + content


def decoded(content: bytes, pixels: int) -> Image.Image:
    with pillow_limit_lifted(MAX_PIXELS + pixels):
        image: Image.Image = Image.open(io.BytesIO(content), formats=("TIFF",))
    with image:
        image.load()
        return image.copy() if image.mode != "1" else image.convert("L")


def inflated(packed: npt.NDArray[np.uint8], size: int, name: str, *, lzma: bool) -> npt.NDArray[np.uint8]:
    """Return the first `size` bytes of a stream of zlib or xz, without a second copy of them."""
    result = np.empty(size, np.uint8)
    done, data = 0, packed.tobytes()
    decoder: Any = zlib.decompressobj()
    if lzma:
        from lzma import LZMADecompressor

        decoder = LZMADecompressor(memlimit=_XZ_MEMORY)
    while done < size and not decoder.eof:
        part = decoder.decompress(data, min(_CHUNK, size - done))
        data = b"" if lzma else decoder.unconsumed_tail
        if not part:
            break
        result[done : done + len(part)] = np.frombuffer(part, np.uint8)
        done += len(part)
    if done < size:
        raise ImageError(
            f"{name} is damaged or truncated (a piece is too short): copy or export the file again"
        )
    return result


def unpacked_bits(rows: npt.NDArray[np.uint8], count: int, bits: int) -> npt.NDArray[Any]:
    """Return numbers (H, count) of `bits` bits each, the highest first, rows beginning at whole bytes."""
    single = np.unpackbits(rows, axis=1, count=count * bits).reshape(len(rows), count, bits)
    values = np.zeros((len(rows), count), np.uint8 if bits < 8 else np.uint16 if bits <= 16 else np.uint32)
    for bit in range(bits):
        values <<= 1
        values |= single[..., bit]
    return values


def unpacked_ycbcr(
    raw: npt.NDArray[np.uint8], width: int, height: int, step: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    """Return Y, Cb, Cr (H,W,3) of units of several Y and one Cb and Cr (TIFF 6.0, section 21)."""
    across, down = step
    wide, high = -(-width // across), -(-height // down)
    units = raw.reshape(high, wide, across * down + 2)
    y = units[..., :-2].reshape(high, wide, down, across).transpose(0, 2, 1, 3)
    colours = units[..., -2:].repeat(down, axis=0).repeat(across, axis=1)
    return np.dstack([y.reshape(high * down, wide * across), colours])[:height, :width]
