"""What files claim is compared with bounds before any work: slow files, many pages and frames, memory."""

from __future__ import annotations

import base64
import os
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zsad.errors import ImageError, TooManyPixelsError, ZsadError
from zsad.images import picture as picture_module
from zsad.images import pixels as pixels_module
from zsad.images.decode import image_size, load_image, read_image
from zsad.images.inputs import expand_inputs
from zsad.images.open import IMAGE_SUFFIXES, open_picture
from zsad.images.pixels import Reading
from zsad.images.tiff_tags import MAX_PAGES

tifffile = pytest.importorskip("tifffile")


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def picture(height: int = 40, width: int = 60) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 255 / height, columns * 255 / width, rows * 0 + 90], axis=-1).astype(np.uint8)


def saved(path: Path, **options: object) -> bytes:
    Image.fromarray(picture()).save(path, **options)
    return path.read_bytes()


# files that are slow


def slow_files(folder: Path) -> dict[str, bytes]:
    png = saved(folder / "a.png")
    jpeg = saved(folder / "a.jpg")
    progressive = saved(folder / "p.jpg", progressive=True)
    scan = progressive.index(b"\xff\xda")
    following = progressive.index(b"\xff\xda", scan + 2)
    return {
        "chunks.png": png[:33] + chunk(b"tEXt", b"a\0b") * 300_000 + png[33:],
        "empty data chunks.png": png[:33] + chunk(b"IDAT") * 300_000 + png[33:],
        "fill.jpg": jpeg[:2] + b"\xff" * 3_000_000 + jpeg[2:],
        "rubbish.jpg": jpeg[:2] + b"\0" * 3_000_000 + jpeg[2:],
        "segments.jpg": jpeg[:2] + b"\xff\xfe\0\2" * 700_000 + jpeg[2:],
        "scans.jpg": progressive[:following] + progressive[scan:following] * 2000 + progressive[following:],
        "comment.ppm": b"P6\n#" + b"a" * 3_000_000 + b"\n60 40\n255\n" + picture().tobytes(),
        "comments.ppm": b"P6\n" + b"#\n" * 1_500_000 + b"60 40\n255\n" + picture().tobytes(),
        "tags.tif": b"II*\0\x08\0\0\0" + struct.pack("<H", 65535) + b"\0" * 65535 * 12,
    }


def test_slow_files_are_refused_at_once(tmp_path: Path) -> None:
    for name, content in slow_files(tmp_path).items():
        path = tmp_path / f"slow {name}"
        path.write_bytes(content)
        for source in (path, content):
            start = time.process_time()
            with pytest.raises(ImageError) as caught:
                load_image(source)
            assert time.process_time() - start < 0.5, name
            assert "\n" not in str(caught.value)


def test_sound_files_with_many_chunks_and_scans_are_read(tmp_path: Path) -> None:
    png, progressive = saved(tmp_path / "a.png"), saved(tmp_path / "a.jpg", progressive=True)
    texts = png[:33] + chunk(b"tEXt", b"a\0b") * 2000 + png[33:]
    np.testing.assert_array_equal(np.asarray(load_image(texts)), picture())
    assert load_image(progressive[:2] + b"\xff" * 20 + progressive[2:]).size == (60, 40)


# pages and frames


def chained(count: int, *, last: int = 0) -> bytes:
    """A TIFF of `count` directories without pixels."""
    following = [8 + 18 * number for number in range(1, count)] + [last]
    return b"II*\0\x08\0\0\0" + b"".join(struct.pack("<HHHLLL", 1, 256, 4, 1, 60, at) for at in following)


def test_many_pages_cost_no_time(tmp_path: Path) -> None:
    path = tmp_path / "pages.tif"
    path.write_bytes(chained(100_000))
    start = time.process_time()
    assert [sample.image for sample in expand_inputs([path])] == [path]
    for address in (path, f"{path}#2"):
        with pytest.raises(ImageError):
            load_image(address)
    with pytest.raises(ImageError, match=f"more than {MAX_PAGES:,} pages"):
        load_image(f"{path}#2")
    assert time.process_time() - start < 2
    path.write_bytes(chained(5, last=8))  # a circle
    assert len(expand_inputs([path])) == 5


def test_thumbnails_overviews_and_masks_are_no_pages(tmp_path: Path) -> None:
    path = tmp_path / "pyramid.tif"
    full, other = picture(), picture()[::-1].copy()
    with tifffile.TiffWriter(path) as writer:
        writer.write(full[::8, ::8].copy(), subfiletype=1)
        writer.write(full, subifds=2)
        for step in (2, 4):
            writer.write(full[::step, ::step].copy(), subfiletype=1)
        writer.write(full[..., 0] > 100, subfiletype=4)
        writer.write(other)
    assert [sample.image.name for sample in expand_inputs([path])] == ["pyramid.tif#1", "pyramid.tif#2"]
    for address, expected in {path: full, f"{path}#1": full, f"{path}#2": other}.items():
        assert image_size(address) == (40, 60)
        np.testing.assert_array_equal(np.asarray(load_image(address)), expected)
    with pytest.raises(ImageError, match="has 2 pages, there is no page 3"):
        load_image(f"{path}#3")


def dicom(path: Path, values: np.ndarray, **tags: object) -> Path:
    pydicom = pytest.importorskip("pydicom")
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = pydicom.uid.generate_uid()
    data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = (
        *values.shape,
        1,
        "MONOCHROME2",
    )
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    for name, value in tags.items():
        setattr(data, name, value)
    data.PixelData = values.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def test_dicom_is_known_by_its_content(tmp_path: Path) -> None:
    values = np.linspace(0, 4095, 2400).reshape(40, 60).astype(np.uint16)
    named = dicom(tmp_path / "named.dcm", values)
    expected = np.asarray(load_image(named))
    copies = ["cd/ST0/SE0/IM000001", "cd/1.2.840.113619.2.5", "cd/scan.IMA", "cd/really.png"]
    for name in copies:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(named.read_bytes())
        np.testing.assert_array_equal(np.asarray(load_image(path)), expected)
    for name in ("DICOMDIR", "README", "notes.1"):
        (tmp_path / "cd" / name).write_bytes(named.read_bytes() if name == "DICOMDIR" else b"text")
    found = sorted(sample.image.name for sample in expand_inputs([tmp_path / "cd"]))
    assert found == sorted(Path(name).name for name in copies)
    np.testing.assert_array_equal(np.asarray(load_image(named.read_bytes())), expected)
    with pytest.raises(ImageError, match=r"upload .*damaged"):
        read_image(named.read_bytes()[:600], name="upload")


@pytest.mark.parametrize("levels", ["depth", (5, 95)])
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_dicom_in_blocks_is_dicom_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, levels: object, kind: str
) -> None:
    from zsad.images import dicom as dicom_module

    values = np.random.default_rng(0).integers(0, 4095, (80, 60), dtype=np.uint16)
    reading = Reading(levels=levels)  # type: ignore[arg-type]
    window = {"WindowCenter": 900, "WindowWidth": 700, "RescaleSlope": 2, "RescaleIntercept": -9}
    for name, tags in {"plain": {}, "window": window}.items():
        path = dicom(tmp_path / f"{name}.dcm", values, PhotometricInterpretation=kind, **tags)
        whole = np.asarray(load_image(path, reading=reading), int)
        with monkeypatch.context() as patch:
            patch.setattr(dicom_module, "_BLOCK", 60 * 7)
            parts = np.asarray(load_image(path, reading=reading), int)
        assert np.abs(parts - whole).max() <= (
            0 if levels == "depth" else 8
        )  # percentiles of every nth value


@pytest.mark.parametrize("frames", [10**9, 20_000])
def test_frames_that_a_file_cannot_hold_are_no_work(tmp_path: Path, frames: int) -> None:
    path = dicom(tmp_path / "a.dcm", np.zeros((40, 60), np.uint16), NumberOfFrames=frames)
    start = time.process_time()
    assert len(expand_inputs([path])) == 1
    for source in (path, f"{path}#2", path.read_bytes()):
        with pytest.raises(ImageError, match="frames") as caught:
            load_image(source)
        assert "\n" not in str(caught.value)
    assert time.process_time() - start < 1


def test_the_list_of_suffixes_holds_what_can_be_read() -> None:
    Image.init()
    read = {"JPEG", "PNG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000", "AVIF"}
    known = {suffix for suffix, form in Image.registered_extensions().items() if form in read}
    assert known - {".pfm", ".jif", ".jpx"} <= IMAGE_SUFFIXES | {".jif"}


# large pictures, in pieces


@pytest.mark.parametrize("turn", range(1, 9))
def test_strips_give_what_the_whole_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turn: int) -> None:
    rng = np.random.default_rng(turn)
    deep = rng.integers(0, 4095, (150, 210, 3), dtype=np.uint16)
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray((deep >> 4).astype(np.uint8)).save(tmp_path / "a.png", exif=exif)
    tifffile.imwrite(
        tmp_path / "b.tif", deep, tile=(32, 48), compression="zlib", extratags=[(274, 3, 1, turn, True)]
    )
    tifffile.imwrite(
        tmp_path / "c.tif", deep, rowsperstrip=11, planarconfig="contig", extratags=[(274, 3, 1, turn, True)]
    )
    Image.fromarray(deep[..., 0]).save(tmp_path / "d.tif", compression="tiff_lzw", tiffinfo={274: turn})
    for path in sorted(tmp_path.iterdir()):
        for levels in ("depth", "full"):
            reading = Reading(levels=levels)  # type: ignore[arg-type]
            whole = load_image(path, reading=reading)
            with monkeypatch.context() as patch, open_picture(path, reading) as strips:
                patch.setattr(picture_module, "_STRIP_PIXELS", 3000)
                assert strips.rgb().tobytes() == whole.tobytes()
                resized = np.asarray(strips.resized((37, 41), Image.Resampling.BICUBIC), int)
                preview = strips.preview(50)
            expected = np.asarray(whole.resize((41, 37), Image.Resampling.BICUBIC), int)
            assert np.abs(resized - expected).max() <= (0 if turn == 1 else 1)
            small = whole.copy()
            small.thumbnail((50, 50), Image.Resampling.LANCZOS)
            assert np.abs(np.asarray(preview, int) - np.asarray(small)).max() <= 1


def test_decoders_that_would_take_too_much_are_refused_before_they_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.webp"
    Image.new("L", (600, 700)).convert("RGB").save(path)
    monkeypatch.setattr(pixels_module, "MAX_PIXELS", 1_200_000)
    with pytest.raises(TooManyPixelsError, match=r"7 MB to decode, at most 5 MB .*save it as"):
        load_image(path, reading=Reading(max_pixels=1_200_000))
    assert load_image(path, reading=Reading(max_pixels=2_000_000)).size == (600, 700)


_PEAK = """
import resource, sys
from PIL import Image
from zsad.images.open import IMAGE_SUFFIXES, open_picture
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with open_picture(sys.argv[1]) as picture:
    print(picture.resized((320, 320), Image.Resampling.BICUBIC).size, picture.preview(1024).size, file=sys.stderr)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) // 1024)
"""


@pytest.mark.parametrize(
    ("kind", "most"), [("strips", 130), ("tiles", 150), ("deep", 190), ("one strip", 190), ("jpeg", 200)]
)
def test_memory_does_not_grow_with_the_picture(tmp_path: Path, kind: str, most: int) -> None:
    path = tmp_path / ("large.jpg" if kind == "jpeg" else "large.tif")
    values = np.zeros(
        (4000, 5000, 3), np.uint16 if kind == "deep" else np.uint8
    )  # 20 megapixels, 80 MB as Pillow has it
    values[::50] = 200
    if kind == "jpeg":
        Image.fromarray(values).save(path)
    else:
        options = {"tiles": {"tile": (256, 256)}, "one strip": {"rowsperstrip": 4000}}.get(
            kind, {"rowsperstrip": 64}
        )
        tifffile.imwrite(path, values, compression="zlib", compressionargs={"level": 1}, **options)
    run = subprocess.run(
        [sys.executable, "-c", _PEAK, str(path)], capture_output=True, text=True, env=os.environ, check=True
    )
    assert int(run.stdout) < most


# 8 x 8 pixels of 12 bits in JPEG 2000 of 16 bits, which Pillow cannot write: OpenJPEG 2.5.4, lossless.
_DIM_JPEG2000 = (
    "/0//UQAvAAAAAAAIAAAACAAAAAAAAAAAAAAACAAAAAgAAAAAAAAAAAADDwEBDwEBDwEB/1IADAAAAAEBAAQEAAH/XAAEQID/"
    "ZAAlAAFDcmVhdGVkIGJ5IE9wZW5KUEVHIHZlcnNpb24gMi41LjT/kAAKAAAAAAEKAAH/k8/8MYwRUFSvgz1kIAF+DvJBbHyc"
    "HkmrZUMfCLFBB/IQ7Cn91VVVVVVVSiIAAAAAAAAfFKYYgT3IYP+IidEHDZpnqNG2JJ0RaOboVNZMyFBwpibeLTtpjY3Dy8vL"
    "y8vOqZ4AAAAAAAHB/hKAFABKdxtbVK2aD3mM97fPjPK8bWSXHGEVQD4BDjiKmqEFRNn2hq1GFcdoWU1bbMaKwDcN6sbimFdJ"
    "1vraXVtLw4bDYbDYbDYj03/B/hDAK+pfmJVnVJFqG/+AnATWBcmDVeR/+9V4v0JIwaxf+Eh2VALYro1vYGysXAHmISGhWfkq"
    "W5s2KtHQNaynZ1L/HRTBL//Z"
)


def test_colours_that_would_come_out_black_are_refused() -> None:
    content = base64.b64decode(_DIM_JPEG2000)
    with pytest.raises(ImageError, match="JPEG 2000 is read with 8: save it as PNG or TIFF"):
        load_image(content)


def test_running_out_of_memory_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    saved(path)

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "crop", fail)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(ZsadError, match="does not fit into memory") as caught:
        load_image(path)
    assert "\n" not in str(caught.value)
