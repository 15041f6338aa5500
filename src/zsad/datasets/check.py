"""Whether a data set on disk is what it should be: every file decoded, every pair and count compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from zsad.datasets.catalog import CatalogEntry, ClassEntry, letters
from zsad.datasets.content import Content, read_contents, same_pixels, similar_looks
from zsad.datasets.layouts import MASK_ENDINGS
from zsad.datasets.manifest import DataSet
from zsad.types import Sample

SIZE = (518, 518)
"""(H,W) at which the field's papers measure pixels."""

_FEW_VALUES = 8  # masks of defect numbers have some values; lossy compression leaves dozens


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataProblem(_Frozen):
    """Something that must be put right; `path` is empty where it is about the whole set."""

    path: str
    reason: str


class ClassCount(_Frozen):
    """What a class holds, and what it should hold where that is known."""

    name: str
    normal: int
    anomalous: int
    unlabelled: int
    masks: int
    expected_normal: int | None = None
    expected_anomalous: int | None = None


class Twin(_Frozen):
    """Two images that are the same (`bits` 0) or look alike (that many of 64 bits differ)."""

    path: str
    other: str
    bits: int = 0


class Report(_Frozen):
    """The result of a check; a set without `problems` can be measured on."""

    name: str = Field(description="of the catalogue's entry, else of the folder")
    root: str
    layout: str
    known: bool = Field(description="whether there was an entry to compare with")
    image_size: tuple[int, int] = Field(description="(H, W) at which masks were looked at")
    classes: tuple[ClassCount, ...]
    problems: tuple[DataProblem, ...]
    remarks: tuple[str, ...]
    mask_values: dict[str, int] = Field(description="pixels by value over all masks")
    emptied: tuple[str, ...] = Field(description="anomalous images whose mask is empty at image_size")
    duplicates: tuple[Twin, ...] = Field(description="images that are there twice, decoded")
    overlaps: tuple[Twin, ...] = Field(description="images that are also in the sets compared with")
    look_alikes: tuple[Twin, ...] = Field(description="images that look like one of the sets compared with")

    @property
    def sound(self) -> bool:
        """True when there is no problem."""
        return not self.problems


def check(
    dataset: DataSet,
    entry: CatalogEntry | None = None,
    *,
    against: Sequence[DataSet] = (),
    near: int | None = None,
    size: tuple[int, int] = SIZE,
    workers: int = 2,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Decode every image and mask of a data set and compare what is there with what should be there.

    Args:
        dataset: as `discover` found it.
        entry: of the catalogue; None checks the files only.
        against: sets that must not share an image with it, such as those that a model is trained on.
        near: also list images that differ in at most so many of 64 bits of a difference hash; None: do not look.
        size: (H,W) of the masks when looking for those that vanish.
        workers: decoding threads.
        progress: called with 1 for every sample read, those of `against` included.
    """
    contents = read_contents(dataset.samples, size=size, workers=workers, progress=progress)
    others = [
        content
        for other in against
        for content in read_contents(
            other.samples, size=size, masks=False, workers=workers, progress=progress
        )
    ]
    duplicates = same_pixels(contents)
    overlaps = same_pixels(contents, others) if others else []
    alike = [] if near is None else similar_looks(contents, others, most=near)
    problems = [
        *_file_problems(contents),
        *(DataProblem(path=str(finding.path), reason=finding.reason) for finding in dataset.findings),
        *_mask_problems(contents, dataset, entry),
        *_pair_problems(dataset.samples),
        *_class_problems(dataset, entry),
        *_count_problems(dataset, entry),
        *(
            DataProblem(path=str(a.sample.image), reason=_contradiction(b))
            for a, b in duplicates
            if _differ(a, b)
        ),
        *(
            DataProblem(path=str(a.sample.image), reason=f"the same image as {b.sample.image}")
            for a, b in overlaps
        ),
    ]
    emptied = tuple(str(content.sample.image) for content in contents if content.emptied)
    values = _histogram(contents)
    return Report(
        name=entry.name if entry else dataset.name,
        root=str(dataset.root),
        layout=dataset.layout,
        known=entry is not None,
        image_size=size,
        classes=tuple(_class_counts(dataset, entry)),
        problems=tuple(dict.fromkeys(problems)),
        remarks=tuple(_remarks(values, emptied=len(emptied), duplicates=len(duplicates), size=size)),
        mask_values=values,
        emptied=emptied,
        duplicates=tuple(_twin(a, b) for a, b in duplicates),
        overlaps=tuple(_twin(a, b) for a, b in overlaps),
        look_alikes=tuple(_twin(a, b, bits=bits) for a, b, bits in alike),
    )


def _twin(first: Content, second: Content, *, bits: int = 0) -> Twin:
    return Twin(path=str(first.sample.image), other=str(second.sample.image), bits=bits)


def _differ(first: Content, second: Content) -> bool:
    return first.sample.label != second.sample.label


def _contradiction(other: Content) -> str:
    return f"the same image as {other.sample.image}, which has another label"


def _file_problems(contents: Sequence[Content]) -> Iterator[DataProblem]:
    for content in contents:
        for path, reason in content.problems:
            yield DataProblem(path=str(path), reason=reason.removeprefix(f"{path} "))


def _mask_problems(
    contents: Sequence[Content], dataset: DataSet, entry: CatalogEntry | None
) -> Iterator[DataProblem]:
    needed = entry is not None and "pixel" in entry.metrics
    missing = {finding.path for finding in dataset.findings}
    for content in contents:
        sample = content.sample
        if sample.label == 1 and sample.mask is None and needed and sample.image not in missing:
            yield DataProblem(path=str(sample.image), reason="anomalous image without a mask")
        if sample.mask is None or content.mask_size is None:
            continue
        if content.size is not None and content.mask_size != content.size:
            own, full = (f"{width}x{height} px" for height, width in (content.mask_size, content.size))
            yield DataProblem(
                path=str(sample.mask), reason=f"mask is {own}, its image {sample.image} is {full}"
            )
        if sample.label == 1 and content.foreground == 0:
            reason = f"mask is empty, though {sample.image} counts as anomalous"
            yield DataProblem(path=str(sample.mask), reason=reason)


def _pair_problems(samples: Sequence[Sample]) -> Iterator[DataProblem]:
    """Masks that by their name belong to another image of the class, and masks of several images."""
    for sample in misnamed(samples):
        yield DataProblem(
            path=str(sample.mask), reason=f"by its name it is not the mask of {sample.image}: swapped?"
        )
    owners: Counter[Path] = Counter(sample.mask for sample in samples if sample.mask is not None)
    for sample in samples:
        if sample.mask is None:
            continue
        if owners[sample.mask] > 1:
            yield DataProblem(path=str(sample.mask), reason=f"mask of {owners[sample.mask]} images")
        if sample.mask == sample.image:
            yield DataProblem(path=str(sample.mask), reason="image and mask are one file")


def misnamed(samples: Sequence[Sample]) -> Iterator[Sample]:
    """Samples whose mask by its name belongs to another image of the class."""
    places = {(sample.class_name, sample.image.stem.lower()) for sample in samples}
    kinds = {(sample.class_name, sample.kind) for sample in samples if sample.label == 1}
    for sample in samples:
        if sample.mask is None:
            continue
        stem, own = _bare(sample.mask), sample.image.stem.lower()
        folder = sample.mask.parent.name
        swapped = stem != own and (sample.class_name, stem) in places
        if swapped or (folder != sample.kind and (sample.class_name, folder) in kinds):
            yield sample


def _bare(mask: Path) -> str:
    stem = mask.stem.lower()
    return next((stem.removesuffix(ending) for ending in MASK_ENDINGS if stem.endswith(ending)), stem)


def _class_problems(dataset: DataSet, entry: CatalogEntry | None) -> Iterator[DataProblem]:
    """Classes in which a metric that should be defined is not."""
    groups = dataset.groups()
    labels = {key: {sample.label for sample in group} for key, group in groups.items()}
    image_level = "image" in entry.metrics if entry else any(0 in found for found in labels.values())
    for key, found in labels.items():
        path = str(dataset.root)
        if None in found:
            count = sum(sample.label is None for sample in groups[key])
            yield DataProblem(path=path, reason=f"class {key} has {count} images without a label")
        elif 0 not in found and image_level:
            yield DataProblem(
                path=path, reason=f"class {key} has no normal image: image metrics are undefined"
            )
        elif 1 not in found:
            yield DataProblem(path=path, reason=f"class {key} has no anomalous image: no metric is defined")


def _count_problems(dataset: DataSet, entry: CatalogEntry | None) -> Iterator[DataProblem]:
    if entry is None:
        return
    path = str(dataset.root)
    counts = list(_class_counts(dataset, entry))
    if entry.classes and not entry.any_class_names:
        there = {letters(_own_name(count)) for count in counts}
        for expected in entry.classes:
            if letters(expected.name) not in there:
                yield DataProblem(path=path, reason=f"class {expected.name} is missing")
        for count in counts:
            if entry.expected(_own_name(count)) is None:
                yield DataProblem(path=path, reason=f"class {count.name} is not one of {entry.title}")
            yield from _differences(path, f"class {count.name}", count)
    total = ClassCount(
        name="all",
        normal=sum(count.normal for count in counts),
        anomalous=sum(count.anomalous for count in counts),
        unlabelled=0,
        masks=0,
        expected_normal=entry.normal,
        expected_anomalous=entry.anomalous,
    )
    yield from _differences(path, entry.name, total)


def _own_name(count: ClassCount) -> str:
    """The name of a class without that of its data set."""
    return count.name.rpartition("/")[2]


def _differences(path: str, what: str, count: ClassCount) -> Iterator[DataProblem]:
    for label in ("normal", "anomalous"):
        found, expected = getattr(count, label), getattr(count, f"expected_{label}")
        if expected is not None and found != expected:
            yield DataProblem(path=path, reason=f"{what} has {found} {label} images, expected {expected}")


def _class_counts(dataset: DataSet, entry: CatalogEntry | None) -> Iterator[ClassCount]:
    groups = dataset.groups()
    for key, group in groups.items():
        labels = Counter(sample.label for sample in group)
        expected: ClassEntry | None = None
        if entry is not None:
            alone = entry.any_class_names and len(entry.classes) == len(groups) == 1
            expected = entry.classes[0] if alone else entry.expected(group[0].class_name)
        yield ClassCount(
            name=key,
            normal=labels[0],
            anomalous=labels[1],
            unlabelled=labels[None],
            masks=sum(sample.mask is not None for sample in group),
            expected_normal=expected.normal if expected else None,
            expected_anomalous=expected.anomalous if expected else None,
        )


def _histogram(contents: Sequence[Content]) -> dict[str, int]:
    total: Counter[float] = Counter()
    for content in contents:
        total.update(content.values)
    return {f"{value:g}": total[value] for value in sorted(total)}


def _remarks(
    values: dict[str, int], *, emptied: int, duplicates: int, size: tuple[int, int]
) -> Iterator[str]:
    above = [value for value in values if float(value) > 0]
    if len(above) > _FEW_VALUES:
        yield (
            f"masks hold {len(above)} values above 0: saved with losses? everything above 0 counts as anomalous, "
            "which makes such masks grow"
        )
    elif above and above != ["255"]:
        yield f"masks hold the values {', '.join(above)} above 0: all of them count as anomalous"
    if emptied:
        yield f"masks that are empty at {size[1]}x{size[0]} px, their defects too thin to be measured: {emptied}"
    if duplicates:
        yield f"images that are there before with the same pixels: {duplicates}"
