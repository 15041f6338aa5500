"""Formats of which Pillow keeps eight bits of colours that have sixteen: PPM and PNG, read with all of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from zsad.errors import ImageError
from zsad.images.pixels import Samples, depth_top

_BLANK = rb"(?:[ \t\r\n\v\f]|#[^\r\n]*[\r\n])+"
_HEADER = re.compile(rb"P([1-6])" + _BLANK + rb"(\d{1,10})" + _BLANK + rb"(\d{1,10})")
_HIGHEST = re.compile(_BLANK + rb"(\d{1,5})[ \t\r\n\v\f]")
# By Pillow's raw mode of 16 bits: how many channels, and the raw modes that give the high and the low bytes.
_DEEP_PNG = {"RGB;16B": (3, "RGB;16B", "RGB;16L"), "RGBA;16B": (4, "RGBA;16B", "RGBA;16L")}


@dataclass(frozen=True, slots=True)
class PpmHeader:
    """PpmHeader of a PBM, PGM or PPM file: kind 1 to 6, (W,H), highest value, and the length in bytes."""

    kind: int
    size: tuple[int, int]
    highest: int
    length: int


def header_of(start: bytes) -> PpmHeader | None:
    """Return the header at the start of a file, None where it is not complete."""
    match = _HEADER.match(start)
    if match is None:
        return None
    kind, size = int(match[1]), (int(match[2]), int(match[3]))
    if kind in (1, 4):
        return PpmHeader(kind, size, 1, match.end() + 1)
    highest = _HIGHEST.match(start, match.end())
    return None if highest is None else PpmHeader(kind, size, int(highest[1]), highest.end())


class DeepPpm:
    """Stored pixels of a binary PPM file of more than 8 bits, read row by row.

    Attributes:
        size: (W,H).
    """

    def __init__(self, stream: BinaryIO, header: PpmHeader, name: str) -> None:
        self._stream, self._header, self._name = stream, header, name
        self.size = header.size

    def crop(self, box: tuple[int, int, int, int]) -> Samples:
        """Return a part (left, top, right, bottom)."""
        left, top, right, bottom = box
        stride = self.size[0] * 6
        self._stream.seek(self._header.length + top * stride)
        content = self._stream.read((bottom - top) * stride)
        if len(content) < (bottom - top) * stride:
            raise ImageError(f"{self._name} is damaged or truncated: copy or export the file again")
        values = np.frombuffer(content, ">u2").reshape(bottom - top, self.size[0], 3)[:, left:right]
        return Samples(_scaled(values.astype(np.uint16), self._header.highest), "rgb")


def read_plain_ppm(content: bytes, header: PpmHeader, name: str) -> Samples:
    """Return the values of a PPM file in decimal digits."""
    count = header.size[0] * header.size[1] * 3
    values = np.fromstring(content[header.length :].decode("ascii", "replace"), np.float64, count, " ")  # type: ignore[call-overload]
    if values.size < count or values.min() < 0 or values.max() > header.highest:
        raise ImageError(f"{name} is damaged or truncated: copy or export the file again")
    shape = (header.size[1], header.size[0], 3)
    return Samples(_scaled(values.astype(np.uint16).reshape(shape), header.highest), "rgb")


def _scaled(values: npt.NDArray[np.uint16], highest: int) -> npt.NDArray[np.uint16]:
    """Return values of which `highest` is white with the next depth's white."""
    top = depth_top(highest)
    return values if top == highest else np.rint(values * (top / highest)).astype(np.uint16)


def read_deep_png(open_again: Callable[[], Image.Image]) -> Samples:
    """Return the values of a PNG of 16-bit colour, or of grey and alpha.

    Pillow's decoder keeps the high byte of each value. It is run twice, the second time as if the values were stored
    the other way round, which gives the low ones. Grey and alpha have four bytes, as RGBA of 8 bits.
    """
    with open_again() as image:
        raw, clear = _raw_mode(image), image.info.get("transparency")
    if raw == "LA;16B":
        pairs = _load(open_again, "RGBA").astype(np.uint16)
        return Samples((pairs[..., ::2] << 8) | pairs[..., 1::2], "grey", "straight")
    channels, high, low = _DEEP_PNG[raw]
    values = _load(open_again, high)[..., :channels].astype(np.uint16)
    values <<= 8
    values |= _load(open_again, low)[..., :channels]
    if isinstance(clear, tuple):
        opaque = (values != np.asarray(clear, np.uint16)).any(axis=2)
        return Samples(np.dstack([values, opaque.astype(np.uint16) * 65535]), "rgb", "straight")
    return Samples(values, "rgb", "straight" if channels == 4 else "none")


def _raw_mode(image: Image.Image) -> str:
    tiles: list[Any] = getattr(image, "tile", [])
    arguments = tiles[0][3] if tiles else ""
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _load(open_again: Callable[[], Image.Image], raw: str) -> npt.NDArray[np.uint8]:
    with open_again() as image:
        tile: Any = image.tile[0]
        changed = tile._replace(args=raw) if hasattr(tile, "_replace") else (*tile[:3], raw)
        image.tile = [changed]
        image.load()
        return np.asarray(image)
