"""Sound inputs to be broken: pictures of every format, a tiny model with all its files, listings of a data set."""

from __future__ import annotations

import io
import json
import struct
import zlib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def _saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format=kind, **options)
    return stream.getvalue()


def pictures() -> dict[str, bytes]:
    """Small pictures of every format by a name with the right suffix; DICOM where pydicom is installed."""
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)).resize((112, 80))
    deep = Image.fromarray(rng.integers(0, 65536, (48, 64), dtype=np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    pages = [colour.rotate(90 * turn) for turn in range(3)]
    more: dict[str, Any] = {"save_all": True, "append_images": pages[1:]}
    found = {
        "plain.png": _saved(colour, "PNG"),
        "deep.png": _saved(deep, "PNG"),
        "palette.png": _saved(colour.convert("P"), "PNG", transparency=3),
        "alpha.png": _saved(colour.convert("RGBA"), "PNG"),
        "bits.png": _saved(colour.convert("1"), "PNG"),
        "bomb.png": bomb(),
        "plain.jpg": _saved(colour, "JPEG", exif=exif),
        "steps.jpg": _saved(colour, "JPEG", progressive=True),
        "ink.jpg": _saved(colour.convert("CMYK"), "JPEG"),
        "plain.tif": _saved(colour, "TIFF"),
        "lzw.tif": _saved(colour, "TIFF", compression="tiff_lzw"),
        "jpeg.tif": _saved(colour, "TIFF", compression="jpeg"),
        "deep.tif": _saved(deep, "TIFF"),
        "float.tif": _saved(deep.convert("F"), "TIFF"),
        "pages.tiff": _saved(pages[0], "TIFF", **more),
        "plain.bmp": _saved(colour, "BMP"),
        "palette.bmp": _saved(colour.convert("P"), "BMP"),
        "plain.webp": _saved(colour, "WEBP"),
        "lossless.webp": _saved(colour, "WEBP", lossless=True),
        "moving.gif": _saved(pages[0].convert("P"), "GIF", **more),
        "plain.ppm": _saved(colour, "PPM"),
    }
    scan = _scan(rng)
    return found if scan is None else {**found, "scan.dcm": scan}


def bomb() -> bytes:
    """A PNG of few bytes that claims four thousand million pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", 65_000, 65_000, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def _scan(rng: np.random.Generator) -> bytes | None:
    """A CT slice of 16 bits in DICOM."""
    try:
        from pydicom.dataset import FileDataset, FileMetaDataset
        from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
    except ImportError:
        return None
    head = FileMetaDataset()
    head.MediaStorageSOPClassUID, head.MediaStorageSOPInstanceUID = CTImageStorage, "1.2.3"
    head.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=head, preamble=bytes(128))
    data.SOPClassUID, data.SOPInstanceUID, data.Modality = CTImageStorage, "1.2.3", "CT"
    data.Rows, data.Columns, data.SamplesPerPixel = 48, 64, 1
    data.PhotometricInterpretation, data.PixelRepresentation = "MONOCHROME2", 1
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.RescaleSlope, data.RescaleIntercept, data.WindowCenter, data.WindowWidth = 1, -1024, 40, 400
    data.PixelData = rng.integers(0, 2000, (48, 64)).astype("<i2").tobytes()
    stream = io.BytesIO()
    data.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


@dataclass(frozen=True)
class Sound:
    """Folders and files that are as they should be.

    Attributes:
        model: run folder with `calibration.json` in it.
        backbone: of that run.
        images: normal ones.
        references: a memory of their patches.
        export: folder of the model as an ONNX graph; None where that was not made.
        data: folder of a data set: normal and defective images and masks.
    """

    model: Path
    backbone: Path
    images: Path
    references: Path
    export: Path | None
    data: Path


def rows(data: Path) -> list[dict[str, Any]]:
    """The rows of a manifest of `data`, which lies beside the folder."""
    listed = []
    for picture in sorted(data.glob("*/test/*/*.png")):
        kind = picture.parent.name
        mask = data / picture.parts[-4] / "ground_truth" / kind / f"{picture.stem}_mask.png"
        listed.append(
            {
                "image": picture.relative_to(data.parent).as_posix(),
                "mask": mask.relative_to(data.parent).as_posix() if mask.exists() else "",
                "label": "0" if kind == "good" else "1",
                "class": picture.parts[-4],
                "kind": kind,
            }
        )
    return listed


def listings(data: Path) -> dict[str, str]:
    """The same data set as JSONL, CSV and meta.json; to be written beside its folder."""
    found = rows(data)
    names = list(found[0])
    meta: dict[str, dict[str, list[dict[str, Any]]]] = {"train": {}, "test": {}}
    for row in found:
        entry = {"img_path": row["image"], "mask_path": row["mask"], "cls_name": row["class"]}
        entry |= {"specie_name": row["kind"], "anomaly": int(row["label"])}
        meta["test"].setdefault(row["class"], []).append(entry)
    table = [",".join(names), *(",".join(row[name] for name in names) for row in found)]
    return {
        "list.jsonl": "\n".join(json.dumps(row) for row in found) + "\n",
        "list.csv": "\n".join(table) + "\n",
        "meta.json": json.dumps(meta),
    }


RECIPES = """\
[common.training]
epochs = 1
batch_size = 4

[promptmoe.settings]
experts = 4
top_k = 2
"""


def catalogue() -> str:
    """The first set of the catalogue that ships, as a catalogue of its own."""
    text = (files("zsad.datasets") / "catalog.toml").read_text("utf-8")
    return "[[sets]]" + text.split("[[sets]]")[1]
