"""Pixels of TIFF files, read in pieces: any part of a picture in memory that does not grow with the picture.

Strips and tiles are decoded one by one. Methods of compression that pack bytes (LZW, Deflate, PackBits, LZMA, ZSTD)
give bytes, of which all depths, byte orders, colour models and plane layouts are made here; methods that pack pixels
(JPEG, CCITT) give images. Both are decoded by Pillow from a file of that one strip or tile, Deflate and LZMA by Python.

Source: TIFF 6.0 (Adobe, 1992) and its technical notes 1 to 3.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import cached_property
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from zsad.errors import ImageError
from zsad.images.pixels import Alpha, Model, Samples, as_uint16
from zsad.images.tiff_pieces import decoded, inflated, single_strip, unpacked_bits, unpacked_ycbcr
from zsad.images.tiff_tags import Tags, TiffHeader, read_header, read_tags

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_STRIPS, _TURN, _CHANNELS, _ROWS, _STRIP_SIZES, _PLANAR = 273, 274, 277, 278, 279, 284
_T4, _T6, _PREDICTOR, _COLOURS, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_SIZES = (
    292,
    293,
    317,
    320,
    322,
    323,
    324,
    325,
)
_EXTRA, _FORMAT, _JPEG_TABLES, _SUBSAMPLING = 338, 339, 347, 530
_WANTED = frozenset(range(_WIDTH, _PLANAR + 1)) | frozenset(range(_T4, _JPEG_TABLES + 1)) | {_SUBSAMPLING}

_RAW, _LZMA, _DEFLATE = 1, 34925, (8, 32946)
_BYTE_METHODS = (_RAW, 5, 32773, _LZMA, 50000, *_DEFLATE)
_PIXEL_METHODS = (2, 3, 4, 7)
_MODELS: dict[int, tuple[Model, int]] = {
    0: ("inverted", 1),
    1: ("grey", 1),
    2: ("rgb", 3),
    3: ("grey", 1),
    4: ("grey", 1),
    5: ("cmyk", 4),
    6: ("ycbcr", 3),
    8: ("lab", 3),
    9: ("lab", 3),
}
_PALETTE, _YCBCR, _CIELAB = 3, 6, 8
_STRAIGHT = (2, 999)  # 999: Corel Draw
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_CACHE_BYTES = 64_000_000


class TiffPixels:
    """The stored pixels of one directory of a TIFF file, decoded when they are asked for.

    Args:
        stream: the file, which stays open as long as pixels are read.
        offset: where the directory begins.
        name: for messages.

    Attributes:
        size: (W,H) as stored, not turned upright.
        turn: orientation, 1 to 8.

    Raises:
        ImageError: a kind of TIFF that is not read, or one that contradicts itself.
    """

    def __init__(self, stream: BinaryIO, offset: int, name: str, *, header: TiffHeader | None = None) -> None:
        self._stream, self._name = stream, name
        self._header = header or read_header(stream)
        self._tags: Tags = read_tags(stream, self._header, offset, _WANTED)
        number = self._tags.number
        self.size = (number(_WIDTH), number(_HEIGHT))
        self.turn = number(_TURN, 1) if 1 <= number(_TURN, 1) <= 8 else 1
        self._method = number(_COMPRESSION, 1)
        self._channels = max(1, number(_CHANNELS, 1))
        self._planar = number(_PLANAR, 1) == 2 and self._channels > 1
        self._photometric = number(_PHOTOMETRIC, 1)
        self._cache: OrderedDict[int, npt.NDArray[Any] | Image.Image] = OrderedDict()
        self._check()
        width, height = self.size
        tiled = _TILES in self._tags.values
        rows = number(_ROWS, height)
        self._piece = (
            (number(_TILE_WIDTH), number(_TILE_HEIGHT)) if tiled else (width, min(max(rows, 1), height))
        )
        self._offsets = self._tags.numbers(_TILES if tiled else _STRIPS)
        self._lengths = self._tags.numbers(_TILE_SIZES if tiled else _STRIP_SIZES)
        if min(self._piece) < 1:
            raise ImageError(
                f"{name} has tiles of {self._piece[0]}x{self._piece[1]} px: export the file again"
            )
        self._across = -(-width // self._piece[0])
        self._down = -(-height // self._piece[1])
        expected = self._across * self._down * (self._channels if self._planar else 1)
        if len(self._offsets) < expected or (self._lengths and len(self._lengths) < expected):
            raise ImageError(
                f"{name} has {len(self._offsets)} pieces, expected {expected}: it is damaged, export it again"
            )

    def _check(self) -> None:
        """Raise an ImageError for a kind of TIFF that is not read."""
        name, kinds = self._name, set(self._bits)
        if min(self.size) < 1:
            raise ImageError(f"{name} is damaged or truncated (no size): export the file again")
        if self._photometric not in _MODELS:
            raise ImageError(
                f"{name} holds no picture but raw values (photometric interpretation {self._photometric}): export "
                "it as RGB or grey"
            )
        if self._method not in (*_BYTE_METHODS, *_PIXEL_METHODS):
            raise ImageError(
                f"{name} is compressed by method {self._method}: save it with LZW, Deflate or JPEG"
            )
        if len(kinds) != 1 or len(self._bits) != self._channels or self._channels < self._colour_count:
            raise ImageError(
                f"{name} has {self._channels} channels of {self._bits} bits: save it as RGB or grey of 8 or 16 bits"
            )
        extra = self._channels - self._colour_count
        if (
            self._photometric in (0, 1)
            and extra > (0 if self._alpha == "none" else 1)
            and not self._is_padded
        ):
            raise ImageError(
                f"{name} has {self._channels} channels that are no colours: save it as RGB or grey"
            )
        if self._photometric == _YCBCR and self._planar and self._subsampling != (1, 1) and self._method != 7:
            raise ImageError(f"{name} has reduced colours in planes of their own: save it as RGB")

    @cached_property
    def _bits(self) -> tuple[int, ...]:
        bits = self._tags.numbers(_BITS) or (1,)
        return bits * self._channels if len(bits) == 1 else bits[: self._channels]

    @property
    def _colour_count(self) -> int:
        return _MODELS[self._photometric][1]

    @property
    def _is_padded(self) -> bool:
        """True for grey and one channel that means nothing."""
        return self._channels == 2

    @cached_property
    def _alpha(self) -> Alpha:
        extra = self._tags.numbers(_EXTRA)
        if not extra and self._photometric == 2 and self._channels == 4:
            return "straight"  # many writers leave the tag out
        kind = extra[0] if extra and self._channels > self._colour_count else 0
        return "premultiplied" if kind == 1 else "straight" if kind in _STRAIGHT else "none"

    @cached_property
    def _subsampling(self) -> tuple[int, int]:
        across, down = (*self._tags.numbers(_SUBSAMPLING), 2, 2)[:2]
        return (across, down) if self._photometric == _YCBCR else (1, 1)

    @property
    def piece_bytes(self) -> int:
        """Memory for the largest piece that is decoded as a whole."""
        if self._method == _RAW:
            return 0
        return self._piece[0] * self._piece[1] * self._channels * max(1, self._bits[0] // 8)

    @property
    def largest_column(self) -> int:
        """Columns that are decoded together."""
        return self._piece[0]

    def crop(self, box: tuple[int, int, int, int]) -> Image.Image | Samples:
        """Return a part (left, top, right, bottom) of the stored picture."""
        left, top, right, bottom = box
        if self._method in _PIXEL_METHODS:
            return self._images(box)
        channels = self._channels if self._planar else 1
        planes = []
        for plane in range(channels):
            rows = []
            for row in range(top // self._piece[1], -(-bottom // self._piece[1])):
                cells = [
                    self._cut(plane, row, column, box)
                    for column in range(left // self._piece[0], -(-right // self._piece[0]))
                ]
                rows.append(cells[0] if len(cells) == 1 else np.concatenate(cells, axis=1))
            planes.append(rows[0] if len(rows) == 1 else np.concatenate(rows, axis=0))
        return self._samples(planes[0] if channels == 1 else np.concatenate(planes, axis=2))

    def _cut(self, plane: int, row: int, column: int, box: tuple[int, int, int, int]) -> npt.NDArray[Any]:
        """Return what a piece (H,W,C) holds of a box."""
        wide, high = self._piece
        index = (plane * self._down + row) * self._across + column
        y0, y1 = max(box[1] - row * high, 0), min(box[3] - row * high, high)
        x0, x1 = max(box[0] - column * wide, 0), min(box[2] - column * wide, wide)
        return self._values(index, row, y0, y1)[:, x0:x1]

    def _values(self, index: int, row: int, y0: int, y1: int) -> npt.NDArray[Any]:
        """Return the values (H,W,C) of the rows of a piece."""
        wide, high = self._piece
        if _TILES not in self._tags.values:
            high = min(high, self.size[1] - row * high)
        channels = 1 if self._planar else self._channels
        across, down = self._subsampling
        if (across, down) != (1, 1):
            units = -(-wide // across) * -(-high // down)
            raw = self._bytes(index, units * (across * down + 2), 1)
            return unpacked_ycbcr(raw[0], wide, high, (across, down))[y0:y1]
        stride = (wide * channels * self._bits[0] + 7) // 8
        if self._method == _RAW:
            rows = self._read(index, y0 * stride, (y1 - y0) * stride).reshape(y1 - y0, stride)
        else:
            rows = self._bytes(index, stride, high)[y0:y1]
        return self._unpacked(rows, wide, channels)

    def _read(self, index: int, start: int, count: int | None = None) -> npt.NDArray[np.uint8]:
        """Return bytes of a piece as they lie in the file, bits in their usual order."""
        offset = self._offsets[index]
        if count is None:
            count = self._lengths[index] if self._lengths else self._header.size - offset
        self._stream.seek(offset + start)
        raw = self._stream.read(count)
        if len(raw) < count:
            raise ImageError(
                f"{self._name} is damaged or truncated (piece {index} is cut off): copy it again"
            )
        if self._tags.number(_FILL_ORDER, 1) == 2:
            raw = raw.translate(_REVERSED)
        return np.frombuffer(raw, np.uint8)

    def _bytes(self, index: int, stride: int, rows: int) -> npt.NDArray[np.uint8]:
        """Return a piece of packed bytes as (rows, bytes of a row), the last ones kept for the next call."""
        kept = self._cache.get(index)
        if isinstance(kept, np.ndarray):
            self._cache.move_to_end(index)
            return kept
        packed = self._read(index, 0)
        if self._method in (*_DEFLATE, _LZMA):
            unpacked = inflated(packed, stride * rows, self._name, lzma=self._method == _LZMA)
        elif self._method == _RAW:
            unpacked = packed[: stride * rows]
        else:
            content = single_strip(packed.tobytes(), (stride, rows), (8,), {_COMPRESSION: (self._method,)})
            image = decoded(content, stride * rows)
            unpacked = np.asarray(image).reshape(-1)
        if unpacked.size < stride * rows:
            raise ImageError(
                f"{self._name} is damaged or truncated (piece {index} is too short): copy it again"
            )
        result = unpacked.reshape(rows, stride)
        self._keep(index, result, result.nbytes)
        return result

    def _keep(self, index: int, piece: Any, size: int) -> None:
        self._cache[index] = piece
        most = max(1, _CACHE_BYTES // max(1, size))
        while len(self._cache) > most:
            self._cache.popitem(last=False)

    def _unpacked(self, rows: npt.NDArray[np.uint8], width: int, channels: int) -> npt.NDArray[Any]:
        """Return bytes of rows as numbers (H,W,C) in this machine's order, differences summed."""
        bits, kind = self._bits[0], self._tags.number(_FORMAT, 1)
        predictor = self._tags.number(_PREDICTOR, 1) if self._method != _RAW else 1
        shape = (len(rows), width, channels)
        if bits < 8 or bits % 8:
            return unpacked_bits(rows, width * channels, bits).reshape(shape)
        if predictor == 3:
            sums = np.add.accumulate(rows.reshape(len(rows), -1, channels), axis=1, dtype=np.uint8)
            planes = sums.reshape(len(rows), bits // 8, width * channels)
            return np.ascontiguousarray(planes.transpose(0, 2, 1)).view(f">f{bits // 8}").reshape(shape)
        letter = {1: "u", 2: "i", 3: "f"}.get(kind, "u")
        order = self._header.order
        try:
            values = np.ascontiguousarray(rows).view(f"{order}{letter}{bits // 8}").reshape(shape)
        except TypeError as error:
            raise ImageError(
                f"{self._name} holds numbers of {bits} bits: save it with 8 or 16 bits"
            ) from error
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
        if predictor == 2:
            whole = values.view(f"u{bits // 8}")  # sums wrap around
            values = np.add.accumulate(whole, axis=1, dtype=whole.dtype).view(values.dtype)
        return values

    def _samples(self, values: npt.NDArray[Any]) -> Samples:
        """Return numbers (H,W,C) as samples: palettes looked up, few bits spread over eight, signs checked."""
        model, colours = _MODELS[self._photometric]
        bits = self._bits[0]
        if self._photometric == _PALETTE:
            return Samples(self._palette()[values[..., 0]], "rgb")
        if model == "lab":
            return Samples(self._lab(values[..., :3]), "lab")
        if values.dtype.kind in "ui" and (values.dtype.kind == "i" or bits > 16):
            numbers = as_uint16(values, self._name)
            values = numbers.astype(np.uint8) if bits == 8 else numbers
        if bits < 8:
            values = np.rint(values * (255 / (2**bits - 1))).astype(np.uint8)
        alpha = self._alpha
        values = values[..., : colours + (alpha != "none")]
        return Samples(values[..., 0] if values.shape[2] == 1 else values, model, alpha)

    def _palette(self) -> npt.NDArray[np.uint8]:
        table = np.asarray(self._tags.numbers(_COLOURS), np.int64)
        entries = 2 ** self._bits[0]
        if table.size < 3 * entries or self._bits[0] > 8:
            raise ImageError(f"{self._name} has no table of its {entries} colours: save it as RGB")
        # Some writers put 8 bits where 16 belong.
        eight = table if table.max() < 256 else table >> 8
        return np.asarray(eight.reshape(3, entries).T, np.uint8)

    def _lab(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return CIE L*, a*, b*; a and b of CIELab have a sign, of ICC's Lab an offset."""
        bits = self._bits[0]
        if bits not in (8, 16):
            raise ImageError(f"{self._name} holds Lab colours of {bits} bits: save it as RGB")
        step, signed = 2 ** (bits - 8), self._photometric == _CIELAB
        lightness = np.ascontiguousarray(values[..., :1]).view(f"u{bits // 8}") * np.float32(
            100 / (2**bits - 1)
        )
        colours = np.ascontiguousarray(values[..., 1:]).view(
            f"{'i' if signed else 'u'}{bits // 8}"
        ) / np.float32(step)
        return np.concatenate([lightness, colours if signed else colours - 128], axis=2, dtype=np.float32)

    def _images(self, box: tuple[int, int, int, int]) -> Image.Image:
        """Return a part of a picture whose pieces are decoded as images."""
        left, top, right, bottom = box
        wide, high = self._piece
        bands = []
        for plane in range(self._channels if self._planar else 1):
            canvas: Image.Image | None = None
            for row in range(top // high, -(-bottom // high)):
                for column in range(left // wide, -(-right // wide)):
                    index = (plane * self._down + row) * self._across + column
                    piece = self._image(
                        index, min(high, self.size[1] - row * high) if wide == self.size[0] else high
                    )
                    if canvas is None:
                        canvas = Image.new(piece.mode, (right - left, bottom - top))
                    canvas.paste(piece, (column * wide - left, row * high - top))
            assert canvas is not None  # a box is never empty
            bands.append(canvas)
        mode = {"cmyk": "CMYK", "ycbcr": "YCbCr"}.get(_MODELS[self._photometric][0], "RGB")
        return (
            bands[0] if len(bands) == 1 else Image.merge(mode, bands[: len(mode) if mode != "YCbCr" else 3])
        )

    def _image(self, index: int, rows: int) -> Image.Image:
        kept = self._cache.get(index)
        if isinstance(kept, Image.Image):
            self._cache.move_to_end(index)
            return kept
        high = self._piece[1] if _TILES in self._tags.values else rows
        image = decoded(self._single(self._read(index, 0), self._piece[0], high), self._piece[0] * high)
        self._keep(index, image, 4 * image.width * image.height)
        return image

    def _single(self, packed: npt.NDArray[np.uint8], width: int, height: int) -> bytes:
        """Return a TIFF file of one piece."""
        bits = self._bits[: 1 if self._planar else None]
        tags: dict[int, tuple[int, ...]] = {
            _COMPRESSION: (self._method,),
            _PHOTOMETRIC: (1 if self._planar else self._photometric,),
        }
        for tag in (_T4, _T6) if self._planar else (_T4, _T6, _EXTRA, _SUBSAMPLING):
            if values := self._tags.numbers(tag):
                tags[tag] = values
        if tables := self._tags.values.get(_JPEG_TABLES):
            tags[_JPEG_TABLES] = tuple(tables)
        return single_strip(packed.tobytes(), (width, height), bits, tags)
