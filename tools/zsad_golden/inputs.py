"""Pictures, masks and data sets, drawn with fixed seeds, so that every machine has the same files."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


def draw_part(
    seed: int, *, size: tuple[int, int] = (80, 96), shape: str = "disc", defect: bool = False
) -> tuple[Pixels, Pixels]:
    """A part on a noisy ground, with a dark cut where it has a defect; the picture (H, W, 3) and the mask (H, W)."""
    rng = np.random.default_rng(seed)
    height, width = size
    y, x = np.mgrid[:height, :width]
    if shape == "disc":
        part = (y - height / 2) ** 2 + (x - width / 2) ** 2 < (0.36 * min(size)) ** 2
    else:
        part = (abs(y - height / 2) < 0.3 * height) & (abs(x - width / 2) < 0.4 * width)
    picture = np.full((height, width, 3), (188.0, 192.0, 180.0))
    picture[part] = (104.0, 118.0, 132.0) if shape == "disc" else (150.0, 110.0, 76.0)
    mask = np.zeros(size, np.uint8)
    if defect:
        top, left = (round(float(rng.uniform(0.35, 0.5)) * side) for side in size)
        mask[top : top + height // 8 + 1, left : left + width // 6 + 1] = 255
        picture[mask > 0] = (24.0, 18.0, 16.0)
    picture += rng.normal(0, 5, picture.shape)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8), mask


def save(pixels: NDArray[np.generic], path: Path, **options: object) -> None:
    """Writes an array as a picture and makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)  # type: ignore[arg-type]


def draw_set(folder: Path, classes: dict[str, str], *, seed: int, size: tuple[int, int] = (80, 96)) -> None:
    """A set in MVTec's layout: for each class two good test images, two with a cut and its mask, two of train/."""
    for number, (name, shape) in enumerate(classes.items()):
        start = seed + 100 * number
        for index in range(2):
            good, _ = draw_part(start + index, size=size, shape=shape)
            cut, mask = draw_part(start + 10 + index, size=size, shape=shape, defect=True)
            save(good, folder / name / "test" / "good" / f"{index:03d}.png")
            save(cut, folder / name / "test" / "cut" / f"{index:03d}.png")
            save(mask, folder / name / "ground_truth" / "cut" / f"{index:03d}_mask.png")
            train, _ = draw_part(start + 20 + index, size=size, shape=shape)
            save(train, folder / name / "train" / "good" / f"{index:03d}.png")


def draw_inputs(folder: Path) -> None:
    """Everything that the cases read."""
    _draw_kinds(folder / "kinds")
    for index in range(4):
        picture, _ = draw_part(40 + index, size=(64 + 8 * index, 88), defect=index % 2 == 1)
        save(picture, folder / "parts" / f"part{index}.png")
    for index in range(24):
        save(draw_part(60 + index)[0], folder / "normals" / f"{index:02d}.png")
    for index in range(12):
        picture, _ = draw_part(300 + index, size=(80, 96), shape="plate", defect=True)
        save(picture, folder / "shifted" / f"{index:02d}.png")
    large = np.concatenate(
        [np.concatenate([draw_part(90 + 3 * row + column, size=(240, 280))[0] for column in range(3)], 1)
         for row in range(3)]
    )  # fmt: skip
    large[300:316, 420:470] = 12
    save(large, folder / "large" / "panel.png")
    draw_set(folder / "mini", {"disc": "disc", "metal_plate": "plate"}, seed=1000)
    draw_set(folder / "auxiliary", {"washer": "disc"}, seed=2000, size=(72, 72))
    draw_set(folder / "target", {"board": "plate"}, seed=3000, size=(64, 96))
    mixed = folder / "mixed"
    save(draw_part(50, defect=True)[0], mixed / "good.png")
    content = (mixed / "good.png").read_bytes()
    (mixed / "broken.png").write_bytes(content[: len(content) // 3])
    (mixed / "empty.png").write_bytes(b"")
    (mixed / "text.jpg").write_text("not a picture\n")
    roi = {"polygons": [[[8, 8], [88, 8], [88, 70], [8, 70]]], "size": [80, 96]}
    (folder / "roi.json").write_text(json.dumps(roi))
    ignored = np.zeros((80, 96), np.uint8)
    ignored[:24, :40] = 255
    save(ignored, folder / "ignored.png")
    _break_set(folder)
    _empty_one(folder)
    if find_spec("av") is not None:
        _draw_video(folder / "film" / "belt.mkv")
    if find_spec("pydicom") is not None:
        _draw_dicom(folder / "dicom" / "slice.dcm")


def _draw_kinds(folder: Path) -> None:
    """A file of each kind: colours, grey, 16 bits, transparency, palette, EXIF rotation, JPEG, two pages of TIFF."""
    colours, _ = draw_part(1, defect=True)
    grey = colours[..., 1]
    save(colours, folder / "colours.png")
    save(grey, folder / "grey.png")
    deep = grey.astype(np.uint16) * 13 + np.random.default_rng(2).integers(0, 13, grey.shape, np.uint16)
    save(deep.astype(np.uint16), folder / "deep.png")
    alpha = np.where(np.mgrid[:80, :96][1] < 20, 0, 255).astype(np.uint8)
    save(np.dstack([colours, alpha]), folder / "transparent.png")
    Image.fromarray(colours).quantize(16).save(folder / "palette.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    save(colours, folder / "turned.jpg", quality=95, exif=exif)
    pages = [Image.fromarray(draw_part(seed, defect=seed == 6)[0]) for seed in (5, 6)]
    pages[0].save(folder / "pages.tif", save_all=True, append_images=pages[1:])


def _break_set(folder: Path) -> None:
    """A copy of the small set with a missing mask, a mask of another size, a twin and a broken file."""
    copy = folder / "faulty"
    shutil.copytree(folder / "mini", copy)
    disc = copy / "disc"
    (disc / "ground_truth" / "cut" / "000_mask.png").unlink()
    save(np.full((40, 40), 255, np.uint8), disc / "ground_truth" / "cut" / "001_mask.png")
    shutil.copy(disc / "test" / "good" / "000.png", copy / "metal_plate" / "test" / "good" / "002.png")
    (copy / "metal_plate" / "test" / "cut" / "000.png").write_bytes(b"")


def _empty_one(folder: Path) -> None:
    """A copy of the small set with an empty file and a class without masks."""
    copy = folder / "holes"
    shutil.copytree(folder / "mini", copy)
    shutil.rmtree(copy / "disc" / "ground_truth")
    (copy / "metal_plate" / "test" / "cut" / "000.png").write_bytes(b"")


def _draw_video(path: Path) -> None:
    """Six frames without loss."""
    import av

    path.parent.mkdir(parents=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.width, stream.height, stream.pix_fmt = 96, 80, "bgr0"
        for index in range(6):
            frame = av.VideoFrame.from_ndarray(draw_part(20 + index, defect=index == 3)[0], format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _draw_dicom(path: Path) -> None:
    """A slice of 16 bits with a window of its own."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    path.parent.mkdir(parents=True)
    grey = draw_part(7, defect=True)[0][..., 0].astype(np.uint16)
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3.4"
    data.Modality, data.PatientID = "CT", "drawn"
    data.Rows, data.Columns = grey.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.RescaleSlope, data.RescaleIntercept = 1, -100
    data.WindowCenter, data.WindowWidth = 60, 200
    data.PixelData = grey.tobytes()
    data.save_as(path, enforce_file_format=True)
