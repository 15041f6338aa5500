"""`check` on sets that are broken in every way that happens: each is named with its path, once, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from zsad.datasets.catalog import CatalogEntry, ClassEntry
from zsad.datasets.check import Report, check
from zsad.datasets.content import (
    Content,
    difference_hash,
    pixel_hash,
    read_content,
    same_pixels,
    similar_looks,
)
from zsad.datasets.manifest import discover
from zsad.images.decode import load_image
from zsad.types import Sample

ENTRY = CatalogEntry(
    name="Nuts",
    title="Nuts and bolts",
    group="industrial",
    layout="mvtec",
    folders="as MVTec AD",
    metrics=("image", "pixel"),
    normal=6,
    anomalous=6,
    classes=(ClassEntry(name="bolt", normal=3, anomalous=3), ClassEntry(name="nut", normal=3, anomalous=3)),
    licence="-",
    home="",
    citation="-",
    get="-",
)
SIZE = (24, 32)


def photo(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((64, 48)).save(path)
    return path


def mask(path: Path, box: tuple[int, int, int, int] = (8, 8, 30, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("L", (64, 48))
    picture.paste(255, box)
    picture.save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "nuts"
    for place, name in enumerate(("bolt", "nut")):
        for number in range(3):
            seed = 10 * place + number
            photo(folder / name / "test" / "good" / f"{number:03d}.png", seed)
            photo(folder / name / "test" / "dent" / f"{number:03d}.png", 100 + seed)
            mask(folder / name / "ground_truth" / "dent" / f"{number:03d}_mask.png")
    return folder


def problems(folder: Path, entry: CatalogEntry | None = ENTRY, **options: object) -> list[tuple[str, str]]:
    report = check(discover(folder), entry, size=(48, 64), **options)  # type: ignore[arg-type]
    for problem in report.problems:
        assert "\n" not in problem.reason and problem.path
    return [
        (Path(problem.path).relative_to(folder.parent).as_posix(), problem.reason)
        for problem in report.problems
    ]


def test_a_whole_set_is_sound(root: Path) -> None:
    report = check(discover(root), ENTRY, size=(48, 64))
    assert report.sound and report.remarks == () and report.known
    assert [(row.name, row.normal, row.anomalous, row.masks) for row in report.classes] == [
        ("bolt", 3, 3, 3),
        ("nut", 3, 3, 3),
    ]
    assert report.mask_values == {"0": 6 * (64 * 48 - 22 * 22), "255": 6 * 22 * 22}
    assert (report.emptied, report.duplicates, report.overlaps, report.look_alikes) == ((), (), (), ())
    assert Report.model_validate_json(report.model_dump_json()) == report
    assert check(discover(root), size=(48, 64)).sound


def test_corrupt_image_and_mask(root: Path) -> None:
    image, broken = root / "nut/test/good/001.png", root / "bolt/ground_truth/dent/002_mask.png"
    image.write_bytes(image.read_bytes()[:200])
    broken.write_bytes(b"")
    found = dict(problems(root))
    assert set(found) == {"nuts/nut/test/good/001.png", "nuts/bolt/ground_truth/dent/002_mask.png"}
    assert "truncated" in found["nuts/nut/test/good/001.png"]
    assert found["nuts/bolt/ground_truth/dent/002_mask.png"].startswith("is empty (0 bytes)")


def test_missing_mask_and_stem_mismatch_are_not_shifted(root: Path) -> None:
    folder = root / "nut" / "ground_truth" / "dent"
    (folder / "001_mask.png").rename(folder / "009_mask.png")
    assert problems(root) == [
        ("nuts/nut/test/dent/001.png", "anomalous image without a mask of its name"),
        ("nuts/nut/ground_truth/dent/009_mask.png", "mask without an image of its name"),
    ]


def test_all_masks_missing_is_a_problem_where_pixels_are_measured(root: Path) -> None:
    for name in ("bolt", "nut"):
        shutil.rmtree(root / name / "ground_truth")
    assert len(problems(root)) == 6
    assert problems(root, ENTRY.model_copy(update={"metrics": ("image",)})) == []
    assert problems(root, None) == []


def test_mask_of_another_size(root: Path) -> None:
    path = root / "nut" / "ground_truth" / "dent" / "000_mask.png"
    Image.new("L", (48, 64), 255).save(path)
    ((where, reason),) = problems(root)
    assert where.endswith("000_mask.png") and "48x64 px" in reason and "64x48 px" in reason


def test_swapped_pairs_of_a_listing(root: Path) -> None:
    rows = ["image,mask,label,class,kind"]
    for number, given in ((0, 1), (1, 0), (2, 2)):
        rows.append(f"nut/test/dent/00{number}.png,nut/ground_truth/dent/00{given}_mask.png,1,nut,dent")
    rows.append("nut/test/good/000.png,,0,nut,good")
    (root / "list.csv").write_text("\n".join(rows))
    report = check(discover(root / "list.csv"))
    assert [(Path(problem.path).name, problem.reason.split(" of ")[0]) for problem in report.problems] == [
        ("001_mask.png", "by its name it is not the mask"),
        ("000_mask.png", "by its name it is not the mask"),
    ]
    rows[2] = rows[2].replace("000_mask", "001_mask")
    (root / "list.csv").write_text("\n".join(rows))
    reasons = [problem.reason for problem in check(discover(root / "list.csv")).problems]
    assert "mask of 2 images" in reasons and len(reasons) == 2
    rows[1:] = ["nut/test/dent/000.png,nut/test/dent/000.png,1,nut,dent", rows[-1]]
    (root / "list.csv").write_text("\n".join(rows))
    assert [p.reason for p in check(discover(root / "list.csv")).problems] == ["image and mask are one file"]


def test_normal_image_among_the_anomalous(root: Path) -> None:
    path = mask(root / "nut" / "ground_truth" / "dent" / "002_mask.png", box=(0, 0, 0, 0))
    ((where, reason),) = problems(root)
    assert where.endswith(path.name) and reason.startswith("mask is empty, though")


def test_masks_of_normal_images_are_no_problem(root: Path) -> None:
    for number in range(3):
        mask(root / "nut" / "ground_truth" / "good" / f"{number:03d}_mask.png", box=(0, 0, 0, 0))
    assert problems(root) == []


def test_thin_defects_that_vanish_are_counted(root: Path) -> None:
    mask(root / "nut" / "ground_truth" / "dent" / "002_mask.png", box=(10, 10, 11, 40))
    assert check(discover(root), ENTRY, size=(48, 64)).emptied == ()
    report = check(discover(root), ENTRY, size=(12, 16))
    assert report.sound and report.emptied == (str(root / "nut" / "test" / "dent" / "002.png"),)
    assert "masks that are empty at 16x12 px, their defects too thin to be measured: 1" in report.remarks


def test_counts_and_classes(root: Path) -> None:
    (root / "nut" / "test" / "good" / "000.png").unlink()
    (root / "bolt").rename(root / "bolts")
    assert problems(root) == [
        ("nuts", "class bolt is missing"),
        ("nuts", "class bolts is not one of Nuts and bolts"),
        ("nuts", "class nut has 2 normal images, expected 3"),
        ("nuts", "Nuts has 5 normal images, expected 6"),
    ]


def test_class_without_normals(root: Path) -> None:
    shutil.rmtree(root / "nut" / "test" / "good")
    found = [reason for _, reason in problems(root)]
    assert "class nut has no normal image: image metrics are undefined" in found
    assert [reason for _, reason in problems(root, None)] == found[:1]
    shutil.rmtree(root / "bolt" / "test" / "good")
    pixels = ENTRY.model_copy(update={"metrics": ("pixel",), "normal": 0, "classes": ()})
    assert problems(root, None) == problems(root, pixels) == []


def test_unlabelled_images_are_named(root: Path) -> None:
    rows = [
        "image,label,class",
        *(f"nut/test/good/00{n}.png,{label},nut" for n, label in enumerate(("0", "1", ""))),
    ]
    (root / "list.csv").write_text("\n".join(rows))
    assert [p.reason for p in check(discover(root / "list.csv")).problems] == [
        "class nut has 1 images without a label"
    ]


def test_hidden_files_are_not_looked_at(root: Path) -> None:
    for name in ("._000.png", ".DS_Store", "Thumbs.db"):
        (root / "nut" / "test" / "good" / name).write_bytes(b"junk")
        (root / "nut" / "ground_truth" / "dent" / name).write_bytes(b"junk")
    assert problems(root) == []


def test_the_same_image_twice(root: Path) -> None:
    good, bad = root / "nut" / "test" / "good", root / "nut" / "test" / "dent"
    Image.open(good / "000.png").save(good / "002.png", compress_level=1)  # other bytes, the same pixels
    assert (good / "000.png").read_bytes() != (good / "002.png").read_bytes()
    report = check(discover(root), ENTRY, size=(48, 64))
    assert report.sound
    assert [(twin.path, twin.other) for twin in report.duplicates] == [
        (str(good / "002.png"), str(good / "000.png"))
    ]
    shutil.copy(bad / "000.png", good / "001.png")
    ((where, reason),) = problems(root)
    assert where.endswith("good/001.png") and reason.endswith("dent/000.png, which has another label")


def test_overlap_with_other_sets_by_decoded_pixels(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "auxiliary"
    for seed in range(50, 54):
        photo(other / "good" / f"{seed}.png", seed)
    Image.open(root / "nut/test/dent/001.png").save(other / "good" / "copy.bmp")
    smooth = Image.open(root / "bolt/test/good/002.png").filter(ImageFilter.GaussianBlur(1))
    smooth.save(other / "good" / "alike.jpg", quality=90)
    others = [discover(other)]
    ((where, reason),) = problems(root, against=others)
    assert where == "nuts/nut/test/dent/001.png" and reason.endswith("auxiliary/good/copy.bmp")
    assert problems(root, against=[]) == []
    report = check(discover(root), ENTRY, against=others, near=6)
    (twin,) = report.look_alikes
    assert Path(twin.other).name == "alike.jpg" and twin.path.endswith("bolt/test/good/002.png")
    assert 0 <= twin.bits <= 6 and len(report.overlaps) == 1


def test_hashes_follow_pixels_and_size(tmp_path: Path) -> None:
    first = load_image(photo(tmp_path / "a.png", 1))
    assert pixel_hash(first) == pixel_hash(first.copy())
    other = first.copy()
    other.putpixel((3, 4), (1, 2, 3))
    assert pixel_hash(other) != pixel_hash(first)
    plain = Image.new("RGB", (20, 10))
    assert pixel_hash(plain) != pixel_hash(plain.resize((10, 20)))  # the same bytes in another shape
    ramp = Image.fromarray(np.tile(np.arange(0, 256, 4, dtype=np.uint8), (48, 1)))
    assert (
        difference_hash(ramp) == 2**64 - 1
        and difference_hash(ramp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) == 0
    )


def test_nearest_looks_are_those_of_the_slow_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zsad.datasets.content._BLOCK", 7)  # blocks that end in the middle
    rng = np.random.default_rng(3)

    def contents(count: int, first: int) -> list[Content]:
        hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
        return [
            Content(Sample(Path(f"{first + n}")), pixels=first + n, difference_hash=int(bits))
            for n, bits in enumerate(hashes)
        ]

    left, right = contents(40, 0), contents(33, 1000)
    right[5].difference_hash, right[20].difference_hash = (
        left[11].difference_hash ^ 0b101,
        left[30].difference_hash,
    )
    pairs = {(a.image, b.image, bits) for a, b, bits in similar_looks(left, right, max_bits=24)}
    slow = set()
    for a in left:
        bits, b = min((bin(a.difference_hash ^ b.difference_hash).count("1"), n) for n, b in enumerate(right))
        if bits <= 24:
            slow.add((a.sample.image, right[b].sample.image, bits))
    assert pairs == slow and {(Path("11"), Path("1005"), 2), (Path("30"), Path("1020"), 0)} <= pairs
    assert similar_looks(left, [], max_bits=3) == same_pixels(left) == []


def test_sixteen_bit_and_one_bit_masks(tmp_path: Path) -> None:
    image = photo(tmp_path / "a.png", 0)
    wide = np.zeros((48, 64), np.uint16)
    wide[:5] = 40_000
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide > 0).save(tmp_path / "bits.png")
    for name, value in (("wide", 40_000.0), ("bits", 255.0)):
        content = read_content(Sample(image, label=1, mask=tmp_path / f"{name}.png"), size=(24, 24))
        assert content.values == {0.0: 43 * 64, value: 5 * 64} and content.mask_size == (48, 64)
