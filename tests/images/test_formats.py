"""Pages, depths, transparency, DICOM windows and videos, good ones and broken ones."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zsad.errors import ConfigError, ImageError, ZsadError
from zsad.images.decode import image_size, load_image, read_image
from zsad.images.inputs import expand_inputs
from zsad.images.open import numbered, split_address
from zsad.images.pixels import Reading


def grey(value: int, size: tuple[int, int] = (20, 16)) -> Image.Image:
    return Image.new("L", size, value)


def one_line(caught: pytest.ExceptionInfo[ZsadError]) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


# pages


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    path = tmp_path / "scan.tif"
    grey(10).save(path, save_all=True, append_images=[grey(20, (24, 16)), grey(30)])
    return path


def test_pages_have_addresses(pages: Path) -> None:
    assert [sample.image.name for sample in expand_inputs([pages.parent])] == [
        "scan.tif#1",
        "scan.tif#2",
        "scan.tif#3",
    ]
    for number, value in enumerate((10, 20, 30), 1):
        address = numbered(pages, number)
        assert np.asarray(load_image(address)).max() == value
        assert image_size(address) == (16, 24 if number == 2 else 20)
    assert np.asarray(load_image(pages)).max() == 10  # the file alone is its first page


def test_pages_that_are_not_there(pages: Path) -> None:
    with pytest.raises(ImageError, match=r"scan.tif has 3 pages, there is no page 4") as caught:
        load_image(f"{pages}#4")
    one_line(caught)
    with pytest.raises(ImageError, match="does not exist"):
        load_image(f"{pages}#0")


def test_a_file_may_be_called_like_an_address(tmp_path: Path) -> None:
    grey(1).save(tmp_path / "part.png")
    grey(2).save(tmp_path / "part.png#2", format="PNG")
    assert np.asarray(load_image(tmp_path / "part.png#2")).max() == 2
    assert split_address(tmp_path / "part.png#3") == (tmp_path / "part.png", 3)


def test_a_damaged_page_is_one_line(pages: Path) -> None:
    pages.write_bytes(pages.read_bytes()[:-40])
    for number in (1, 2, 3):
        try:
            load_image(f"{pages}#{number}")
        except ImageError as error:
            assert "\n" not in str(error)


# depth and transparency


def test_levels_full_and_percentiles(tmp_path: Path) -> None:
    values = np.linspace(0, 3000, 20 * 16).reshape(16, 20).astype(np.uint16)
    values[0, 0] = 65535  # a hot pixel
    path = tmp_path / "deep.tif"
    Image.fromarray(values).save(path)

    def read(levels: object) -> np.ndarray:
        return np.asarray(load_image(path, reading=Reading(levels=levels)))[..., 0]  # type: ignore[arg-type]

    np.testing.assert_allclose(read("full"), np.rint(values / 257.0), atol=1)
    low, high = np.percentile(values, (1, 99))
    expected = np.clip((values - low) / (high - low), 0, 1) * 255
    np.testing.assert_allclose(read((1, 99)), expected, atol=0.51)
    flat = np.full((16, 20), 700, np.uint16)
    assert np.asarray(load_image(flat, reading=Reading(levels=(1, 99)))).max() == 0
    floats = np.linspace(-5, 5, 320).reshape(16, 20)
    assert np.asarray(load_image(floats, reading=Reading(levels=(0, 100)))).max() == 255


def test_matte() -> None:
    clear = Image.new("RGBA", (20, 16), (9, 9, 9, 0))
    assert np.asarray(load_image(clear)).min() == 255
    assert np.asarray(load_image(clear, reading=Reading(matte="black"))).max() == 0


@pytest.mark.parametrize(
    "wrong",
    [{"levels": (5, 5)}, {"levels": "auto"}, {"matte": "pink"}, {"window": (40, 0)}, {"max_pixels": 0}],
)
def test_impossible_readings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        Reading(**wrong)  # type: ignore[arg-type]
    one_line(caught)


# DICOM


def write_dicom(path: Path, values: np.ndarray, **tags: object) -> Path:
    pydicom = pytest.importorskip("pydicom")
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = pydicom.uid.generate_uid()
    frames = values.shape[0] if values.ndim == 3 else 1
    data.Rows, data.Columns = values.shape[-2:]
    data.NumberOfFrames = frames
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, int(values.dtype.kind == "i")
    for name, value in tags.items():
        setattr(data, name, value)
    data.PixelData = values.tobytes()
    data.save_as(path, enforce_file_format=True)
    return path


def test_dicom_windows_follow_the_standard(tmp_path: Path) -> None:
    values = np.linspace(0, 2000, 16 * 20).reshape(16, 20).astype(np.int16)
    tags = {
        "RescaleSlope": 2,
        "RescaleIntercept": -1024,
        "WindowCenter": [40, 400],
        "WindowWidth": [400, 1500],
    }
    path = write_dicom(tmp_path / "ct.dcm", values, **tags)
    units = values * 2.0 - 1024

    def expected(centre: float, width: float) -> np.ndarray:
        inner = ((units - (centre - 0.5)) / (width - 1) + 0.5) * 255
        return np.rint(np.clip(inner, 0, 255))

    found, size = read_image(path)
    assert size == (16, 20) == image_size(path)
    np.testing.assert_allclose(np.asarray(found)[..., 0], expected(40, 400), atol=1)
    bone = load_image(path, reading=Reading(window=(300, 1500)))
    np.testing.assert_allclose(np.asarray(bone)[..., 0], expected(300, 1500), atol=1)
    inverse = write_dicom(tmp_path / "x.dcm", values, PhotometricInterpretation="MONOCHROME1", **tags)
    np.testing.assert_allclose(np.asarray(load_image(inverse))[..., 0], 255 - expected(40, 400), atol=1)


def test_dicom_without_a_window_and_with_frames(tmp_path: Path) -> None:
    values = np.stack([np.arange(320).reshape(16, 20) * n for n in (1, 2)]).astype(np.uint16)
    path = write_dicom(tmp_path / "two.dcm", values)
    assert [sample.image.name for sample in expand_inputs([tmp_path])] == ["two.dcm#1", "two.dcm#2"]
    for number in (1, 2):
        shown = np.asarray(load_image(numbered(path, number)))
        assert shown.min() == 0 and shown.max() == 255
    with pytest.raises(ImageError, match="2 frames, there is no frame 3"):
        load_image(f"{path}#3")
    bare = path.rename(tmp_path / "NOSUFFIX")
    assert load_image(bare).size == (20, 16)


def test_broken_dicom_is_one_line(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", np.zeros((16, 20), np.uint16))
    content = path.read_bytes()
    for cut in (10, 140, len(content) // 2, len(content) - 50):
        path.write_bytes(content[:cut])
        with pytest.raises(ImageError) as caught:
            load_image(path)
        assert str(path) in one_line(caught)


# videos


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    av = pytest.importorskip("av")
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 10)
        for number in range(12):
            frame = av.VideoFrame.from_image(Image.new("RGB", (64, 48), (20 * number,) * 3))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_frames_come_in_order_with_their_time(clip: Path) -> None:
    from zsad.images.video import iter_frames

    frames = list(iter_frames(clip, every=5))
    assert [frame.number for frame in frames] == [1, 6, 11]
    np.testing.assert_allclose([frame.seconds for frame in frames], [0, 0.5, 1.0], atol=1e-3)
    for frame in frames:
        assert abs(np.asarray(frame.image).mean() - 20 * (frame.number - 1)) < 4
    assert np.abs(np.asarray(load_image(f"{clip}#6")).astype(int) - np.asarray(frames[1].image)).max() == 0


def test_videos_that_cannot_be_read(clip: Path, tmp_path: Path) -> None:
    from zsad.images.video import iter_frames

    broken = tmp_path / "cut.mp4"
    content = clip.read_bytes()
    for part in (b"", b"nonsense" * 9, content[:200], content[: len(content) // 2]):
        broken.write_bytes(part)
        with pytest.raises(ImageError) as caught:
            list(iter_frames(broken))
        assert str(broken) in one_line(caught)
    with pytest.raises(ImageError, match="no such file"):
        list(iter_frames(tmp_path / "none.mp4"))
    with pytest.raises(ConfigError, match="every is 0"):
        list(iter_frames(clip, every=0))
    with pytest.raises(ImageError, match="has 12 frames, there is no frame 13"):
        load_image(f"{clip}#13")
