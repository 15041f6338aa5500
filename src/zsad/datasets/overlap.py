"""Overlap of a model's training images with a data set: by the names in its card, and by the content of image files.

Of a set that it was trained on, a model has seen the classes that its card names. Where these cannot be compared (an
older card, a set of one class, classes under names of one's own, another set with the same images), all of it counts as
seen.

A card keeps a 64-bit tag of each training image: 16 bits that depend on the file's size, which cost nothing to
look up, and 48 bits of the SHA-256 of its bytes, read only where the size bits are known. Copies and renamed files
are found; files that were encoded anew are not: `zsad data check --against` compares decoded pixels.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
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
        classes: classes of the data set that it was trained on, where only some are.
        related: sets that it was trained on, on other classes than the data set's.
        images: the data set's files that it was trained on, by content.
        total: images of the data set.
    """

    names: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    related: tuple[str, ...] = ()
    images: tuple[Path, ...] = ()
    total: int = 0

    def __bool__(self) -> bool:
        return bool(self.names or self.images)

    def sentence(self) -> str:
        """Return the overlap in words: "was trained on MVTec" or "was trained on 3 of its 120 images (a.png ...)"."""
        some = f" (classes {', '.join(self.classes)})" if self.classes else ""
        parts = [", ".join(self.names) + some] if self.names else []
        if self.images:
            more = " ..." if len(self.images) > 1 else ""
            parts.append(f"{len(self.images)} of these {self.total} images ({self.images[0]}{more})")
        return f"was trained on {' and on '.join(parts)}" if parts else ""

    def remark(self) -> str:
        """Return what a reader of the results has to know of a set whose other classes were trained on; "" if none."""
        names = ", ".join(self.related)
        return (
            f"same data set, class not trained on: the model knows other classes of {names}" if names else ""
        )


def overlap_of(card: Card, dataset: DataSet, *, catalog: Catalogue | None = None) -> Overlap:
    """Return the part of a data set that the model of a card, its backbone included, has seen.

    Args:
        card: of the model; one without training has at most a backbone that has seen something.
        dataset: to be measured on.
        catalog: for aliases and for sets that share images; None takes the bundled one.
    """
    book = bundled() if catalog is None else catalog
    training = card.training
    names, classes = (training.datasets, training.classes) if training else ((), ())
    overlap = overlap_by_name(names, classes, dataset, catalog=book)
    pretrained = [
        f"{entry.name} (its backbone {card.backbone.name})"
        for target in names_of(dataset, catalog=book)
        if (entry := book.get(target)) is not None and card.backbone.name in entry.pretrained
    ]
    tags = unpack_tags(training.images) if training else np.empty(0, np.uint64)
    images = seen_images((sample.image for sample in dataset.samples), tags)
    return replace(
        overlap,
        names=tuple(dict.fromkeys([*overlap.names, *pretrained])),
        images=tuple(images),
        total=len(dataset.samples),
    )


def overlap_by_name(
    trained: Iterable[str], classes: Iterable[str], dataset: DataSet, *, catalog: Catalogue | None = None
) -> Overlap:
    """Return what names tell of the overlap of training data with a data set.

    Args:
        trained: names of the sets.
        classes: names of the classes in any of them; empty: not known.
        dataset: to be measured on.
        catalog: as in `overlap_of`.
    """
    book = bundled() if catalog is None else catalog
    known = {letters(name) for name in classes}
    names: dict[str, None] = {}
    related: dict[str, None] = {}
    seen: dict[str, None] = {}
    every = {sample.class_name for sample in dataset.samples}
    for target in names_of(dataset, catalog=book):
        own = {sample.class_name for sample in dataset.samples if sample.dataset == target} or every
        for name in trained:
            if not _same(name, target, book):
                continue
            shared = {cls for cls in own if letters(cls) in known}
            if not known or not _classes_compare(name, target, own, book):
                shared = own
            (names if shared else related)[name] = None
            seen |= dict.fromkeys(sorted(shared))
    some = tuple(seen) if len(seen) < len(every) else ()
    return Overlap(tuple(names), some, tuple(name for name in related if name not in names))


def _classes_compare(trained: str, target: str, classes: Iterable[str], book: Catalogue) -> bool:
    """Return True if classes of two names of a set are the same exactly where their names are."""
    first, second = book.get(trained), book.get(target)
    if first is None or second is None:
        return first is second
    return first is second and len(first.classes) > 1 and all(first.expected(name) for name in classes)


def check_unseen(
    card: Card,
    dataset: DataSet,
    *,
    model: str,
    classes: Collection[str] | None = None,
    allow_seen: bool = False,
) -> Overlap:
    """The overlap of a model with some classes of a data set, all when None, if there may be one.

    Raises:
        DataError: the model has seen some of it and `allow_seen` is off.
    """
    samples = [sample for sample in dataset.samples if classes is None or sample.class_name in classes]
    overlap = overlap_of(card, replace(dataset, samples=samples))
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
