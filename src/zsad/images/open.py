"""Opening of image files with nothing trusted: formats on a list, sizes checked before pixels, errors of one line.

An address names a picture inside a file: `scan.tif#2` is the second page, `clip.mp4#250` the 250th frame.
"""

from __future__ import annotations

import io
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from pathlib import Path

from PIL import Image

from zsad.errors import ConfigError, ImageError
from zsad.images.pixels import MAX_PIXELS, Reading, check_pixels, decoding

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv"})
"""File suffixes (lower case) that count as videos."""
DICOM_SUFFIXES = frozenset({".dcm", ".dicom"})
"""File suffixes (lower case) that count as DICOM."""
_PICTURES = """
.jpg .jpeg .jpe .jfif .mpo .png .apng .bmp .dib .tif .tiff .webp .gif .ppm .pgm .pbm .pnm .pfm
.jp2 .j2k .jpc .jpf .jpx .j2c .avif .avifs
"""
IMAGE_SUFFIXES = DICOM_SUFFIXES | frozenset(_PICTURES.split())
"""File suffixes (lower case) that count as images when a folder is searched."""
HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
"""File suffixes (lower case) of the photos that need the package pillow-heif."""
MASK_ENDINGS = ("_mask", "_label", "_gt", "_segmentation", "-mask")
"""What masks have behind the stem of their image's name, in lower case."""
LABELME_FOLDER = ("img", "label", "label_viz")
"""Stems of the image, its mask, and a drawing of both, in the folders that labelme makes of annotations."""
_STREAMS = ("rtsp://", "rtsps://", "rtmp://", "udp://", "tcp://", "srt://", "http://", "https://")
_NUMBERED = re.compile(r"(?P<file>.+)#(?P<number>[1-9][0-9]{0,8})", re.DOTALL)
# An allow-list: decoders of documents (EPS starts Ghostscript) have no business with data sets.
_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000", "AVIF", "HEIF")
_PAGED = frozenset({".tif", ".tiff"}) | DICOM_SUFFIXES
_HEAT_MAP = re.compile(r"(-[0-9a-f]{10}|\.overlay)\.jpg|\.map\.png")
_SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"\0\0\0\x0cjP  ": "JPEG2000",
    b"\xff\x4f\xff\x51": "JPEG2000",
}
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"})
WRITTEN_BY = "heat map by zsad"
"""The comment in heat maps, by which a folder that is scored again tells them from pictures."""
_limit = threading.Lock()


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


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    Image.init()  # builds of Pillow differ in the decoders they have
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def content_format(path: Path) -> str | None:
    """Return the format that the first bytes of a file say, None for one that is not known or cannot be read."""
    try:
        with path.open("rb") as stream:
            head = stream.read(132)
    except OSError:
        return None
    return _format_of(head)


def _format_of(head: bytes) -> str | None:
    if head[128:132] == b"DICM":
        return "DICOM"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        return "AVIF" if head[8:12] in (b"avif", b"avis") else "HEIF" if head[8:12] in _HEIF_BRANDS else None
    return next((name for start, name in _SIGNATURES.items() if head.startswith(start)), None)


def is_heat_map(path: Path) -> bool:
    """True for a picture that zsad drew: its name has that form, and its comment says so."""
    if _HEAT_MAP.search(path.name.lower()) is None:
        return False
    try:
        with Image.open(path, formats=("JPEG", "PNG")) as image:
            comment = image.info.get("comment", b"")
            return WRITTEN_BY in (comment.decode("latin-1") if isinstance(comment, bytes) else str(comment))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False


def _register_heif(head: bytes, name: str) -> None:
    """Give Pillow the decoder of HEIC where a file asks for it.

    Raises:
        ImageError: the package pillow-heif is not installed.
    """
    if _format_of(head) != "HEIF" or "HEIF" in Image.OPEN:
        return
    try:
        register = import_module("pillow_heif").register_heif_opener
    except ImportError as error:
        raise ImageError(f"{name} is HEIC, which needs pillow-heif: pip install pillow-heif") from error
    register()
    _formats.cache_clear()


@contextmanager
def opened(path: Path, reading: Reading) -> Iterator[Image.Image]:
    """Open a file, or the picture in it that an address names, with its size checked, pixels mostly not yet decoded."""
    with decoding(str(path)):
        file, number = split_address(path)
        check_file(file)
        if file.suffix.lower() in DICOM_SUFFIXES or _is_dicom(file):
            from zsad.images.dicom import read_dicom

            yield read_dicom(file, number or 1, reading)
            return
        if number is not None and is_video(file):
            from zsad.images.video import read_frame

            yield read_frame(file, number)
            return
        if file.suffix.lower() in HEIF_SUFFIXES:
            with file.open("rb") as stream:
                _register_heif(stream.read(32), str(path))
        with _open(file, reading.max_pixels) as image:
            check_pixels(image.size, str(path), reading.max_pixels)
            if number is not None:
                _turn_to(image, number, file)
                check_pixels(image.size, str(path), reading.max_pixels)
            yield image


@contextmanager
def opened_content(content: bytes, name: str, reading: Reading) -> Iterator[Image.Image]:
    """Open the content of a file with its size checked, pixels not yet decoded."""
    with decoding(name):
        if not content:
            raise ImageError(f"{name} is empty (0 bytes): copy or export the file again")
        _register_heif(content[:32], name)
        with Image.open(io.BytesIO(content), formats=_formats()) as image:
            check_pixels(image.size, name, reading.max_pixels)
            yield image


def page_count(path: Path) -> int:
    """Return the number of pictures in a TIFF or DICOM file; 1 for others, and for those that cannot be read."""
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES - _PAGED:
        return 1
    try:
        with decoding(str(path)):
            if suffix in DICOM_SUFFIXES or content_format(path) == "DICOM":
                from zsad.images.dicom import frame_count

                return frame_count(path)
            with _open(path, MAX_PIXELS) as image:
                return max(1, int(getattr(image, "n_frames", 1)))
    except (ImageError, ConfigError):
        return 1  # its reader says what is wrong


def _open(file: Path, max_pixels: int) -> Image.Image:
    if max_pixels <= MAX_PIXELS:
        return Image.open(file, formats=_formats())
    # Pillow's limit is one for the process: it is lifted while a header is read, then ours is applied.
    with _limit:
        pillow_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=_formats())
        finally:
            Image.MAX_IMAGE_PIXELS = pillow_limit


def _turn_to(image: Image.Image, number: int, file: Path) -> None:
    count = int(getattr(image, "n_frames", 1))
    if number > count:
        raise ImageError(f"{file} has {count} page{'s' * (count > 1)}, there is no page {number}")
    image.seek(number - 1)


def _is_dicom(file: Path) -> bool:
    # Suffixes of pictures spare one opening; a UID such as 1.2.840.5 has what looks like another suffix.
    return file.suffix.lower() not in IMAGE_SUFFIXES and content_format(file) == "DICOM"
