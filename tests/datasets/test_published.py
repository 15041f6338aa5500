"""Every layout as it is published, generated small, with the traps that its publication is known for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zsad.datasets.catalog import bundled
from zsad.datasets.check import check
from zsad.datasets.manifest import DataSet, discover
from zsad.errors import DataError
from zsad.images.masks import load_mask

_count = iter(range(10**6))


def photo(path: Path) -> Path:
    """A picture like no other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(next(_count)).integers(0, 255, (16, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def mask(path: Path, value: int = 255, size: tuple[int, int] = (20, 16)) -> Path:
    """A mask with a patch of `value`, empty for 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("L", size)
    picture.paste(value, (4, 4, 12, 10))
    picture.save(path)
    return path


def counts(data: DataSet) -> tuple[int, int, int, int]:
    labels = Counter(sample.label for sample in data.samples)
    return labels[0], labels[1], labels[None], sum(sample.mask is not None for sample in data.samples)


def fine(data: DataSet, entry: str) -> None:
    """Nothing is wrong with the files; only the counts are not those of the whole set."""
    report = check(data, bundled().find(entry))
    reasons = [problem.reason for problem in report.problems]
    assert not [reason for reason in reasons if "expected" not in reason and "is missing" not in reason], (
        reasons
    )


def test_visa_without_its_table_keeps_class_names(tmp_path: Path) -> None:
    for name in ("candle", "pcb1"):
        photo(tmp_path / name / "Data" / "Images" / "Normal" / "0000.JPG")
        photo(tmp_path / name / "Data" / "Images" / "Anomaly" / "000.JPG")
        mask(tmp_path / name / "Data" / "Masks" / "Anomaly" / "000.png", value=3)
    data = discover(tmp_path)
    assert (data.classes, counts(data)) == (["candle", "pcb1"], (2, 2, 0, 2))
    fine(data, "VisA")
    found = [sample.mask for sample in data.samples if sample.mask]
    assert all(load_mask(path).sum() == 48 for path in found)
    assert check(data, None).mask_values == {"0": 2 * (320 - 48), "3": 2 * 48}


def test_sdd_with_a_space_in_its_class(tmp_path: Path) -> None:
    root = tmp_path / "SDD"
    for number in range(2):
        photo(root / "electrical commutators" / "test" / "good" / f"kos{number}.jpg")
        photo(root / "electrical commutators" / "test" / "defect" / f"kos1{number}.jpg")
        mask(root / "electrical commutators" / "ground_truth" / "defect" / f"kos1{number}_label.bmp")
    data = discover(root)
    assert (data.layout, data.classes, counts(data)) == ("mvtec", ["electrical commutators"], (2, 2, 0, 2))
    fine(data, "SDD")


def test_kolektor_sdd_as_published_is_one_class(tmp_path: Path) -> None:
    for box in ("kos01", "kos02"):
        for part in range(3):
            photo(tmp_path / "KolektorSDD" / box / f"Part{part}.jpg")
            mask(tmp_path / "KolektorSDD" / box / f"Part{part}_label.bmp", value=255 * (part == 1))
    data = discover(tmp_path / "KolektorSDD")
    assert (data.layout, data.classes, counts(data)) == ("twins", ["KolektorSDD"], (4, 2, 0, 2))
    assert {sample.kind for sample in data.samples} == {"kos01", "kos02"}
    fine(data, "KolektorSDD")


def test_kolektor_sdd2_labels_are_what_masks_say(tmp_path: Path) -> None:
    root = tmp_path / "KSDD2"
    for part, numbers in (("train", range(3)), ("test", range(10, 14))):
        for number in numbers:
            photo(root / part / f"{number}.png")
            mask(root / part / f"{number}_GT.png", value=255 * (number % 2))
    data = discover(root)
    assert (data.layout, data.classes, counts(data)) == ("twins", ["KSDD2"], (2, 2, 0, 2))
    assert [sample.image.stem for sample in data.samples if sample.label] == ["11", "13"]
    assert counts(discover(root, split="train"))[:2] == (2, 1)
    assert discover(root / "test").classes == ["KSDD2"]
    fine(data, "KolektorSDD2")


def test_masks_beside_images_that_do_not_fit_are_named(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        photo(tmp_path / f"{name}.png")
    mask(tmp_path / "a_GT.png")
    mask(tmp_path / "z_GT.png")
    (tmp_path / "c_GT.png").write_bytes(b"no image")
    data = discover(tmp_path)
    assert counts(data) == (0, 1, 2, 1)
    found = {finding.path.name: finding.reason for finding in data.findings}
    assert found["b.png"].startswith("image without the mask") and "z_GT.png" in found
    assert found["c_GT.png"].startswith("mask cannot be read")


def test_bmad_masks_of_the_same_name_are_no_images(tmp_path: Path) -> None:
    root = tmp_path / "Brain_AD"
    for number in range(3):
        photo(root / "test" / "good" / "img" / f"{number}.png")
        mask(root / "test" / "good" / "label" / f"{number}.png", value=0)
        photo(root / "test" / "Ungood" / "img" / f"{number}.png")
        mask(root / "test" / "Ungood" / "label" / f"{number}.png")
        photo(root / "valid" / "good" / "img" / f"{number}.png")
        photo(root / "train" / "good" / f"{number}.png")
    data = discover(root)
    assert (data.layout, counts(data)) == ("bmad", (3, 3, 0, 3))
    assert all(sample.image.parent.name == "img" for sample in data.samples)
    assert all(
        sample.mask.parent == sample.image.parents[1] / "label" for sample in data.samples if sample.mask
    )
    fine(data, "BMAD-Brain")
    (root / "test" / "Ungood" / "label" / "1.png").unlink()
    assert [finding.path.name for finding in discover(root).findings] == ["1.png"]


def test_mvtec_3d_reads_colours_alone(tmp_path: Path) -> None:
    for kind in ("good", "hole"):
        photo(tmp_path / "tire" / "test" / kind / "rgb" / "000.png")
        mask(tmp_path / "tire" / "test" / kind / "gt" / "000.png", value=255 * (kind == "hole"))
        Image.fromarray(np.zeros((16, 20), np.float32)).save(
            _made(tmp_path / "tire/test" / kind / "xyz/000.tiff")
        )
    data = discover(tmp_path)
    assert counts(data) == (1, 1, 0, 1) and {s.image.parent.name for s in data.samples} == {"rgb"}


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@pytest.mark.parametrize("beside", [True, False])
def test_head_ct_numbers_are_padded(tmp_path: Path, beside: bool) -> None:
    root = tmp_path / "HeadCT"
    for number in range(4):
        photo((root if beside else root / "head_ct" / "head_ct") / f"{number:03d}.png")
    (root / "labels.csv").write_text("id, hemorrhage\n0, 1\n1, 1\n2, 0\n3, 0\n")
    data = discover(root)
    assert (data.layout, counts(data)) == ("headct", (2, 2, 0, 0))
    assert [sample.image.name for sample in data.samples if sample.label] == ["000.png", "001.png"]
    fine(data, "HeadCT")
    photo(root / "004.png")
    assert [finding.path.name for finding in discover(root).findings] == ["004.png"]


@pytest.mark.parametrize(
    ("rows", "part"), [("0, 1\n7, 0", "no image is called 7"), ("0, 2", "line 2: is '0,2'"), ("x", "line 2")]
)
def test_broken_head_ct_list(tmp_path: Path, rows: str, part: str) -> None:
    photo(tmp_path / "000.png")
    (tmp_path / "labels.csv").write_text(f"id, hemorrhage\n{rows}\n")
    with pytest.raises(DataError) as error:
        discover(tmp_path)
    assert part in str(error.value) and "labels.csv" in str(error.value) and "\n" not in str(error.value)


def test_another_labels_csv_is_left_alone(tmp_path: Path) -> None:
    photo(tmp_path / "good" / "1.png")
    photo(tmp_path / "bad" / "2.png")
    for content in ("", "name;class;x\n1;2;3\n"):
        (tmp_path / "labels.csv").write_text(content)
        assert counts(discover(tmp_path)) == (1, 1, 0, 0)


def test_elpv_leaves_out_cells_without_agreement(tmp_path: Path) -> None:
    lines = []
    for number, chance in enumerate(("1.0", "0.3333333333333333", "0.0", "0.6666666666666666")):
        photo(tmp_path / "images" / f"cell{number:04d}.png")
        lines.append(
            f"images/cell{number:04d}.png  {chance}                 {'mono' if number < 2 else 'poly'}"
        )
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    data = discover(tmp_path)
    assert (data.layout, data.classes) == ("elpv", ["solar cell mono", "solar cell poly"])
    assert counts(data) == (1, 1, 0, 0) and data.samples[0].dataset == "ELPV"
    assert any(note.startswith("2 cells") for note in data.notes)
    (tmp_path / "images" / "cell0002.png").unlink()
    with pytest.raises(DataError, match=r"line 3: .*cell0002.png does not exist"):
        discover(tmp_path)


def test_the_installed_solar_cells_are_the_catalogue_s() -> None:
    pytest.importorskip("elpv_dataset")
    from zsad.datasets.fetch import installed_folder

    entry = bundled().find("elpv-dataset")
    folder = installed_folder(entry)
    assert folder is not None
    data = discover(folder)
    assert counts(data)[:2] == (entry.normal, entry.anomalous)
    for row in entry.classes:
        found = Counter(sample.label for sample in data.samples if sample.class_name == row.name)
        assert (found[0], found[1]) == (row.normal, row.anomalous)


def test_isic_masks_are_found_by_their_ending(tmp_path: Path) -> None:
    for part in ("Test", "Training"):
        for number in range(2):
            photo(tmp_path / f"ISBI2016_ISIC_Part1_{part}_Data" / f"ISIC_{part}{number}.jpg")
            mask(
                tmp_path / f"ISBI2016_ISIC_Part1_{part}_GroundTruth" / f"ISIC_{part}{number}_Segmentation.png"
            )
    data = discover(tmp_path)
    assert counts(data) == (0, 2, 0, 2) and all("Test" in sample.image.name for sample in data.samples)
    fine(data, "ISIC")


def test_isic_of_anomalyclip(tmp_path: Path) -> None:
    photo(tmp_path / "skin" / "test" / "bad" / "ISIC_1.jpg")
    mask(tmp_path / "skin" / "ISBI2016_ISIC_Part1_Test_GroundTruth" / "ISIC_1_Segmentation.png")
    assert counts(discover(tmp_path)) == (0, 1, 0, 1)


@pytest.mark.parametrize(
    ("entry", "images", "masks", "suffix"),
    [
        ("CVC-ColonDB", "images", "masks", "png"),
        ("CVC-ClinicDB", "Original", "Ground Truth", "tif"),
        ("Kvasir", "images", "masks", "jpg"),
        ("CVC-300", "images", "masks", "png"),
        ("TN3K", "test-image", "test-mask", "jpg"),
        ("Endo", "some folder", "masks", "jpg"),
    ],
)
def test_sets_that_are_all_anomalous(
    tmp_path: Path, entry: str, images: str, masks: str, suffix: str
) -> None:
    root = tmp_path / entry
    for number in (1, 2, 10):  # 10 sorts between 1 and 2
        photo(root / images / f"{number}.{suffix}")
        mask(root / masks / f"{number}.{suffix}")
    if entry == "TN3K":
        photo(root / "trainval-image" / "9.jpg")
        mask(root / "trainval-mask" / "9.jpg")
    data = discover(root)
    assert counts(data) == (0, 3, 0, 3) and data.image_metric_classes() == []
    assert all(sample.mask is not None and sample.mask.stem == sample.image.stem for sample in data.samples)
    fine(data, entry)


def test_lossy_masks_are_remarked_on(tmp_path: Path) -> None:
    photo(tmp_path / "images" / "1.jpg")
    noisy = mask(tmp_path / "masks" / "1.jpg")
    found = check(discover(tmp_path), bundled().find("Kvasir"))
    assert len(found.mask_values) > 9 and any("saved with losses" in remark for remark in found.remarks)
    assert load_mask(noisy).sum() > 48


def test_dagm_upper_case_and_its_list_of_labels(tmp_path: Path) -> None:
    for name in ("Class1", "Class10"):
        for number in range(3):
            photo(tmp_path / name / "Test" / f"{number:04d}.PNG")
        mask(tmp_path / name / "Test" / "Label" / "0001_label.PNG")
        (tmp_path / name / "Test" / "Label" / "Labels.txt").write_text("1\n")
        photo(tmp_path / name / "Train" / "0000.PNG")
    data = discover(tmp_path)
    assert (data.layout, data.classes, counts(data)) == ("dagm", ["Class1", "Class10"], (4, 2, 0, 2))
    fine(data, "DAGM")


def test_brain_sets_take_yes_and_no_once(tmp_path: Path) -> None:
    for place in ("", "brain_tumor_dataset"):
        for number in range(2):
            photo(tmp_path / place / "yes" / f"Y{number}.jpg")
            photo(tmp_path / place / "no" / f"N{number}.jpg")
    photo(tmp_path / "pred" / "p.jpg")
    (tmp_path / "notes.json").write_text("{}")
    data = discover(tmp_path)
    assert counts(data) == (2, 2, 0, 0)
    fine(data, "Br35H")
    fine(discover(tmp_path / "brain_tumor_dataset"), "BrainMRI")


def test_textiles(tmp_path: Path) -> None:
    for kind in ("nominal", "local", "global"):
        photo(tmp_path / "simulated" / kind / "textile_0001.jpg")
    data = discover(tmp_path / "simulated")
    assert counts(data) == (1, 2, 0, 0)
    fine(data, "Textiles")


def test_two_images_of_one_stem_are_not_given_one_mask_in_silence(tmp_path: Path) -> None:
    photo(tmp_path / "nut" / "test" / "good" / "1.png")
    for suffix in ("png", "jpg"):
        photo(tmp_path / "nut" / "test" / "dent" / f"000.{suffix}")
    shared = mask(tmp_path / "nut" / "ground_truth" / "dent" / "000_mask.png")
    found = discover(tmp_path).findings
    assert [(finding.path, finding.reason) for finding in found] == [
        (shared, "mask of several images of one name")
    ]
