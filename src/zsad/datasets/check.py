"""Checks of a data set on disk: every file is decoded, every pair and every count compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pydantic import Field

from zsad.datasets.catalog import CatalogEntry, ClassEntry, FrozenModel
from zsad.datasets.content import Content, Pair, read_contents, same_pixels, similar_looks
from zsad.datasets.manifest import DataSet
from zsad.datasets.words import letters
from zsad.errors import ZsadError
from zsad.images.masks import load_mask
from zsad.images.open import split_mask_stem
from zsad.types import Sample

SIZE = (518, 518)
"""(H,W) at which the field's papers measure pixels."""

_NEARLY_ALL = 0.95  # no defect that is worth outlining fills so much of a picture or of its border
_FEW_VALUES = 8  # masks of defect numbers have some values; lossy compression leaves dozens


_PathReason = tuple[Path | str, str]


class DataProblem(FrozenModel):
    """Something that must be put right; `path` is the folder where it is about the whole set."""

    path: str
    reason: str


class ClassCount(FrozenModel):
    """Images of a class, and the numbers that it should have where these are known."""

    name: str
    normal: int
    anomalous: int
    unlabelled: int
    masks: int
    expected_normal: int | None = None
    expected_anomalous: int | None = None


class Twin(FrozenModel):
    """Two images that are the same (`bits` 0) or look alike (that many of 64 bits differ)."""

    path: str
    other: str
    bits: int = 0


class Report(FrozenModel):
    """The result of a check; a set without `problems` can be measured on."""

    name: str = Field(description="of the catalogue's entry, else of the folder")
    root: str
    layout: str
    known: bool = Field(description="whether there was an entry to compare with")
    image_size: tuple[int, int] = Field(description="(H, W) at which masks were examined")
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
    alike = [] if near is None else similar_looks(contents, others, max_bits=near)
    counts = list(_class_counts(dataset, entry))
    problems = [
        *_file_problems(contents),
        *((finding.path, finding.reason) for finding in dataset.findings),
        *_mask_problems(contents, dataset, entry),
        *_pair_problems(dataset.samples),
        *_good_with_mask(dataset),
        *_same_class(dataset, duplicates),
        *((dataset.root, reason) for reason in _class_problems(dataset, entry)),
        *((dataset.root, reason) for reason in _count_problems(counts, entry)),
        *_shared_pixels(duplicates, overlaps),
    ]
    emptied = tuple(str(content.sample.image) for content in contents if content.emptied)
    values: Counter[float] = Counter()
    for content in contents:
        values.update(content.values)
    mask_values = {f"{value:g}": values[value] for value in sorted(values)}
    return Report(
        name=entry.name if entry else dataset.name,
        root=str(dataset.root),
        layout=dataset.layout,
        known=entry is not None,
        image_size=size,
        classes=tuple(counts),
        problems=tuple(
            DataProblem(path=path, reason=reason)
            for path, reason in dict.fromkeys((str(path), reason) for path, reason in problems)
        ),
        remarks=tuple(_remarks(mask_values, emptied=len(emptied), duplicates=len(duplicates), size=size)),
        mask_values=mask_values,
        emptied=emptied,
        duplicates=_twins(duplicates),
        overlaps=_twins(overlaps),
        look_alikes=_twins(alike),
    )


def _file_problems(contents: Sequence[Content]) -> Iterator[_PathReason]:
    for content in contents:
        yield from ((path, reason.removeprefix(f"{path} ")) for path, reason in content.problems)


def _shared_pixels(duplicates: Sequence[Pair], overlaps: Sequence[Pair]) -> Iterator[_PathReason]:
    for first, second, _ in duplicates:
        if first.label != second.label:
            yield first.image, f"the same image as {second.image}, which has another label"
    for first, second, _ in overlaps:
        yield first.image, f"the same image as {second.image}"


def _twins(pairs: Sequence[Pair]) -> tuple[Twin, ...]:
    return tuple(
        Twin(path=str(first.image), other=str(second.image), bits=bits) for first, second, bits in pairs
    )


def _mask_problems(
    contents: Sequence[Content], dataset: DataSet, entry: CatalogEntry | None
) -> Iterator[_PathReason]:
    needed = entry is not None and "pixel" in entry.metrics
    missing = {finding.path for finding in dataset.findings}
    for content in contents:
        sample = content.sample
        if sample.label == 1 and sample.mask is None and needed and sample.image not in missing:
            yield sample.image, "anomalous image without a mask"
        if sample.mask is None or content.mask_size is None:
            continue
        if content.size is not None and content.mask_size != content.size:
            mask, image = (f"{width}x{height} px" for height, width in (content.mask_size, content.size))
            turned = content.mask_size == content.size[::-1]
            hint = ": it lies under another orientation, the image is turned by its metadata or was" * turned
            yield sample.mask, f"mask is {mask}, its image {sample.image} is {image}{hint}"
        if sample.label == 1 and content.foreground == 0:
            yield sample.mask, f"mask is empty, though {sample.image} counts as anomalous"
        elif sample.label == 1 and content.mask_size == content.size and sample.mask != sample.image:
            yield from _too_much(content, sample.mask)


def _too_much(content: Content, mask: Path) -> Iterator[_PathReason]:
    """Yield masks that mark nearly everything, or whose background seems to be what is marked."""
    share = content.foreground / max(1, sum(content.values.values()))
    if share >= _NEARLY_ALL:
        yield mask, f"mask marks {100 * share:.0f} % of the picture: inverted, or is its background not 0?"
    elif share > 1 / 2 and content.border >= _NEARLY_ALL:
        yield mask, f"mask marks {100 * share:.0f} % of the picture and all of its border: inverted?"


def _pair_problems(samples: Sequence[Sample]) -> Iterator[_PathReason]:
    """Yield masks that by their name belong to another image of the class, and masks of several images."""
    for sample in misnamed(samples):
        yield sample.mask or "", f"by its name it is not the mask of {sample.image}: swapped?"
    owners: Counter[Path] = Counter(sample.mask for sample in samples if sample.mask is not None)
    for sample in samples:
        if sample.mask is None:
            continue
        if owners[sample.mask] > 1:
            yield sample.mask, f"mask of {owners[sample.mask]} images"
        if sample.mask == sample.image:
            yield sample.mask, "image and mask are one file"


def _good_with_mask(dataset: DataSet) -> Iterator[_PathReason]:
    """Yield masks with foreground that belong to images called good."""
    for image, mask in dataset.ignored_masks:
        try:
            marked = load_mask(mask).any()
        except ZsadError as error:
            yield mask, str(error).removeprefix(f"{mask} ")
            continue
        if marked:
            yield mask, f"mask marks something, though {image} counts as normal"


def _same_class(dataset: DataSet, duplicates: Sequence[Pair]) -> Iterator[_PathReason]:
    """Yield classes that seem to be one under two names: spelled alike, or with the same pictures."""
    names: dict[str, str] = {}
    for key in dataset.groups():
        known = names.setdefault(letters(key), key)
        if known != key:
            yield dataset.root, f"classes {known} and {key} are spelled alike: one class under two names?"
    pairs = Counter(
        tuple(sorted((first.class_name, second.class_name)))
        for first, second, _ in duplicates
        if first.class_name != second.class_name
    )
    for (first, second), count in sorted(pairs.items()):
        images = f"{count} image{'s' * (count > 1)}"
        yield dataset.root, f"classes {first} and {second} share {images}: one class under two names?"


def misnamed(samples: Sequence[Sample]) -> Iterator[Sample]:
    """Yield samples whose mask by its name belongs to another image of the class."""
    stems = {(sample.class_name, sample.image.stem.lower()) for sample in samples}
    kinds = {(sample.class_name, sample.kind) for sample in samples if sample.label == 1}
    for sample in samples:
        if sample.mask is None:
            continue
        stem, folder = split_mask_stem(sample.mask.stem.lower())[0], sample.mask.parent.name
        swapped = stem != sample.image.stem.lower() and (sample.class_name, stem) in stems
        if swapped or (folder != sample.kind and (sample.class_name, folder) in kinds):
            yield sample


def _class_problems(dataset: DataSet, entry: CatalogEntry | None) -> Iterator[str]:
    """Yield what keeps a metric that should be defined for a class from being so."""
    labels = {key: Counter(sample.label for sample in group) for key, group in dataset.groups().items()}
    image_level = "image" in entry.metrics if entry else any(0 in counts for counts in labels.values())
    for key, counts in labels.items():
        if None in counts:
            yield f"class {key} has {counts[None]} images without a label"
        elif 0 not in counts and image_level:
            yield f"class {key} has no normal image: image metrics are undefined"
        elif 1 not in counts:
            yield f"class {key} has no anomalous image: no metric is defined"


def _count_problems(counts: Sequence[ClassCount], entry: CatalogEntry | None) -> Iterator[str]:
    if entry is None:
        return
    if entry.classes and not entry.any_class_names:
        names = {count.name: count.name.rpartition("/")[2] for count in counts}  # without the data set's
        present = {letters(name) for name in names.values()}
        for expected in entry.classes:
            if letters(expected.name) not in present:
                yield f"class {expected.name} is missing"
        for count in counts:
            if entry.expected(names[count.name]) is None:
                yield f"class {count.name} is not one of {entry.title}"
            yield from _differences(
                f"class {count.name}",
                (count.normal, count.anomalous),
                (count.expected_normal, count.expected_anomalous),
            )
    total = sum(count.normal for count in counts), sum(count.anomalous for count in counts)
    yield from _differences(entry.name, total, (entry.normal, entry.anomalous))


def _differences(
    name: str, counts: tuple[int, int], expected: tuple[int | None, int | None]
) -> Iterator[str]:
    for label, count, number in zip(("normal", "anomalous"), counts, expected, strict=True):
        if number is not None and count != number:
            yield f"{name} has {count} {label} images, expected {number}"


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
