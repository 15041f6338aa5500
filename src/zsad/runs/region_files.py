"""Regions of a finished run in files that other programs read: JSONL, CSV, COCO and Label Studio.

Coordinates are pixels of the original image from its upper left corner; Label Studio's are per cent of its sides.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import quote

from zsad.errors import ConfigError
from zsad.files import write_bytes
from zsad.runs.store import read_rows, read_run_file

RegionFormat = Literal["jsonl", "csv", "coco", "labelstudio"]
FORMATS: tuple[RegionFormat, ...] = get_args(RegionFormat)
CATEGORY = "anomaly"

Row = dict[str, Any]

_COLUMNS = (
    "source",
    "region",
    "x",
    "y",
    "width",
    "height",
    "area",
    "score",
    "mean",
    "peak_x",
    "peak_y",
    "polygon",
)


def write_regions(folder: str | Path, formats: Sequence[str]) -> list[Path]:
    """Writes regions.jsonl, regions.csv, regions.coco.json, regions.labelstudio.json; as many as asked for.

    Args:
        folder: of a run with a pixel threshold.
        formats: some of `FORMATS`.

    Raises:
        ConfigError: an unknown format.
        DataError: the folder holds no run.
        StorageError: the disk is full or cannot be written.
    """
    check_formats(formats)
    folder = Path(folder)
    run = read_run_file(folder)
    rows = [row for row in read_rows(folder) if "error" not in row]
    written = []
    for name in dict.fromkeys(formats):
        file_name, make = _WRITERS[name]
        path = folder / file_name
        write_bytes(path, make(rows, run).encode("utf-8", "backslashreplace"))
        written.append(path)
    return written


def check_formats(formats: Sequence[str]) -> None:
    """ConfigError where a format is not known."""
    for name in formats:
        if name not in _WRITERS:
            raise ConfigError(f"regions cannot be written as {name!r}, expected some of {', '.join(FORMATS)}")


def _regions(rows: Sequence[Row]) -> Iterator[tuple[int, Row, int, Row]]:
    """(number of the image, its row, number of the region in it, the region), all from 1."""
    for image, row in enumerate(rows, 1):
        for number, region in enumerate(row.get("regions", ()), 1):
            yield image, row, number, region


def _jsonl(rows: Sequence[Row], run: Row) -> str:
    lines = (
        json.dumps({"source": row["source"], "size": row["size"], "region": number, **region})
        for _, row, number, region in _regions(rows)
    )
    return "".join(f"{line}\n" for line in lines)


def _csv(rows: Sequence[Row], run: Row) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(_COLUMNS)
    for _, row, number, region in _regions(rows):
        outline = " ".join(f"{x:g},{y:g}" for x, y in region["polygon"])
        numbers = (*region["box"], region["area"], region["score"], region["mean"], *region["peak"])
        table.writerow([row["source"], number, *numbers, outline])
    return text.getvalue()


def _coco(rows: Sequence[Row], run: Row) -> str:
    """COCO's object detection layout; images without regions are listed, too."""
    annotations = [
        {
            "id": number,
            "image_id": image,
            "category_id": 1,
            "bbox": region["box"],
            "segmentation": [[part for point in region["polygon"] for part in point]],
            "area": region["area"],
            "iscrowd": 0,
            "score": region["score"],
        }
        for number, (image, _, _, region) in enumerate(_regions(rows), 1)
    ]
    images = [
        {"id": number, "file_name": row["source"], "height": row["size"][0], "width": row["size"][1]}
        for number, row in enumerate(rows, 1)
    ]
    document = {
        "info": {"description": f"regions found by zsad, model {run.get('model_name', '')}"},
        "licenses": [],
        "categories": [{"id": 1, "name": CATEGORY, "supercategory": ""}],
        "images": images,
        "annotations": annotations,
    }
    return json.dumps(document, indent=1) + "\n"


def _label_studio(rows: Sequence[Row], run: Row) -> str:
    """Tasks with predictions, for Label Studio's import; images are served by its local-files storage."""
    tasks = [
        {
            "data": {
                "image": "/data/local-files/?d=" + quote(row["source"].lstrip("/"), errors="surrogatepass")
            },
            "predictions": [
                {
                    "model_version": str(run.get("model_name", "zsad")),
                    "score": row["score"],
                    "result": [
                        _polygon(row, region, number) for number, region in enumerate(row.get("regions", ()))
                    ],
                }
            ],
        }
        for row in rows
    ]
    return json.dumps(tasks, indent=1) + "\n"


def _polygon(row: Row, region: Row, number: int) -> Row:
    height, width = row["size"]
    points = [[round(100 * x / width, 4), round(100 * y / height, 4)] for x, y in region["polygon"]]
    return {
        "id": f"region{number + 1}",
        "type": "polygonlabels",
        "from_name": "label",
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": region["score"],
        "value": {"points": points, "closed": True, "polygonlabels": [CATEGORY]},
    }


_WRITERS: dict[str, tuple[str, Callable[[Sequence[Row], Row], str]]] = {
    "jsonl": ("regions.jsonl", _jsonl),
    "csv": ("regions.csv", _csv),
    "coco": ("regions.coco.json", _coco),
    "labelstudio": ("regions.labelstudio.json", _label_studio),
}
