"""Addresses of pictures inside files: `scan.tif#2` is the second page, `clip.mp4#250` the 250th frame."""

from __future__ import annotations

import os
import re
from pathlib import Path

from zsad.errors import ImageError

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv"})
"""File suffixes (lower case) that count as videos."""
DICOM_SUFFIXES = frozenset({".dcm", ".dicom"})
"""File suffixes (lower case) that count as DICOM."""
IMAGE_SUFFIXES = (
    frozenset(
        {
            ".jpg",
            ".jpeg",
            ".png",
            ".bmp",
            ".tif",
            ".tiff",
            ".webp",
            ".gif",
            ".ppm",
            ".pgm",
            ".pbm",
            ".jp2",
            ".avif",
        }
    )
    | DICOM_SUFFIXES
)
"""File suffixes (lower case) that count as images when a folder is searched."""
_STREAMS = ("rtsp://", "rtsps://", "rtmp://", "udp://", "tcp://", "srt://", "http://", "https://")
_NUMBERED = re.compile(r"(?P<file>.+)#(?P<number>[1-9][0-9]{0,8})", re.DOTALL)


def split_address(path: str | Path) -> tuple[Path, int | None]:
    """Return the file and the number, from 1, of the picture in it; None where the path names the file alone.

    A file that exists under the whole name is that file.

    Example:
        >>> split_address("no such scan.tif#2")
        (PosixPath('no such scan.tif#2'), None)
    """
    text = str(path)
    match = _NUMBERED.fullmatch(text)
    if match is None or os.path.lexists(text) or not os.path.lexists(match["file"]):
        return Path(path), None
    return Path(match["file"]), int(match["number"])


def numbered(file: str | Path, number: int) -> str:
    """Return the address of a picture in a file.

    Example:
        >>> numbered("scan.tif", 2)
        'scan.tif#2'
    """
    return f"{file}#{number}"


def is_stream(source: str | Path) -> bool:
    """Return True for a camera: an address such as rtsp://..., or a device such as /dev/video0.

    Example:
        >>> is_stream("rtsp://camera/1"), is_stream("/dev/video0"), is_stream("parts/1.png")
        (True, True, False)
    """
    text = str(source)
    return text.lower().startswith(_STREAMS) or re.fullmatch(r"/dev/video[0-9]+", text) is not None


def is_video(source: str | Path) -> bool:
    """Return True for a video file or a camera.

    Example:
        >>> is_video("clip.MP4"), is_video("clip.png")
        (True, False)
    """
    return is_stream(source) or Path(source).suffix.lower() in VIDEO_SUFFIXES


def check_file(path: Path) -> None:
    """Raise an ImageError where there is no file with content."""
    if path.is_dir():
        raise ImageError(f"{path} is a folder, expected an image file")
    if not os.path.exists(path):  # noqa: PTH110 (Path.exists raises on links in a circle)
        if path.is_symlink():
            raise ImageError(f"{path} is a link that leads nowhere: remove it or restore its target")
        raise ImageError(f"{path} does not exist: check the path")
    if not path.is_file():
        raise ImageError(f"{path} is not a regular file, expected an image file")
    if path.stat().st_size == 0:
        raise ImageError(f"{path} is empty (0 bytes): copy or export the file again")
