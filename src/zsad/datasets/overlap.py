"""Overlap of a model's training images with a data set: by the names in its card, and by the content of image files.

A card keeps a 64-bit tag of each training image: 16 bits that depend on the file's size, which cost nothing to
look up, and 48 bits of the SHA-256 of its bytes, read only where the size bits are known. Copies and renamed files
are found; files that were encoded anew are not: `zsad data check --against` compares decoded pixels.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from zsad.datasets.catalog import Catalogue, bundled
from zsad.datasets.words import letters
from zsad.errors import DataError
from zsad.files import content_hash

if TYPE_CHECKING:
    from zsad.card import Card
    from zsad.datasets.manifest import DataSet

MAX_TAGS = 65_536
"""Tags that a card keeps at most (700 kB of text): of more images those with the smallest content bits."""

_SIZE_BITS, _CONTENT_BITS = 16, 48
_CONTENT = np.uint64((1 << _CONTENT_BITS) - 1)
_PARTS = ("train", "test", "val", "validation")
_PARENTS = 2  # of a data folder that are looked up in the catalogue: SET/class/test


@dataclass(frozen=True, slots=True)
class Overlap:
    """The part of a data set that a model has seen.

    Attributes:
        names: sets that it was trained on and that are, or share images with, the data set.
        images: the data set's files that it was trained on, by content.
        total: images of the data set.
    """

    names: tuple[str, ...] = ()
    images: tuple[Path, ...] = ()
    total: int = 0

    def __bool__(self) -> bool:
        return bool(self.names or self.images)

    def sentence(self) -> str:
        """Return the overlap in words: "was trained on MVTec" or "was trained on 3 of its 120 images (a.png ...)"."""
        parts = [", ".join(self.names)] if self.names else []
        if self.images:
            more = " ..." if len(self.images) > 1 else ""
            parts.append(f"{len(self.images)} of these {self.total} images ({self.images[0]}{more})")
        return f"was trained on {' and on '.join(parts)}" if parts else ""


def overlap_of(card: Card, dataset: DataSet, *, catalog: Catalogue | None = None) -> Overlap:
    """Return the part of a data set that the model of a card, its backbone included, has seen.

    Args:
        card: of the model; one without training has at most a backbone that has seen something.
        dataset: to be measured on.
        catalog: for aliases and for sets that share images; None takes the bundled one.
    """
    book = bundled() if catalog is None else catalog
    targets = names_of(dataset, catalog=book)
    trained = card.training.datasets if card.training else ()
    names = [name for name in trained if any(_same(name, target, book) for target in targets)]
    for target in targets:
        entry = book.get(target)
        if entry is not None and card.backbone.name in entry.pretrained:
            names.append(f"{entry.name} (its backbone {card.backbone.name})")
    tags = unpack_tags(card.training.images) if card.training else np.empty(0, np.uint64)
    images = tuple(seen_images((sample.image for sample in dataset.samples), tags))
    return Overlap(tuple(dict.fromkeys(names)), images, len(dataset.samples))


def check_unseen(card: Card, dataset: DataSet, *, model: str, allow_seen: bool = False) -> Overlap:
    """The overlap of a model with a data set, if there may be one.

    Raises:
        DataError: the model has seen some of it and `allow_seen` is off.
    """
    overlap = overlap_of(card, dataset)
    if overlap and not allow_seen:
        raise DataError(
            f"{model} {overlap.sentence()}: on {dataset.name} it would not be measured zero-shot; choose another "
            "model or data set, or mark the result with --allow-seen"
        )
    return overlap


def names_of(dataset: DataSet, *, catalog: Catalogue | None = None) -> tuple[str, ...]:
    """Names that a data set goes by: those of its samples, and that of a known set that its folder is part of."""
    book = bundled() if catalog is None else catalog
    folder = dataset.root.resolve()
    named = sorted({sample.dataset for sample in dataset.samples if sample.dataset}) or [dataset.name]
    # Every set has a folder "test", whose parent has the name.
    names = [folder.parent.name if name.lower() in _PARTS else name for name in named]
    for parent in (folder, *list(folder.parents)[:_PARENTS]):
        if parent.name and book.get(parent.name) is not None:
            names.append(parent.name)
            break
    return tuple(dict.fromkeys(names))


def _same(trained: str, target: str, book: Catalogue) -> bool:
    if letters(trained) == letters(target):
        return True
    first, second = book.get(trained), book.get(target)
    if first is None or second is None:
        return False
    return first is second or second.name in book.sharing(first)


def tag(size: int, digest: str) -> int:
    """The 64-bit tag of an image file, given its size in bytes and the SHA-256 of its content in hexadecimal."""
    return _size_tag(size) << _CONTENT_BITS | int(digest[: _CONTENT_BITS // 4], 16)


def pack_tags(images: Iterable[tuple[Path, str]]) -> str:
    """The tags of images, given path and SHA-256 of each, sorted, as base64 text; unreadable files are left out."""
    sizes = ((_size(path), digest) for path, digest in images)
    tags = np.array(
        sorted({tag(size, digest) for size, digest in sizes if size is not None}), dtype=np.uint64
    )
    if len(tags) > MAX_TAGS:
        tags = np.sort(tags[np.argsort(tags & _CONTENT, kind="stable")[:MAX_TAGS]])
    return base64.b64encode(tags.astype("<u8").tobytes()).decode("ascii")


def unpack_tags(text: str) -> npt.NDArray[np.uint64]:
    """The sorted tags (uint64) that `pack_tags` wrote.

    Raises:
        DataError: the text is not of that form.
    """
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), dtype="<u8").astype(np.uint64)
    except ValueError as error:
        raise DataError(
            f"the image tags of a model's card are damaged ({error}): fetch the model again"
        ) from error


def seen_images(paths: Iterable[Path], tags: npt.NDArray[np.uint64]) -> list[Path]:
    """Those of the files whose tag is among `tags`; only files of a fitting size are read."""
    if not len(tags):
        return []
    known = {int(value) for value in tags}
    sizes = {value >> _CONTENT_BITS for value in known}
    seen = []
    for path in paths:
        size = _size(path)
        if size is None or _size_tag(size) not in sizes:
            continue
        digest = content_hash(path)
        if digest is not None and tag(size, digest) in known:
            seen.append(path)
    return seen


def _size_tag(size: int) -> int:
    return int.from_bytes(hashlib.blake2b(str(size).encode(), digest_size=_SIZE_BITS // 8).digest(), "big")


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
