"""What a file claims, compared with bounds before a decoder works on it.

Decoders work as long as a file says: through a million chunks, megabytes of fill bytes or of comments, hundreds of
scans over the whole picture. Nothing of that belongs to pictures, so it is refused, in time proportional to a bound.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

from zsad.errors import ImageError

_CHUNKS, _BYTES_A_CHUNK = 10_000, 4096  # chunks that any PNG may have, and bytes behind each further one
_SEGMENTS, _FILL, _SCANS = 10_000, 4096, 100
_NETPBM_HEADER = 65_536
_READ = 1 << 20


def check_structure(stream: BinaryIO, name: str) -> None:
    """Raise an ImageError for a PNG, JPEG or PPM that claims more than pictures have, else go back to the start."""
    stream.seek(0)
    start = stream.read(8)
    if start == b"\x89PNG\r\n\x1a\n":
        _check_chunks(stream, name)
    elif start[:2] == b"\xff\xd8":
        _check_segments(stream, name)
    elif start[:1] == b"P" and start[1:2].isalnum():
        _check_netpbm(stream, name)
    stream.seek(0)


def _refused(name: str, what: str) -> ImageError:
    return ImageError(f"{name} is no sound picture ({what}): export it again")


def _check_chunks(stream: BinaryIO, name: str) -> None:
    size = stream.seek(0, 2)
    most = _CHUNKS + size // _BYTES_A_CHUNK
    position = 8
    for _ in range(most):
        stream.seek(position)
        head = stream.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            return
        position += 12 + int(struct.unpack(">L", head[:4])[0])
    raise _refused(name, f"more than {most:,} chunks")


def _check_segments(stream: BinaryIO, name: str) -> None:
    """Walk the markers up to the first scan, then count scans; fill bytes before a marker are bounded."""
    stream.seek(2)
    for _ in range(_SEGMENTS):
        marker = stream.read(2)
        fill = 0
        while marker in (b"\xff\xff", b"\0\xff") or (len(marker) == 2 and marker[:1] != b"\xff"):
            # Pillow passes over fill bytes, and over bytes between segments, one by one.
            marker, fill = marker[1:] + stream.read(1), fill + 1
            if fill > _FILL:
                raise _refused(name, f"more than {_FILL:,} fill bytes")
        if len(marker) < 2 or marker == b"\xff\xd9":
            return
        if marker == b"\xff\xda":
            break
        if marker[1] in (0x01, *range(0xD0, 0xD9)):
            continue  # no length
        length = stream.read(2)
        if len(length) < 2:
            return
        stream.seek(max(0, int.from_bytes(length, "big") - 2), 1)
    else:
        raise _refused(name, f"more than {_SEGMENTS:,} segments")
    scans, tail = 1, b""
    while block := stream.read(_READ):
        scans += (tail + block).count(b"\xff\xda")
        tail = block[-1:]
        if scans > _SCANS:
            raise _refused(name, f"more than {_SCANS} scans")


def _check_netpbm(stream: BinaryIO, name: str) -> None:
    """Refuse a header that is longer than any sensible comment; Pillow reads it byte by byte."""
    from zsad.images.deep import header_of

    stream.seek(0)
    start = stream.read(_NETPBM_HEADER)
    if start[:2] in (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6") and header_of(start) is None:
        if len(start) < _NETPBM_HEADER:
            return  # cut off: the reader says so
        raise _refused(name, f"a header of more than {_NETPBM_HEADER:,} bytes")
