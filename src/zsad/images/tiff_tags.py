"""Directories of TIFF files: their tags, and which of them are pictures of their own.

Source: TIFF 6.0 (Adobe, 1992), Supplement 1 for sub-files, and the BigTIFF design. Nothing a file says is trusted:
counts and offsets are compared with its size before anything is read, and the number of directories is bounded.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from zsad.errors import ImageError

MAX_PAGES = 10_000
"""Pictures in one file; a file with more is refused."""
_MAX_TAGS = 4096
_SIZES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}
_KINDS = {1: "u1", 3: "u2", 4: "u4", 6: "i1", 8: "i2", 9: "i4", 13: "u4", 16: "u8", 17: "i8", 18: "u8"}
_SUBFILE, _OLD_SUBFILE = 254, 255
_REDUCED, _MASK = 1, 4


@dataclass(frozen=True, slots=True)
class TiffHeader:
    """Byte order ("<" or ">") of a file, whether it is a BigTIFF, the first directory, and the size in bytes."""

    order: str
    big: bool
    first: int
    size: int


@dataclass(frozen=True, slots=True)
class Tags:
    """Tags of a directory: whole numbers as arrays, all else as bytes."""

    values: dict[int, Any]

    def number(self, tag: int, default: int = 0) -> int:
        """Return the first number of a tag."""
        value = self.values.get(tag)
        return int(value[0]) if value is not None and len(value) else default

    def numbers(self, tag: int) -> tuple[int, ...]:
        """Return all numbers of a tag, none where it is missing."""
        value = self.values.get(tag)
        return () if value is None else tuple(int(number) for number in value)


def is_tiff(content: bytes) -> bool:
    """Return True for the first bytes of a TIFF file."""
    return content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_header(stream: BinaryIO) -> TiffHeader:
    """Read the first bytes of a TIFF file."""
    size = stream.seek(0, 2)
    stream.seek(0)
    start = stream.read(16)
    order, big = ("<" if start[:2] == b"II" else ">"), b"+" in start[2:4]
    first = struct.unpack_from(order + ("Q" if big else "L"), start, 8 if big else 4)[0]
    return TiffHeader(order, big, int(first), size)


def page_offsets(stream: BinaryIO, header: TiffHeader, *, name: str) -> list[int]:
    """Return where the directories of pictures begin, in the file's order.

    Thumbnails, overviews and masks (NewSubfileType) are none, unless there is nothing else.

    Raises:
        ImageError: more directories than are read.
    """
    pages: list[int] = []
    others: list[int] = []
    for offset, kind in _directories(stream, header):
        (others if kind & (_REDUCED | _MASK) else pages).append(offset)
        if len(pages) + len(others) > MAX_PAGES:
            raise ImageError(f"{name} has more than {MAX_PAGES:,} pages: split it into several files")
    return pages or others[:1]


def first_page(stream: BinaryIO, header: TiffHeader) -> int:
    """Return where the directory of the first picture begins; directories behind it are not read."""
    first = None
    for count, (offset, kind) in enumerate(_directories(stream, header)):
        first = offset if first is None else first
        if not kind & (_REDUCED | _MASK):
            return offset
        if count > MAX_PAGES:
            break
    return header.first if first is None else first


def count_pages(path: Path) -> int:
    """Return the number of pictures in a file.

    Raises:
        ImageError: more than are read.
    """
    with path.open("rb") as stream:
        return len(page_offsets(stream, read_header(stream), name=str(path)))


def _directories(stream: BinaryIO, header: TiffHeader) -> Iterator[tuple[int, int]]:
    """Yield where each directory of the main chain begins, and its NewSubfileType; circles end."""
    seen: set[int] = set()
    offset = header.first
    entry = 20 if header.big else 12
    while 0 < offset < header.size and offset not in seen:
        seen.add(offset)
        count, body = _entries(stream, header, offset)
        kind = 0
        for index in range(count):
            tag, value_type = struct.unpack_from(header.order + "HH", body, index * entry)
            if tag in (_SUBFILE, _OLD_SUBFILE):
                code = "H" if value_type == 3 else "L"
                (kind,) = struct.unpack_from(
                    header.order + code, body, index * entry + (12 if header.big else 8)
                )
                kind = kind if tag == _SUBFILE else (_REDUCED if kind == 2 else 0)
                break
            if tag > _OLD_SUBFILE:
                break  # tags are sorted
        yield offset, kind
        following = body[count * entry :]
        width = 8 if header.big else 4
        offset = (
            struct.unpack_from(header.order + ("Q" if header.big else "L"), following)[0]
            if len(following) >= width
            else 0
        )


def _entries(stream: BinaryIO, header: TiffHeader, offset: int) -> tuple[int, bytes]:
    """Return the number of entries of a directory, and these with the offset of the next."""
    stream.seek(offset)
    count_bytes = stream.read(8 if header.big else 2)
    count = int.from_bytes(count_bytes, "little" if header.order == "<" else "big")
    if not 0 < count <= _MAX_TAGS:
        raise ImageError(f"a directory of the TIFF file claims {count} tags")
    body = stream.read(count * (20 if header.big else 12) + (8 if header.big else 4))
    if len(body) < count * (20 if header.big else 12):
        raise ImageError("a directory of the TIFF file is cut off")
    return count, body


def read_tags(stream: BinaryIO, header: TiffHeader, offset: int, wanted: frozenset[int]) -> Tags:
    """Read the tags of a directory that are wanted.

    Raises:
        ImageError: it is cut off, or claims more than the file holds.
    """
    count, body = _entries(stream, header, offset)
    entry, inline = (20, 8) if header.big else (12, 4)
    values: dict[int, Any] = {}
    for index in range(count):
        at = index * entry
        tag, kind = struct.unpack_from(header.order + "HH", body, at)
        (length,) = struct.unpack_from(header.order + ("Q" if header.big else "L"), body, at + 4)
        if kind not in _SIZES or tag not in wanted:
            continue
        size = length * _SIZES[kind]
        where = at + entry - inline
        raw = body[where : where + inline][:size]
        if size > inline:
            (start,) = struct.unpack_from(header.order + ("Q" if header.big else "L"), body, where)
            if start + size > header.size:
                continue  # a tag that points outside says nothing; one that is needed is missed later
            stream.seek(start)
            raw = stream.read(size)
        values[tag] = np.frombuffer(raw, header.order + _KINDS[kind]) if kind in _KINDS else raw
    return Tags(values)
