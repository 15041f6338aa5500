"""Reading of images, masks and preprocessing, on files broken in every way that occurs."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageFile

from zsad.errors import ConfigError, DataError, ImageError, TooManyPixelsError, ZsadError
from zsad.images.decode import image_size, load_image, read_image
from zsad.images.masks import load_mask
from zsad.images.picture import CLIP_MEAN, CLIP_STD, Preprocess
from zsad.images.pixels import Reading


def photo(height: int = 40, width: int = 60) -> Image.Image:
    """A smooth picture whose corners differ, so that a wrong orientation shows."""
    rows, columns = np.mgrid[0:height, 0:width]
    values = np.stack([rows * 255 / height, columns * 255 / width, np.full(rows.shape, 90.0)], axis=-1)
    return Image.fromarray(values.astype(np.uint8))


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def one_line(error: pytest.ExceptionInfo[ZsadError], *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


# files that are refused


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9, 0.98])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif"])
def test_truncated_file_is_refused(tmp_path: Path, suffix: str, fraction: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 80, 3), dtype=np.uint8)
    path = save(Image.fromarray(noise), tmp_path / f"cut{suffix}")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(ImageError) as error:
        load_image(path)
    one_line(error, str(path))


def test_truncated_files_are_never_tolerated() -> None:
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("zero.png", b"", "empty"),
        ("text.png", b"this is no image at all, only text\n" * 9, "not an image"),
        ("page.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 90 90\nshowpage\n", "not an image"),
        ("head.png", b"\x89PNG\r\n\x1a\n", "bad.png"),
        ("start.jpg", b"\xff\xd8\xff\xe0", "bad.jpg"),
    ],
)
def test_file_without_image_is_refused(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError) as error:
        load_image(tmp_path / name)
    one_line(error, name, reason.replace("bad", name.split(".")[0]))


@pytest.mark.parametrize("function", [load_image, load_mask, image_size])
def test_missing_file_and_folder_are_refused(tmp_path: Path, function: object) -> None:
    with pytest.raises(ImageError, match="does not exist"):
        function(tmp_path / "absent.png")  # type: ignore[operator]
    with pytest.raises(ImageError, match=r"is a folder|holds no mask"):
        function(tmp_path)  # type: ignore[operator]


def test_too_small_and_too_large_are_refused_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ImageError, match="1x1 px, expected at least 8"):
        load_image(save(Image.new("RGB", (1, 1)), tmp_path / "dot.png"))
    with pytest.raises(ImageError, match="at least 8"):
        load_image(np.zeros((7, 90), np.uint8))
    path = save(photo(), tmp_path / "p.png")
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("was decoded"))
    with pytest.raises(ImageError, match=r"60x40 = 2,400 pixels, at most 2,399"):
        load_image(path, reading=Reading(max_pixels=2399))


def test_decompression_bomb_is_an_image_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(Image.new("1", (3000, 3000)), tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for function in (load_image, load_mask, image_size):
        with pytest.raises(ImageError, match="Pillow's limit"):
            function(path)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_random_damage_gives_image_error_or_image(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    path = tmp_path / "fuzz"
    for form in ("JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP"):
        buffer = io.BytesIO()
        photo(24, 24).save(buffer, form)
        for _ in range(25):
            data = bytearray(buffer.getvalue())
            for position in rng.integers(0, len(data), 12):
                data[position] = int(rng.integers(0, 256))
            path.write_bytes(bytes(data))
            try:
                assert load_image(path).mode == "RGB"
            except ImageError as error:
                assert "\n" not in str(error)


def test_other_types_are_refused() -> None:
    with pytest.raises(ImageError, match="cannot use list as an image"):
        load_image([[0]])  # type: ignore[arg-type]


# files that are read


def test_long_thin_image_is_read(tmp_path: Path) -> None:
    path = save(Image.new("RGB", (20000, 12), (7, 8, 9)), tmp_path / "line.png")
    assert load_image(path).size == (20000, 12)
    assert image_size(path) == (12, 20000)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV"])
def test_every_mode_becomes_close_rgb(mode: str) -> None:
    grey = Image.new("L", (16, 16), 255).convert("RGB")
    source = grey.convert("RGBA").convert(mode) if mode == "RGBa" else grey.convert(mode)
    loaded = np.asarray(load_image(source))
    assert loaded.shape == (16, 16, 3)
    assert loaded.min() >= 252


def test_cmyk_jpeg_and_palette_png(tmp_path: Path) -> None:
    cmyk = load_image(save(photo().convert("CMYK"), tmp_path / "c.jpg", quality=95))
    difference = np.abs(np.asarray(cmyk, float) - np.asarray(photo(), float))
    assert difference.mean() < 4
    palette = photo().quantize(64)
    loaded = load_image(save(palette, tmp_path / "p.png"))
    np.testing.assert_array_equal(np.asarray(loaded), np.asarray(palette.convert("RGB")))


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    rgba = np.zeros((10, 10, 4), np.uint8)
    rgba[:5, :, 3] = 255
    for source in (rgba, Image.fromarray(rgba), save(Image.fromarray(rgba), tmp_path / "a.png")):
        loaded = np.asarray(load_image(source))
        assert (loaded[:5] == 0).all() and (loaded[5:] == 255).all()
    palette = Image.new("P", (9, 9), 0)
    palette.putpalette([10, 20, 30])
    path = save(palette, tmp_path / "t.png", transparency=0)
    assert (np.asarray(load_image(path)) == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = photo(40, 64)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(stored, tmp_path / "o.jpg", exif=exif, quality=95)
    loaded, size = read_image(path)
    assert size == image_size(path) == (40, 64)
    assert np.abs(np.asarray(loaded, float) - np.asarray(upright, float)).mean() < 3
    reduced, size = read_image(path, target=(10, 16))
    assert (size, reduced.size) == ((40, 64), (32, 20))


def test_animation_gives_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (12, 12), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    path = save(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert load_image(path).getpixel((3, 3)) == (255, 0, 0)


def test_reduced_decoding_keeps_twice_the_target(tmp_path: Path) -> None:
    path = save(photo(800, 1200), tmp_path / "big.jpg", quality=95)
    full = load_image(path)
    assert full.size == (1200, 800)
    for target, expected in [((50, 50), (150, 100)), ((51, 51), (300, 200)), ((400, 400), (1200, 800))]:
        reduced, size = read_image(path, target=target)
        assert (reduced.size, size) == (expected, (800, 1200))
    small, same = (np.asarray(load_image(path, target=t).resize((64, 64)), float) for t in ((64, 64), None))
    assert np.abs(small - same).mean() < 2


def test_given_image_is_not_changed() -> None:
    given_image = photo().convert("RGBA")
    before = given_image.tobytes()
    loaded = load_image(given_image)
    loaded.putpixel((0, 0), (1, 2, 3))
    rgb = photo()
    load_image(rgb).putpixel((0, 0), (1, 2, 3))
    assert given_image.tobytes() == before
    assert rgb.tobytes() == photo().tobytes()


# deep grey values


@pytest.mark.parametrize(
    ("top", "full"), [(200, 255), (256, 1023), (1024, 4095), (4095, 4095), (4096, 16383), (65535, 65535)]
)
def test_sixteen_bits_are_scaled_by_their_depth(tmp_path: Path, top: int, full: int) -> None:
    values = np.linspace(0, top, 20 * 30).round().astype(np.uint16).reshape(20, 30)
    expected = np.rint(values.astype(float) / full * 255)
    path = save(Image.fromarray(values), tmp_path / "deep.png")
    for source in (path, values, values[..., None], values.astype(">u2"), values.astype(np.int32)):
        given_source = Image.fromarray(source) if getattr(source, "dtype", None) == np.int32 else source
        loaded = np.asarray(load_image(given_source))
        np.testing.assert_allclose(loaded, expected[..., None].repeat(3, axis=2), atol=1)


def test_wide_values_out_of_range_are_refused() -> None:
    for value in (-1, 65536):
        with pytest.raises(ImageError, match="expected 0 to 65535"):
            load_image(Image.fromarray(np.full((9, 9), value, np.int32)))
    with pytest.raises(ImageError, match=r"float images must lie in \[0, 1\]"):
        load_image(Image.fromarray(np.full((9, 9), 255, np.float32)))


# arrays

ALLOWED = (np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(np.bool_))


@settings(max_examples=80)
@given(
    st.one_of(hnp.scalar_dtypes(), hnp.unicode_string_dtypes(max_len=2)).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=12))
    )
)
def test_any_array_gives_rgb_or_image_error(array: np.ndarray) -> None:
    shape_fits = array.ndim in (2, 3) and (array.ndim == 2 or array.shape[2] in (1, 3, 4))
    fits = shape_fits and min(array.shape[:2]) >= 8
    if fits and array.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            fits = bool(((array >= 0) & (array <= 1)).all())
    else:
        fits = fits and array.dtype.newbyteorder("=") in ALLOWED
    try:
        loaded = load_image(array)
    except ImageError as error:
        assert "\n" not in str(error)
        assert not fits
    else:
        assert loaded.mode == "RGB" and loaded.size == array.shape[1::-1]


def test_arrays_of_every_allowed_kind_agree() -> None:
    values = np.arange(12 * 16 * 3, dtype=np.uint8).reshape(12, 16, 3)
    for array in (values, values / 255.0, (values / 255.0).astype(np.float32), values[:, ::-1][:, ::-1]):
        np.testing.assert_array_equal(np.asarray(load_image(array)), values)
    flags = values[..., 0] > 100
    np.testing.assert_array_equal(np.asarray(load_image(flags))[..., 1], flags * 255)
    with pytest.raises(ImageError, match="channels last"):
        load_image(values.transpose(2, 0, 1))
    with pytest.raises(ImageError, match="from nan to nan"):
        load_image(np.full((9, 9), np.nan))


# masks


def test_mask_takes_any_value_above_zero(tmp_path: Path) -> None:
    ids = np.zeros((20, 30), np.uint8)
    ids[3:9, 4:11] = 1
    ids[12, 12] = 255
    expected = ids > 0
    palette = Image.fromarray(ids).convert("P")
    for name, picture in {
        "l.png": Image.fromarray(ids),
        "p.png": palette,
        "one.png": Image.fromarray(expected),
        "rgb.png": Image.fromarray(np.stack([ids * 0, ids * 0, ids], axis=-1)),
        "deep.png": Image.fromarray(ids.astype(np.uint16)),
        "rgba.png": Image.fromarray(np.stack([ids, ids, ids, ids * 0 + 255], axis=-1)),
    }.items():
        mask = load_mask(save(picture, tmp_path / name))
        assert mask.dtype == np.bool_
        np.testing.assert_array_equal(mask, expected)


def bilinear_row(values: np.ndarray, size: int) -> np.ndarray:
    """Antialiased triangle filter along axis 0, written out from its formula."""
    scale = len(values) / size
    support = max(scale, 1.0)
    result = np.zeros((size, *values.shape[1:]))
    for index in range(size):
        centre = (index + 0.5) * scale
        weights = np.maximum(0, 1 - np.abs((np.arange(len(values)) + 0.5 - centre) / support))
        result[index] = np.tensordot(weights / weights.sum(), values, 1)
    return result


@pytest.mark.parametrize("size", [(11, 17), (41, 23), (64, 96)])
def test_mask_resize_follows_the_formula(tmp_path: Path, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    mask = np.kron(rng.random((8, 12)) > 0.6, np.ones((4, 4))) > 0
    path = save(Image.fromarray(mask), tmp_path / "m.png")
    values = bilinear_row(bilinear_row(mask * 255.0, size[0]).T, size[1]).T
    sure = np.abs(values - 127.5) > 1.5  # Pillow rounds after each of its two passes
    np.testing.assert_array_equal(load_mask(path, size=size)[sure], (values > 127.5)[sure])
    assert sure.mean() > 0.9


def test_mask_of_another_size_names_both(tmp_path: Path) -> None:
    path = save(Image.new("L", (30, 20)), tmp_path / "m.png")
    assert load_mask(path, image_size=(20, 30)).shape == (20, 30)
    with pytest.raises(DataError) as error:
        load_mask(path, size=(8, 8), image="photo.jpg", image_size=(21, 30))
    one_line(error, str(path), "photo.jpg", "30x20", "30x21")


# preprocessing


def test_preprocess_equals_the_formula() -> None:
    image = photo(30, 50)
    result = Preprocess(image_size=(24, 18))(image)
    assert result.dtype == np.float32 and result.shape == (3, 24, 18) and result.flags["C_CONTIGUOUS"]
    resized = np.asarray(image.resize((18, 24), Image.Resampling.BICUBIC), float) / 255
    expected = (resized - CLIP_MEAN) / CLIP_STD
    np.testing.assert_allclose(result, expected.transpose(2, 0, 1), atol=1e-5)
    grey = Preprocess(image_size=(24, 18), interpolation="bilinear")(image.convert("L"))
    assert grey.shape == (3, 24, 18)


def test_preprocess_round_trip_and_fingerprint() -> None:
    first = Preprocess(image_size=(24, 18), interpolation="bilinear")
    assert Preprocess.from_dict(first.to_dict()) == first
    assert len(first.fingerprint()) == 16
    others = [
        Preprocess((18, 24), interpolation="bilinear"),
        Preprocess((24, 18)),
        Preprocess((24, 18), std=(1, 1, 1), interpolation="bilinear"),
    ]
    assert len({p.fingerprint() for p in [first, *others]}) == 4
    assert hash(first) == hash(Preprocess.from_dict(first.to_dict()))


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"size": [4, 4]},
        {"image_size": 5},
        {"image_size": [0, 4]},
        {"image_size": [4, 4], "std": [0, 1, 1]},
        {"image_size": [4, 4], "mean": [1]},
        {"image_size": [4, 4], "interpolation": "nearest"},
    ],
)
def test_wrong_preprocess_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Preprocess.from_dict(wrong)


def test_bytes_read_as_the_file_does(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)).save(path)
    from_file, size = read_image(path)
    from_bytes, own = read_image(path.read_bytes())
    assert own == size == (20, 30)
    assert from_bytes.tobytes() == from_file.tobytes()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"not an image", "not an image"), (b"\x89PNG\r\n\x1a\n", "scan.png")],
)
def test_broken_bytes_are_named(content: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        read_image(content, name="scan.png")
    assert "scan.png" in str(caught.value)


def test_too_many_pixels_are_told_apart_before_decoding() -> None:
    stream = io.BytesIO()
    Image.new("1", (4000, 3000)).save(stream, format="PNG")
    with pytest.raises(TooManyPixelsError, match="4000x3000"):
        read_image(stream.getvalue(), reading=Reading(max_pixels=1_000_000))


@pytest.mark.parametrize("size", [(0, 8), (8.0, 8), (float("inf"), 8), (10**30, 10**30), (True, 8), (8,)])
def test_a_size_that_no_picture_has_is_refused_at_once(size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="image_size is") as caught:
        Preprocess(image_size=size)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mean", [("<b>", 0.0, 0.0), (None, 0.0, 0.0), (float("nan"), 0.0, 0.0), (0.0,)])
def test_means_that_are_no_numbers_are_refused(mean: tuple[float, float, float]) -> None:
    with pytest.raises(ConfigError, match="expected 3 numbers each"):
        Preprocess(image_size=(8, 8), mean=mean)
    with pytest.raises(ConfigError, match="expected 3 numbers each"):
        Preprocess(image_size=(8, 8), std=mean)
