"""What a command wrote into its folder, as data that can be compared and read."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zsad_golden.normalise import Normaliser

# Work files, whose form and names are the package's own business.
WORK = {
    "features",
    "claims",
    "faults",
    "cost",
    "cells",
    "runs",
    "workers",
    "masks.npz",
    "states.npz",
    "cells.json",
}
_TIMES = {"ms", "seconds", "ms per image", "MB"}


def read_outputs(
    folder: Path, normaliser: Normaliser, *, charts: bool = False, whole: bool = False
) -> dict[str, Any]:
    """Contents of all files below a folder, by their names.

    Args:
        folder: that a command wrote; a single file will do.
        normaliser: takes times and places out.
        charts: keep the texts in the drawings of pages, too; pictures in pages are never kept.
        whole: keep the cards of models.
    """
    files = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file())
    outputs = {}
    for path in files:
        name = path.name if path == folder else path.relative_to(folder).as_posix()
        if WORK.isdisjoint(name.split("/")) and not name.endswith(".lock"):
            outputs[normaliser.line(name)] = _read(path, normaliser, charts=charts, whole=whole)
    return dict(sorted(outputs.items()))


def overlay_names(folder: Path) -> Iterator[tuple[str, str]]:
    """Pairs of an overlay's name, which has a hash of the source's path in it, and a name without."""
    rows = folder / "predictions.jsonl"
    for line in rows.read_text(encoding="utf-8").splitlines() if rows.is_file() else ():
        row = json.loads(line)
        if row.get("overlay"):
            parts = Path(row["source"]).parts
            tail = "-".join(parts[parts.index("in") + 1 :] if "in" in parts else parts[-2:])
            yield row["overlay"].removeprefix("overlays/"), f"<overlay {tail}>"
        if isinstance(row.get("grid"), str):
            yield row["grid"].removeprefix("grids/"), f"<grid {Path(row['source']).name}>"


def _read(path: Path, normaliser: Normaliser, *, charts: bool, whole: bool) -> Any:
    kind = path.suffix.lower()
    if not path.stat().st_size:
        return "empty"
    if kind == ".json":
        return normaliser.data(json.loads(path.read_text(encoding="utf-8")), whole=whole)
    if kind == ".jsonl":
        return [normaliser.data(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    if kind == ".csv":
        return _table(path, normaliser)
    if kind in (".md", ".tex", ".txt"):
        return normaliser.lines(path.read_text(encoding="utf-8"))
    if kind == ".html":
        return normaliser.lines("\n".join(page_text(path.read_text(encoding="utf-8"), charts=charts)))
    if kind == ".npy":
        return summary(np.load(path))
    if kind == ".npz":
        with np.load(path) as arrays:
            return {name: summary(arrays[name]) for name in sorted(arrays.files)}
    if kind == ".safetensors":
        return tensors(path)
    if kind == ".parquet":
        import pyarrow.parquet

        rows = normaliser.data(pyarrow.parquet.read_table(path).to_pylist())
        return sorted(rows, key=lambda row: str(row.get("source")))
    if kind in (".jpg", ".png") and path.parent.name == "overlays":
        return summary(np.asarray(Image.open(path)))
    return "exists"


def _table(path: Path, normaliser: Normaliser) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    varying = {index for index, title in enumerate(rows[0]) if title in _TIMES} if rows else set()
    return [
        [
            "<time>" if place and index in varying and cell else normaliser.line(cell)
            for index, cell in enumerate(row)
        ]
        for place, row in enumerate(rows)
    ]


def summary(values: NDArray[Any]) -> dict[str, Any]:
    """Shape, type, hash and a few numbers of an array."""
    result: dict[str, Any] = {"shape": list(values.shape), "type": str(values.dtype)}
    if values.dtype.kind in "fiub" and values.size:
        wide = values.astype(np.float64)
        flat = wide.ravel()
        result["some"] = flat[:: max(1, flat.size // 4)][:5].tolist()
        result["mean"] = float(wide.mean())
        result["highest"] = float(wide.max())
    return {**result, "hash": "sha256:" + hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()}


def tensors(path: Path) -> dict[str, Any]:
    """Names, shapes and one hash of the tensors in a safetensors file, its metadata left out."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    digest, shapes = hashlib.sha256(), {}
    for name in sorted(header):
        first, last = header[name]["data_offsets"]
        digest.update(name.encode() + content[8 + length + first : 8 + length + last])
        shapes[name] = [header[name]["dtype"], *header[name]["shape"]]
    return {"tensors": shapes, "hash": "sha256:" + digest.hexdigest()}


def page_text(page: str, *, charts: bool) -> list[str]:
    """The text of an HTML page, a line for each run of it; rows of tables are one line."""
    parser = _Text(charts)
    parser.feed(page)
    return parser.lines


class _Text(HTMLParser):
    def __init__(self, charts: bool) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._hidden = {"style", "script"} if charts else {"style", "script", "svg"}
        self._depth = 0
        self._row: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._depth += tag in self._hidden
        if tag == "tr":
            self._row = []

    def handle_endtag(self, tag: str) -> None:
        self._depth -= tag in self._hidden
        if tag == "tr" and self._row is not None:
            self.lines.append(" | ".join(self._row))
            self._row = None

    def handle_data(self, data: str) -> None:
        text = " ".join(data.split())
        if text and not self._depth:
            (self.lines if self._row is None else self._row).append(text)
