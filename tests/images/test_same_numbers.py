"""A file and an array of the same numbers give the same picture: formats, depths, colours, byte orders, turns."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zsad.images.decode import image_size, load_image, read_image
from zsad.images.masks import load_mask, mask_values
from zsad.images.pixels import Reading

tifffile = pytest.importorskip("tifffile")

HEIGHT, WIDTH = 24, 40
DEPTHS = (8, 10, 12, 14, 16)
FLIPS = {1: "", 2: "x", 3: "xy", 4: "y", 5: "t", 6: "ty", 7: "txy", 8: "tx"}  # what undoes each orientation


def numbers(depth: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """A smooth picture (H,W,C) whose brightest value is the depth's white and whose corners differ."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH].astype(float)
    waves = [rows / HEIGHT, columns / WIDTH, (rows + columns) / (HEIGHT + WIDTH), 0.3 + 0.7 * rows / HEIGHT]
    values = np.stack(waves[:channels], axis=-1) + np.random.default_rng(seed).uniform(0, 0.02)
    values = np.clip(values / values.max(), 0, 1) * (2**depth - 1)
    return np.rint(values).astype(np.uint8 if depth == 8 else np.uint16)


def stored(values: np.ndarray, turn: int) -> np.ndarray:
    """The numbers that a file of an orientation holds of an upright picture."""
    for step in FLIPS[turn]:
        values = values[:, ::-1] if step == "x" else values[::-1] if step == "y" else values.swapaxes(0, 1)
    return np.ascontiguousarray(values)


def difference(source: object, expected: object, **reading: object) -> int:
    """The largest difference of two pictures in levels of 255."""
    options = Reading(**reading)  # type: ignore[arg-type]
    first, second = (np.asarray(load_image(each, reading=options), int) for each in (source, expected))
    assert first.shape == second.shape
    return int(np.abs(first - second).max())


# A writer of TIFF that writes what others refuse to


def packed(values: np.ndarray, bits: int, order: str) -> bytes:
    """Rows (H,N) of numbers of any depth, the highest bit first where they are no whole bytes."""
    if bits % 8 == 0:
        return values.astype(f"{order}u{bits // 8}").tobytes()
    single = (values[..., None].astype(int) >> np.arange(bits)[::-1]) & 1
    return np.packbits(single.reshape(len(values), -1).astype(np.uint8), axis=1).tobytes()


def tiff(
    values: np.ndarray,
    bits: int,
    *,
    photometric: int,
    order: str = "<",
    planar: bool = False,
    rows: int = 7,
    deflate: bool = False,
    reverse: bool = False,
    tags: dict[int, tuple[int, ...]] | None = None,
) -> bytes:
    """A file of strips of (H,W,C) numbers."""
    height, width = values.shape[:2]
    channels = values.shape[2] if values.ndim == 3 else 1
    planes = (
        np.moveaxis(values.reshape(height, width, channels), 2, 0)
        if planar
        else values.reshape(1, height, -1)
    )
    pieces = [
        packed(plane[top : top + rows], bits, order) for plane in planes for top in range(0, height, rows)
    ]
    pieces = [zlib.compress(piece) if deflate else piece for piece in pieces]
    if reverse:
        pieces = [bytes(int(f"{byte:08b}"[::-1], 2) for byte in piece) for piece in pieces]
    starts = np.cumsum([8] + [len(piece) for piece in pieces]).tolist()
    entries = {
        256: (width,),
        257: (height,),
        258: (bits,) * channels,
        259: (8 if deflate else 1,),
        262: (photometric,),
        266: (2 if reverse else 1,),
        273: tuple(starts[:-1]),
        277: (channels,),
        278: (rows,),
        279: tuple(len(piece) for piece in pieces),
        284: (2 if planar else 1,),
        **(tags or {}),
    }
    directory = starts[-1] + starts[-1] % 2
    behind = directory + 2 + 12 * len(entries) + 4
    body, extra = struct.pack(order + "H", len(entries)), b""
    for tag, numbers_of in sorted(entries.items()):
        wide = tag in (273, 279)
        data = struct.pack(f"{order}{len(numbers_of)}{'L' if wide else 'H'}", *numbers_of)
        field = data.ljust(4, b"\0") if len(data) <= 4 else struct.pack(order + "L", behind + len(extra))
        extra += data if len(data) > 4 else b""
        body += struct.pack(order + "HHL", tag, 4 if wide else 3, len(numbers_of)) + field
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "L", directory)
    return (head + b"".join(pieces)).ljust(directory, b"\0") + body + b"\0" * 4 + extra


def png(values: np.ndarray, bits: int, colour: int, *, chunks: bytes = b"") -> bytes:
    """A PNG of any depth, its rows differing from those above (filter 2) to be no easy case."""
    rows = [np.frombuffer(packed(row.reshape(1, -1), bits, ">"), np.uint8) for row in values]
    above = [np.zeros_like(rows[0]), *rows[:-1]]
    raw = b"".join(b"\2" + (row - before).tobytes() for row, before in zip(rows, above, strict=True))
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunks
        + chunk(b"IDAT", zlib.compress(raw))
        + chunk(b"IEND")
    )


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@dataclass
class Cell:
    """One cell of the product: a name, the content of a file, and the array of the same numbers."""

    name: str
    content: bytes
    array: np.ndarray


def encoded(write: Callable[[io.BytesIO], object]) -> bytes:
    stream = io.BytesIO()
    write(stream)
    return stream.getvalue()


def opaque_for(values: np.ndarray) -> np.ndarray:
    return np.full(values.shape[:2], np.iinfo(values.dtype).max, values.dtype)


def grey_and_colour() -> Iterator[Cell]:
    for depth in DEPTHS:
        whole = 8 if depth == 8 else 16
        for channels in (1, 3):
            values = numbers(depth, channels)
            array = values[..., 0] if channels == 1 else values
            kind = f"{'grey' if channels == 1 else 'rgb'}{depth}"
            yield Cell(f"{kind}.png", png(array, whole, 0 if channels == 1 else 2), array)
            magic = b"P5" if channels == 1 else b"P6"
            for highest in {2**depth - 1, 2**whole - 1}:
                head = magic + f"\n# by hand\n{WIDTH} {HEIGHT}\n{highest}\n".encode()
                yield Cell(
                    f"{kind} of {highest}.ppm", head + array.astype(f">u{whole // 8}").tobytes(), array
                )
                text = " ".join(map(str, array.ravel().tolist())).encode()
                yield Cell(
                    f"{kind} of {highest}, plain.ppm",
                    head.replace(b"P5", b"P2").replace(b"P6", b"P3") + text,
                    array,
                )
            for order in "<>":
                for planar in {False, channels > 1}:
                    for bits in {whole, depth}:
                        name = f"{kind} in {bits} bits {order}{' planar' * planar}.tif"
                        photometric = 1 if channels == 1 else 2
                        yield Cell(
                            name,
                            tiff(array, bits, photometric=photometric, order=order, planar=planar),
                            array,
                        )
                for options in (
                    {"compression": "zlib", "predictor": False},
                    {"tile": (16, 16)},
                    {"compression": "lzma"},
                ):
                    content = encoded(
                        lambda s, a=array, o=order, k=options: tifffile.imwrite(
                            s, a, byteorder=o, photometric="minisblack" if a.ndim == 2 else "rgb", **k
                        )
                    )
                    yield Cell(f"{kind} {order} {options}.tif", content, array)
            white = (
                tiff(np.iinfo(array.dtype).max - array, whole, photometric=0) if depth in (8, 16) else None
            )
            if white is not None and channels == 1:
                yield Cell(f"{kind} white is zero.tif", white, array)
            yield Cell(
                f"{kind} reversed bits.tif",
                tiff(array, whole, photometric=1 if channels == 1 else 2, reverse=True),
                array,
            )
            if depth in (8, 16):
                for method in (
                    ("tiff_lzw", "packbits", "tiff_deflate")
                    if array.dtype == np.uint8 or channels == 1
                    else ()
                ):
                    content = encoded(
                        lambda s, a=array, m=method: Image.fromarray(a).save(s, "TIFF", compression=m)
                    )
                    yield Cell(f"{kind} {method}.tif", content, array)


def few_bits() -> Iterator[Cell]:
    for bits in (1, 2, 4):
        values = numbers(8, 1)[..., 0] >> (8 - bits)
        array = np.rint(values * (255 / (2**bits - 1))).astype(np.uint8)
        yield Cell(f"{bits} bits.png", png(values, bits, 0), array)
        palette = np.stack(
            [np.arange(2**bits) * 40 % 256, np.arange(2**bits) * 17 % 256, np.arange(2**bits) * 90 % 256]
        )
        looked_up = palette.T[values].astype(np.uint8)
        yield Cell(
            f"palette of {bits} bits.png",
            png(values, bits, 3, chunks=chunk(b"PLTE", palette.T.astype(np.uint8).tobytes())),
            looked_up,
        )
        for photometric in (0, 1):
            shown = values if photometric else 2**bits - 1 - values
            yield Cell(f"{bits} bits {photometric}.tif", tiff(shown, bits, photometric=photometric), array)
            yield Cell(
                f"{bits} bits {photometric} reversed.tif",
                tiff(shown, bits, photometric=photometric, reverse=True),
                array,
            )
        for scale in (1, 256, 257):  # 8 bits where 16 belong, shifted, and spread
            table = {320: tuple((palette * scale).ravel().tolist())}
            yield Cell(
                f"palette of {bits} bits x{scale}.tif",
                tiff(values, bits, photometric=3, tags=table),
                looked_up,
            )
    yes = numbers(8, 1)[..., 0] > 100
    for name, options in {
        "pbm": {"format": "PPM"},
        "bmp": {"format": "BMP"},
        "tif": {"format": "TIFF"},
        "g4.tif": {"format": "TIFF", "compression": "group4"},
        "g3.tif": {"format": "TIFF", "compression": "group3"},
    }.items():
        yield Cell(f"bits.{name}", encoded(lambda s, o=options: Image.fromarray(yes).save(s, **o)), yes)


def floats() -> Iterator[Cell]:
    for kind in ("f2", "f4", "f8"):
        for channels in (1, 3):
            values = (numbers(16, channels) / 65535).astype(kind)
            array = values[..., 0] if channels == 1 else values
            for order in "<>":
                for options in (
                    {},
                    {"compression": "zlib"},
                    {"planarconfig": "separate"} if channels == 3 else {},
                ):
                    moved = np.moveaxis(array, 2, 0) if "planarconfig" in options else array
                    content = encoded(
                        lambda s, a=moved, o=order, k=options, c=channels: tifffile.imwrite(
                            s, a, byteorder=o, photometric="minisblack" if c == 1 else "rgb", **k
                        )
                    )
                    yield Cell(f"{kind} {channels} {order} {options}.tif", content, array)


def alphas() -> Iterator[Cell]:
    for depth in DEPTHS:
        bits = 8 if depth == 8 else 16
        colours = numbers(depth)
        grey = colours[..., :1]
        ramp = np.linspace(0, np.iinfo(colours.dtype).max, WIDTH).astype(colours.dtype) + np.zeros(
            (HEIGHT, 1), colours.dtype
        )
        for name, alpha in {"clear": ramp, "opaque": opaque_for(colours)}.items():
            rgba, pair = np.dstack([colours, alpha]), np.dstack([grey, alpha])
            as_colour = np.dstack([grey, grey, grey, alpha])
            kind = f"{depth} bits {name}"
            yield Cell(f"rgba {kind}.png", png(rgba, bits, 6), rgba)
            yield Cell(f"grey and alpha {kind}.png", png(pair, bits, 4), as_colour)
            for order in "<>":
                for planar in (False, True):
                    where = f"{kind} {order}{' planar' * planar}.tif"
                    for extra, tags in {"2": {338: (2,)}, "none": {}}.items():
                        yield Cell(
                            f"rgba {extra} {where}",
                            tiff(rgba, bits, photometric=2, order=order, planar=planar, tags=tags),
                            rgba,
                        )
                    yield Cell(
                        f"rgbx {where}",
                        tiff(rgba, bits, photometric=2, order=order, planar=planar, tags={338: (0,)}),
                        colours,
                    )
                    yield Cell(
                        f"grey alpha {where}",
                        tiff(pair, bits, photometric=1, order=order, planar=planar, tags={338: (2,)}),
                        as_colour,
                    )
                    yield Cell(
                        f"grey x {where}",
                        tiff(pair, bits, photometric=1, order=order, planar=planar, tags={338: (0,)}),
                        grey,
                    )
    clear = numbers(16, 1)[..., 0]
    key = int(clear[5, 5])
    rgba = np.dstack([clear, clear, clear, np.where(clear == key, 0, 65535).astype(np.uint16)])
    yield Cell(
        "grey16 with a clear value.png",
        png(clear, 16, 0, chunks=chunk(b"tRNS", struct.pack(">H", key))),
        rgba,
    )
    colours = numbers(16)
    key3 = colours[5, 5]
    hidden = (colours == key3).all(axis=2)
    rgba = np.dstack([colours, np.where(hidden, 0, 65535).astype(np.uint16)])
    yield Cell(
        "rgb16 with a clear colour.png",
        png(colours, 16, 2, chunks=chunk(b"tRNS", struct.pack(">3H", *key3.tolist()))),
        rgba,
    )


def other_formats() -> Iterator[Cell]:
    for channels in (1, 3, 4):
        values = numbers(8, channels)
        array = values[..., 0] if channels == 1 else values
        for form, options in {
            "BMP": {},
            "WEBP": {"lossless": True, "exact": True},
            "JPEG2000": {"irreversible": False},
            "PNG": {"optimize": True},
            "TIFF": {"compression": "tiff_adobe_deflate"},
            "DIB": {},
        }.items():
            if form == "DIB" and channels == 4:
                continue
            content = encoded(lambda s, a=array, f=form, o=options: Image.fromarray(a).save(s, f, **o))
            means_nothing = form == "BMP" and channels == 4  # the fourth byte of a plain BMP is padding
            yield Cell(f"{channels} channels.{form}", content, array[..., :3] if means_nothing else array)
    quantized = Image.fromarray(numbers(8)).quantize(200)
    shown = np.asarray(quantized.convert("RGB"))
    for form in ("GIF", "PNG", "TIFF", "BMP"):
        yield Cell(f"palette.{form}", encoded(lambda s, f=form: quantized.save(s, f)), shown)


CELLS = [*grey_and_colour(), *few_bits(), *floats(), *alphas(), *other_formats()]


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_a_file_is_the_array_of_its_numbers(cell: Cell) -> None:
    assert difference(cell.content, cell.array) <= 1


@pytest.mark.parametrize("turn", FLIPS)
@pytest.mark.parametrize("depth", [8, 12, 16])
def test_all_eight_orientations_give_the_upright_picture(tmp_path: Path, turn: int, depth: int) -> None:
    upright = numbers(depth)
    turned, exif = stored(upright, turn), Image.Exif()
    exif[0x0112] = turn
    bits = 8 if depth == 8 else 16
    block = chunk(b"eXIf", exif.tobytes()[6:])
    files = {
        "a.png": png(turned, bits, 2, chunks=block),
        "a.tif": tiff(turned, bits, photometric=2, tags={274: (turn,)}),
        "planar.tif": tiff(turned, bits, photometric=2, planar=True, deflate=True, tags={274: (turn,)}),
        "grey.tif": tiff(turned[..., 1], bits, photometric=1, tags={274: (turn,)}),
    }
    if depth == 8:
        picture = Image.fromarray(turned)
        for form, options in {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.items():
            files[form] = encoded(lambda s, f=form, o=options: picture.save(s, f, exif=exif, **o))
        files["lzw.tif"] = encoded(
            lambda s: picture.save(s, "TIFF", compression="tiff_lzw", tiffinfo={274: turn})
        )
        files["jpeg.tif"] = encoded(
            lambda s: picture.save(s, "TIFF", compression="jpeg", quality=100, tiffinfo={274: turn})
        )
    for name, content in files.items():
        path = tmp_path / name
        path.write_bytes(content)
        expected = upright[..., 1] if name == "grey.tif" else upright
        assert image_size(path) == read_image(path)[1] == (HEIGHT, WIDTH), name
        assert difference(path, expected) <= (12 if "J" in name or "jp" in name else 1), name
        if depth == 8 and not {"JPEG", "jpeg.tif"} & {name}:
            highest = expected if expected.ndim == 2 else expected.max(axis=2)
            np.testing.assert_array_equal(mask_values(path), highest)


@pytest.mark.parametrize("levels", ["full", (2, 98)])
def test_levels_are_those_of_the_array(levels: object) -> None:
    values = numbers(12)
    for content in (
        png(values, 16, 2),
        tiff(values, 16, photometric=2),
        tiff(values, 12, photometric=2, planar=True),
    ):
        assert difference(content, values, levels=levels) <= 1


def test_inks_and_luminances() -> None:
    rgb = Image.fromarray(numbers(8))
    inks, luma = rgb.convert("CMYK"), rgb.convert("YCbCr")
    for photometric, picture in ((5, inks), (6, luma)):
        values, ones = np.asarray(picture), {530: (1, 1)} if photometric == 6 else {}
        for planar in (False, True):
            for deep in (False, True):
                shown = values.astype(np.uint16) * 257 if deep else values
                content = tiff(shown, 16 if deep else 8, photometric=photometric, planar=planar, tags=ones)
                assert difference(content, np.asarray(picture.convert("RGB"))) <= 1
    extra = np.dstack([np.asarray(inks), np.full((HEIGHT, WIDTH), 99, np.uint8)])
    assert difference(tiff(extra, 8, photometric=5, tags={338: (0,)}), np.asarray(inks.convert("RGB"))) <= 1


def test_reduced_colours_are_spread_over_their_pixels() -> None:
    y, cb, cr = (np.asarray(band) for band in Image.fromarray(numbers(8)).convert("YCbCr").split())
    units = [
        [*y[r : r + 2, c : c + 2].ravel(), cb[r, c], cr[r, c]]
        for r in range(0, HEIGHT, 2)
        for c in range(0, WIDTH, 2)
    ]
    expected = np.dstack([y, cb[::2, ::2].repeat(2, 0).repeat(2, 1), cr[::2, ::2].repeat(2, 0).repeat(2, 1)])
    content = bytearray(tiff(np.zeros((HEIGHT, WIDTH, 3), np.uint8), 8, photometric=6, rows=HEIGHT))
    raw = np.asarray(units, np.uint8).tobytes()
    content[8 : 8 + len(raw)] = raw  # 2 x 2 is the default of the tag
    assert difference(bytes(content), np.asarray(Image.fromarray(expected, "YCbCr").convert("RGB"))) <= 1


def lab_of(rgb: np.ndarray) -> np.ndarray:
    """L*, a*, b* (D50) of sRGB, written out from CIE 15 and Bradford's adapted primaries."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    matrix = np.array(
        [
            [0.4360747, 0.3850649, 0.1430804],
            [0.2225045, 0.7168786, 0.0606169],
            [0.0139322, 0.0971045, 0.7141733],
        ]
    )
    t = linear @ matrix.T / np.array([0.9642, 1.0, 0.8249])
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack(
        [116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1
    )


@pytest.mark.parametrize("bits", [8, 16])
def test_lab_is_the_colour_it_was_made_of(bits: int) -> None:
    rgb = numbers(8)
    lab, step = lab_of(rgb / 255), 2 ** (bits - 8)
    lightness, signed = lab[..., 0] * (2**bits - 1) / 100, np.rint(lab[..., 1:] * step).astype(int)
    kind = np.uint8 if bits == 8 else np.uint16
    for photometric, offset in ((8, 0), (9, 128 * step)):  # CIELab has signs, ICC's Lab an offset
        values = np.dstack([np.rint(lightness), (signed + offset) % 2**bits]).astype(kind)
        assert difference(tiff(values, bits, photometric=photometric), rgb) <= (12 if bits == 8 else 1)


def test_premultiplied_colours_are_divided_by_their_alpha() -> None:
    rgba = numbers(8, 4)
    alpha = rgba[..., 3:] / 255
    premultiplied = np.dstack([np.rint(rgba[..., :3] * alpha).astype(np.uint8), rgba[..., 3]])
    for deep in (False, True):
        shown = premultiplied.astype(np.uint16) * 257 if deep else premultiplied
        assert difference(tiff(shown, 16 if deep else 8, photometric=2, tags={338: (1,)}), rgba) <= 3


def test_alpha_has_a_depth_of_its_own() -> None:
    rgba = numbers(12, 4)
    rgba[..., 3] = 65535
    np.testing.assert_array_equal(np.asarray(load_image(rgba)), np.asarray(load_image(rgba[..., :3])))


@pytest.mark.parametrize("photometric", [0, 1])
def test_masks_hold_the_numbers_of_their_file(tmp_path: Path, photometric: int) -> None:
    ids = np.zeros((HEIGHT, WIDTH), np.uint16)
    ids[3:9, 4:20] = 700
    shown = ids if photometric else 65535 - ids
    path = tmp_path / "mask.tif"
    path.write_bytes(tiff(shown, 16, photometric=photometric))
    np.testing.assert_array_equal(mask_values(path), ids)
    np.testing.assert_array_equal(load_mask(path), ids > 0)
