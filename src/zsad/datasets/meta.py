"""Writing of `meta.json` as AnomalyCLIP's loaders and those after it read it; `zsad.datasets.listings` reads it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from zsad.datasets.manifest import DataSet, discover
from zsad.errors import DataError
from zsad.files import write_json
from zsad.types import Sample

Meta = dict[str, dict[str, list[dict[str, Any]]]]


def write_meta(root: Path, out: Path, *, split: str = "test") -> Meta:
    """Write the samples of `root` to `out`: by part ("train" where there is one, `split`) and class, sorted by path.

    Raises:
        DataError: nothing usable in `root`, or samples without label or on another drive than `out`.
        StorageError: `out` cannot be written.
    """
    test = discover(root, split=split)
    parts = {split: test}
    if split != "train" and (train := _training_part(root, test)) is not None:
        parts = {"train": train, split: test}
    meta = {
        part: {
            name: [
                _entry(sample, name, out.parent) for sample in sorted(group, key=lambda s: s.image.as_posix())
            ]
            for name, group in data.groups().items()
        }
        for part, data in parts.items()
    }
    write_json(out, {"train": {}, **meta})
    return meta


def _training_part(root: Path, test: DataSet) -> DataSet | None:
    """Return the part "train", None where the layout has none: then the same images come again."""
    try:
        train = discover(root, split="train")
    except DataError:
        return None
    same = {sample.image for sample in test.samples}
    return None if any(sample.image in same for sample in train.samples) or not train.has_labels else train


def _entry(sample: Sample, class_name: str, base: Path) -> dict[str, Any]:
    if sample.label is None:
        raise DataError(
            f"{sample.image} has no label, a meta.json says of every image whether it is anomalous: sort images into "
            "good and other folders, or write a manifest with a column label"
        )
    return {
        "img_path": _relative(sample.image, base),
        "mask_path": "" if sample.mask is None else _relative(sample.mask, base),
        "cls_name": class_name,
        "specie_name": sample.kind,
        "anomaly": sample.label,
    }


def _relative(path: Path, base: Path) -> str:
    try:
        return Path(os.path.relpath(path, base)).as_posix()
    except ValueError as error:
        raise DataError(
            f"{path} lies on another drive than {base}: write the meta.json beside the data"
        ) from error
