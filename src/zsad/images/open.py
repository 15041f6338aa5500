"""Opening of image files with nothing trusted: formats on a list, sizes checked before pixels, errors of one line.

An address names a picture inside a file: `scan.tif#2` is the second page, `clip.mp4#250` the 250th frame.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from zsad.errors import ConfigError, ImageError
from zsad.images.picture import ImagePixels, Picture, SamplePixels, Stored
from zsad.images.pixels import (
    PLAIN,
    Reading,
    check_memory,
    check_pixels,
    decoding,
    orientation,
    pillow_limit_lifted,
    samples_of_array,
)

Source = str | Path | bytes | Image.Image | npt.NDArray[Any]

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv"})
"""File suffixes (lower case) that count as videos."""
DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".dic", ".ima"})
"""File suffixes (lower case) that count as DICOM."""
_PICTURES = """
.jpg .jpeg .jpe .jfif .mpo .png .apng .bmp .dib .tif .tiff .btf .webp .gif .ppm .pgm .pbm .pnm .pfm
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
_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "GIF", "PPM", "JPEG2000", "AVIF", "HEIF")
_PAGED = frozenset({".tif", ".tiff", ".btf"}) | DICOM_SUFFIXES
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
_START = 65_536
_QUARTER = 64  # of 256: below it the two highest bits are not used
# Bytes a pixel that decoders take beyond the image they give, measured on pictures of 40 megapixels.
_DECODER_BYTES = {"WEBP": 13.0, "AVIF": 6.0, "JPEG2000": 16.0, "HEIF": 6.0}


def split_mask_stem(stem: str) -> tuple[str, str]:
    """Return the stem of the image that a mask of this stem belongs to, and the mask's ending; "" without one.

    Example:
        >>> split_mask_stem("000_mask"), split_mask_stem("000")
        (('000', '_mask'), ('000', ''))
    """
    ending = next((ending for ending in MASK_ENDINGS if stem.endswith(ending)), "")
    return stem.removesuffix(ending), ending


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
def open_picture(
    source: Source, reading: Reading = PLAIN, *, name: str = "image given as bytes"
) -> Iterator[Picture]:
    """Open a picture of any kind with its size checked, pixels mostly not yet decoded.

    Args:
        source: a path or an address of a picture in a file, the content of an image file, a Pillow image, or an array.
        reading: how it is read, and its largest number of pixels.
        name: of content, for messages.

    Raises:
        ImageError: as `zsad.images.decode.load_image`.
        ConfigError: a DICOM file, a video or HEIC, and the package that reads it is not installed.
    """
    if isinstance(source, str | Path):
        name = str(source)
    elif isinstance(source, np.ndarray):
        name = f"array of shape {source.shape} and dtype {source.dtype}"
    elif isinstance(source, Image.Image):
        name = "image given as an object"
    elif not isinstance(source, bytes):
        raise ImageError(
            f"cannot use {type(source).__name__} as an image: give a path, bytes, a PIL image or a NumPy array"
        )
    with ExitStack() as stack:
        with decoding(name):
            stored, turn = _stored(source, name, reading, stack)
            check_pixels(stored.size, name, reading.max_pixels)
        yield Picture(stored, name, reading, turn=turn)


def _stored(source: Source, name: str, reading: Reading, stack: ExitStack) -> tuple[Stored, int]:
    """Return stored pixels and their orientation."""
    if isinstance(source, np.ndarray):
        return SamplePixels(samples_of_array(source, name)), 1
    if isinstance(source, Image.Image):
        return ImagePixels(source, shared=True), orientation(source)
    number, is_named_dicom = None, False
    if isinstance(source, bytes):
        if not source:
            raise ImageError(f"{name} is empty (0 bytes): copy or export the file again")
        stream: BinaryIO = io.BytesIO(source)
    else:
        file, number = split_address(source)
        check_file(file)
        if number is not None and is_video(file):
            from zsad.images.video import read_frame

            return ImagePixels(read_frame(file, number)), 1
        stream = stack.enter_context(file.open("rb"))
        is_named_dicom = file.suffix.lower() in DICOM_SUFFIXES
    start = stream.read(_START)
    kind = _format_of(start)
    if is_named_dicom or kind == "DICOM":
        from zsad.images.dicom import read_dicom

        stream.seek(0)
        return ImagePixels(read_dicom(stream, number or 1, reading, name=name)), 1
    if kind == "TIFF":
        return _tiff(stream, name, number, reading)
    if number is not None and number > 1:
        raise ImageError(f"{file} has 1 page, there is no page {number}")
    return _image(stream, start, name, reading, stack)


def _tiff(stream: BinaryIO, name: str, number: int | None, reading: Reading) -> tuple[Stored, int]:
    from zsad.images.tiff import TiffPixels
    from zsad.images.tiff_tags import first_page, page_offsets, read_header

    header = read_header(stream)
    if number is None:
        offset = first_page(stream, header)
    else:
        offsets = page_offsets(stream, header, name=name)
        if number > len(offsets):
            many = f"{len(offsets)} page{'s' * (len(offsets) > 1)}"
            raise ImageError(f"{name.rpartition('#')[0]} has {many}, there is no page {number}")
        offset = offsets[number - 1]
    pixels = TiffPixels(stream, offset, name, header=header)
    check_pixels(pixels.size, name, reading.max_pixels)
    check_memory(pixels.piece_bytes, name, reading.max_pixels)
    return pixels, pixels.turn


def _image(
    stream: BinaryIO, start: bytes, name: str, reading: Reading, stack: ExitStack
) -> tuple[Stored, int]:
    """Open what Pillow reads."""
    from zsad.images.structure import check_structure

    check_structure(stream, name)
    _register_heif(start, name)
    if start[:2] in (b"P3", b"P6"):
        from zsad.images.deep import DeepPpm, header_of, read_plain_ppm

        header = header_of(start)
        if header is not None and header.highest > 255:
            check_pixels(header.size, name, reading.max_pixels)
            if start[:2] == b"P6":
                return DeepPpm(stream, header, name), 1
            check_memory(40 * header.size[0] * header.size[1], name, reading.max_pixels)
            stream.seek(0)
            return SamplePixels(read_plain_ppm(stream.read(), header, name)), 1

    def opened() -> Image.Image:
        stream.seek(0)
        with pillow_limit_lifted(reading.max_pixels):
            return Image.open(stream, formats=_formats())

    image = stack.enter_context(opened())
    check_pixels(image.size, name, reading.max_pixels)
    pixels = image.width * image.height
    if image.format == "PNG" and start[24] == 16 and start[25] != 0:  # of 16 bits, and not grey alone
        from zsad.images.deep import read_deep_png

        check_memory(12 * pixels, name, reading.max_pixels)
        return SamplePixels(read_deep_png(opened)), orientation(image)
    extra = _DECODER_BYTES.get(image.format or "", 0.0) + _coefficients(image)
    check_memory(int((extra + _image_bytes(image.mode)) * pixels), name, reading.max_pixels)
    if image.format == "JPEG2000" and image.mode in ("LA", "RGB", "RGBA") and _bits_of_jpeg2000(start) > 8:
        _check_high_bits(image, name)
    return ImagePixels(image), orientation(image)


def _bits_of_jpeg2000(start: bytes) -> int:
    """Return the bits of the first channel, from the marker SIZ of the code stream (ISO/IEC 15444-1, A.5.1)."""
    marker = start.find(b"\xff\x4f\xff\x51")
    return 8 if marker < 0 or len(start) < marker + 43 else (start[marker + 42] & 0x7F) + 1


def _check_high_bits(image: Image.Image, name: str) -> None:
    """Refuse colours that use only low bits: Pillow keeps the eight highest, so little of them would be left."""
    image.load()
    extrema: list[Any] = [band.getextrema() for band in image.split()[: 1 if image.mode == "LA" else 3]]
    if max(high for _, high in extrema) < _QUARTER:
        raise ImageError(
            f"{name} holds colours of more than 8 bits, of which the highest are not used, and JPEG 2000 is "
            "read with 8: save it as PNG or TIFF"
        )


def _image_bytes(mode: str) -> int:
    """Return the bytes that Pillow keeps for a pixel."""
    return 1 if mode in ("1", "L", "P") else 2 if mode.startswith("I;16") else 4


def _coefficients(image: Image.Image) -> float:
    """Return the bytes a pixel that a JPEG decoder keeps of all scans, where they refine each other."""
    layers: list[Any] = getattr(image, "layer", [])
    if not image.info.get("progressive") or not layers:
        return 0.0
    shares: list[int] = [layer[1] * layer[2] for layer in layers]
    return 2.0 * sum(shares) / max(shares)


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
            if content_format(path) == "TIFF":
                from zsad.images.tiff_tags import count_pages

                return max(1, count_pages(path))
    except (ImageError, ConfigError):
        pass  # its reader says what is wrong
    return 1
