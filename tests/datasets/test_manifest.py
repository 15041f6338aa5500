"""`discover` on every layout of the field, generated small, and on everything that can be wrong with them."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from zsad.datasets.manifest import DataSet, check_mask, discover
from zsad.errors import DataError
from zsad.types import Sample

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "anomaly"


def image(path: Path, size: tuple[int, int] = (9, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size).save(path)
    return path


def images(folder: Path, *names: str) -> None:
    for name in names:
        image(folder / name)


def mvtec_class(folder: Path, ending: str = "_mask") -> Path:
    images(folder / "train" / "good", "000.png", "001.png", "002.png")
    images(folder / "test" / "good", "000.png", "001.png")
    images(folder / "test" / "scratch", "000.png", "001.png", "002.png")
    images(folder / "test" / "hole", "000.png")
    images(folder / "ground_truth" / "scratch", *(f"{n:03d}{ending}.png" for n in range(3)))
    images(folder / "ground_truth" / "hole", f"000{ending}.png")
    return folder


def counts(data: DataSet) -> tuple[int, int, int, int]:
    labels = Counter(sample.label for sample in data.samples)
    return labels[0], labels[1], labels[None], sum(sample.mask is not None for sample in data.samples)


def check_masks(data: DataSet) -> None:
    for sample in data.samples:
        check_mask(sample)


def refused(path: Path, *parts: str, split: str = "test") -> None:
    with pytest.raises(DataError) as error:
        discover(path, split=split)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


# layouts


@pytest.mark.parametrize("ending", ["", "_mask", "_label", "_gt", "_GT"])
def test_mvtec_class_itself(tmp_path: Path, ending: str) -> None:
    data = discover(mvtec_class(tmp_path / "screw", ending))
    assert (data.layout, data.name, data.classes) == ("mvtec", "screw", ["screw"])
    assert counts(data) == (2, 4, 0, 4)
    assert data.notes == []
    assert data.has_labels and data.has_masks
    for sample in data.samples:
        assert sample.kind == sample.image.parent.name
        if sample.label:
            assert sample.mask is not None and sample.mask.name == f"{sample.image.stem}{ending}.png"
            assert sample.mask.parent.name == sample.kind
    assert counts(discover(tmp_path / "screw", split="train")) == (3, 0, 0, 0)


def test_root_of_classes_and_root_of_data_sets(tmp_path: Path) -> None:
    for name in ("b", "a"):
        mvtec_class(tmp_path / "one" / name)
    images(tmp_path / "one" / "papers", "figure.png")
    one = discover(tmp_path / "one")
    assert one.classes == ["a", "b"] and counts(one) == (4, 8, 0, 8)
    assert {s.dataset for s in one.samples} == {"one"}
    assert any("papers" in note and "ignored" in note for note in one.notes)
    assert one.describe()[0] == "2 classes, 4 normal, 8 anomalous, 8 masks"
    mvtec_class(tmp_path / "two" / "a")
    both = discover(tmp_path)
    assert list(both.groups()) == ["one/a", "one/b", "two/a"]
    assert counts(both) == (6, 12, 0, 12)
    assert both.samples == discover(tmp_path).samples


def test_class_without_the_split_is_named(tmp_path: Path) -> None:
    mvtec_class(tmp_path / "full")
    images(tmp_path / "bare" / "train" / "good", "0.png")
    data = discover(tmp_path)
    assert data.classes == ["full"]
    assert any("bare" in note and "'test'" in note for note in data.notes)
    refused(tmp_path / "bare", "no folder 'test'")
    images(tmp_path / "void" / "train" / "good", "0.png")
    (tmp_path / "void" / "test").mkdir()
    refused(tmp_path / "void", "holds no images")


def test_btad_ok_and_other_suffixes(tmp_path: Path) -> None:
    images(tmp_path / "03" / "test" / "ok", "0001.bmp")
    images(tmp_path / "03" / "test" / "ko", "0002.bmp", "0003.bmp")
    images(tmp_path / "03" / "ground_truth" / "ko", "0002.png", "0003.bmp")
    data = discover(tmp_path)
    assert counts(data) == (1, 2, 0, 2)
    assert [s.mask.name for s in data.samples if s.mask] == ["0002.png", "0003.bmp"]


def test_isic_all_anomalous_with_masks_beside(tmp_path: Path) -> None:
    images(tmp_path / "skin" / "test" / "lesion", "ISIC_01.jpg", "ISIC_02.jpg")
    masks = tmp_path / "skin" / "ISBI2016_ISIC_Part1_Test_GroundTruth"
    images(masks, "ISIC_01_Segmentation.png", "ISIC_02_segmentation.png")
    data = discover(tmp_path)
    assert counts(data)[:2] == (0, 2)
    assert data.image_metric_classes() == []
    assert "class skin has no normal image: image metrics are undefined for it" in data.notes


@pytest.mark.parametrize("normal", ["good", "OK", "Normal"])
def test_normal_folder_against_others(tmp_path: Path, normal: str) -> None:
    root = tmp_path / "nuts"
    images(root / normal, "1.png", "2.png")
    images(root / "dent", "3.png")
    images(root / "masks", "3.png")
    data = discover(root)
    assert (data.layout, data.classes, counts(data)) == ("folders", ["nuts"], (2, 1, 0, 1))
    assert counts(discover(tmp_path)) == (2, 1, 0, 1)


def test_no_is_normal_only_with_yes(tmp_path: Path) -> None:
    images(tmp_path / "brain" / "no", "1.png", "2.png")
    images(tmp_path / "brain" / "tumour", "3.png")
    assert counts(discover(tmp_path / "brain")) == (0, 0, 3, 0)
    images(tmp_path / "brain" / "yes", "4.png")
    data = discover(tmp_path / "brain")
    assert counts(data) == (2, 1, 0, 0)
    assert any("tumour" in note for note in data.notes)
    assert data.pixel_metric_classes() == []


@pytest.mark.parametrize(
    ("pictures", "masks"), [("images", "masks"), ("test-image", "test-mask"), ("Original", "Ground Truth")]
)
def test_images_with_masks_are_all_anomalous(tmp_path: Path, pictures: str, masks: str) -> None:
    images(tmp_path / "colon" / pictures, "1.png", "2.jpg", "10.png")
    images(tmp_path / "colon" / masks, "1.png", "2.png", "10.png")
    data = discover(tmp_path / "colon")
    assert (data.layout, counts(data)) == ("folders", (0, 3, 0, 3))
    assert all(s.mask is not None and s.mask.stem == s.image.stem for s in data.samples)


def test_dagm_labels_inside_the_test_folder(tmp_path: Path) -> None:
    images(tmp_path / "Class1" / "Test", "0001.PNG", "0002.PNG", "0003.PNG")
    images(tmp_path / "Class1" / "Test" / "Label", "0002_label.PNG")
    data = discover(tmp_path)
    assert counts(data) == (2, 1, 0, 1)
    assert any("taken as normal" in note for note in data.notes)


def test_dagm_masks_that_its_list_names_are_missed(tmp_path: Path) -> None:
    """Without the list an image whose label file is lost would turn into a normal one."""
    part = tmp_path / "Class1" / "Test"
    images(part, "0001.PNG", "0002.PNG", "0003.PNG")
    images(part / "Label", "0002_label.PNG")
    lines = "1\n1\t0\t0001.PNG\t0\t0\n2\t1\t0002.PNG\t0\t0002_label.PNG\n3\t1\t0003.PNG\t0\t0003_label.PNG\n"
    (part / "Label" / "Labels.txt").write_text(lines)
    data = discover(tmp_path)
    assert counts(data) == (1, 2, 0, 1) and data.pixel_metric_classes() == []
    assert [found.path for found in data.findings] == [part / "0003.PNG"]
    assert "the mask that Labels.txt names" in data.findings[0].reason


def test_classes_of_which_nothing_is_left_are_named(tmp_path: Path) -> None:
    root = tmp_path / "set"
    mvtec_class(root / "screw")
    mvtec_class(root / "trained")
    shutil.rmtree(root / "trained" / "test")
    images(root / "trained" / "train" / "good", "0.png")
    (root / "emptied" / "test" / "good").mkdir(parents=True)
    (root / "bare").mkdir()
    (root / "papers").mkdir()
    (root / "papers" / "licence.txt").write_text("text")
    data = discover(root)
    assert data.classes == ["screw"] and data.lost == ["bare", "emptied", "trained"]
    assert {found.path.relative_to(root).parts[0] for found in data.findings} == set(data.lost)
    assert discover(root / "screw").lost == []

    both = discover(shutil.copytree(root, tmp_path / "both" / "one").parent)
    assert both.lost == ["bare", "emptied", "trained"]
    shutil.copytree(root, tmp_path / "both" / "two")
    several = discover(tmp_path / "both")
    assert several.lost == [f"{name}/{each}" for name in ("one", "two") for each in data.lost]


def test_a_listed_class_without_entries_is_named(tmp_path: Path) -> None:
    images(tmp_path, "a.png")
    entry = {"img_path": "a.png", "mask_path": "", "cls_name": "nut", "specie_name": "", "anomaly": 0}
    (tmp_path / "meta.json").write_text(json.dumps({"test": {"nut": [entry], "bolt": []}}))
    assert discover(tmp_path).lost == ["bolt"]


def test_test_folder_itself_finds_its_masks(tmp_path: Path) -> None:
    data = discover(mvtec_class(tmp_path / "screw") / "test")
    assert (data.classes, counts(data)) == (["screw"], (2, 4, 0, 4))


def test_flat_folder_has_no_labels(tmp_path: Path) -> None:
    images(tmp_path, "b.png", "a.jpg", "sub/c.webp", "masks/a.png")
    data = discover(tmp_path)
    assert (data.layout, data.classes, counts(data)) == ("flat", ["object"], (0, 0, 3, 0))
    assert not data.has_labels and not data.has_masks
    assert [s.image.name for s in data.samples] == ["a.jpg", "b.png", "c.webp"]
    assert data.describe()[:3] == [
        "1 class, 3 without label, 0 masks",
        "image metrics: none",
        "pixel metrics: none",
    ]


def test_kinds_without_normal_and_masks_are_not_labelled(tmp_path: Path) -> None:
    images(tmp_path / "c" / "test" / "a", "1.png")
    images(tmp_path / "c" / "test" / "b", "2.png")
    data = discover(tmp_path)
    assert counts(data) == (0, 0, 2, 0)
    assert any("labels are not known" in note for note in data.notes)


# pairing


def test_pairing_is_by_name_and_names_what_is_missing(tmp_path: Path) -> None:
    root = mvtec_class(tmp_path / "screw")
    masks = root / "ground_truth" / "scratch"
    (masks / "001_mask.png").rename(masks / "007_mask.png")
    data = discover(root)
    by_name = {s.image.name: s for s in data.samples if s.kind == "scratch"}
    assert by_name["001.png"].mask is None and by_name["001.png"].label == 1
    assert by_name["002.png"].mask == masks / "002_mask.png"
    text = "\n".join(data.notes)
    assert f"anomalous image without a mask of its name: {by_name['001.png'].image}" in text
    assert f"mask without an image of its name: {masks / '007_mask.png'}" in text
    assert data.pixel_metric_classes() == [] and data.has_masks


def test_several_masks_for_one_image_are_not_guessed(tmp_path: Path) -> None:
    root = mvtec_class(tmp_path / "screw")
    image(root / "ground_truth" / "hole" / "000_mask.bmp")
    data = discover(root)
    assert next(s for s in data.samples if s.kind == "hole").mask is None
    assert any("several masks" in note and "000_mask.bmp" in note for note in data.notes)


def test_long_lists_of_notes_are_counted(tmp_path: Path) -> None:
    images(tmp_path / "images", *(f"{n}.png" for n in range(30)))
    images(tmp_path / "masks", "0.png")
    notes = discover(tmp_path).notes
    assert sum("without a mask of its name" in note for note in notes) == 21
    assert any(note.endswith(": 9 more") for note in notes)


def test_mask_of_another_size_names_both(tmp_path: Path) -> None:
    root = mvtec_class(tmp_path / "screw")
    data = discover(root)
    check_masks(data)
    wrong = image(root / "ground_truth" / "hole" / "000_mask.png", (10, 8))
    with pytest.raises(DataError, match=r"10x8.*9x8") as error:
        check_masks(data)
    assert str(wrong) in str(error.value) and str(root / "test" / "hole" / "000.png") in str(error.value)
    check_mask(Sample(root / "absent.png"))


# junk, loops, paths


def test_junk_and_hidden_files_are_ignored(tmp_path: Path) -> None:
    root = mvtec_class(tmp_path / "set" / "screw")
    before = discover(tmp_path / "set").samples
    for junk in ("test/good/._000.png", "test/good/Thumbs.db", "test/.DS_Store", "test/.hidden/1.png"):
        (root / junk).parent.mkdir(exist_ok=True)
        (root / junk).write_bytes(b"junk")
    images(tmp_path / "set" / "__MACOSX" / "screw" / "test" / "good", "1.png")
    (root / "test" / "good" / "notes.txt").write_text("x")
    assert discover(tmp_path / "set").samples == before


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights on Windows")
def test_symlink_loops_end(tmp_path: Path) -> None:
    images(tmp_path / "x", "1.png")
    (tmp_path / "x" / "again").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "x" / "broken.png").symlink_to(tmp_path / "nowhere.png")
    assert [s.image.name for s in discover(tmp_path).samples] == ["1.png", "broken.png"]
    images(tmp_path / "good", "2.png")
    (tmp_path / "good" / "again").symlink_to(tmp_path / "good", target_is_directory=True)
    assert counts(discover(tmp_path))[0] == 1


def test_relative_path_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mvtec_class(tmp_path / "set" / "screw")
    absolute = discover(tmp_path / "set")
    monkeypatch.chdir(tmp_path / "set")
    relative = discover(".")
    assert relative.name == "set" and relative.fingerprint() == absolute.fingerprint()
    assert [tmp_path / "set" / s.image for s in relative.samples] == [s.image for s in absolute.samples]


def test_fingerprint_follows_content_not_place(tmp_path: Path) -> None:
    mvtec_class(tmp_path / "a" / "set" / "screw")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first = discover(tmp_path / "a" / "set").fingerprint()
    assert discover(tmp_path / "b" / "set").fingerprint() == first
    image(tmp_path / "b" / "set" / "screw" / "test" / "good" / "000.png", (90, 80))
    second = discover(tmp_path / "b" / "set").fingerprint()
    (tmp_path / "a" / "set" / "screw" / "test" / "good" / "001.png").unlink()
    third = discover(tmp_path / "a" / "set").fingerprint()
    assert len({first, second, third}) == 3


# listings


def meta(root: Path, key: str = "test", prefix: str = "") -> Path:
    mvtec_class(root / "screw")
    entries = [
        {"img_path": f"{prefix}screw/test/good/000.png", "mask_path": "", "cls_name": "screw"}
        | {"specie_name": "good", "anomaly": 0},
        {
            "img_path": f"{prefix}screw/test/hole/000.png",
            "cls_name": "screw",
            "specie_name": "hole",
            "anomaly": 1,
        }
        | {"mask_path": f"{prefix}screw/ground_truth/hole/000_mask.png"},
    ]
    (root / "meta.json").write_text(json.dumps({"train": {}, key: {"screw": entries}}))
    return root / "meta.json"


@pytest.mark.parametrize(("key", "prefix"), [("test", ""), ("Test", ""), ("test", "set/")])
def test_meta_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, prefix: str) -> None:
    path = meta(tmp_path / "set", key, prefix)
    for given in (path, path.parent):
        data = discover(given)
        assert (data.layout, data.name, data.classes, counts(data)) == (
            "meta.json",
            "set",
            ["screw"],
            (1, 1, 0, 1),
        )
    monkeypatch.chdir(path.parent)
    assert counts(discover("meta.json")) == (1, 1, 0, 1)
    refused(path, "nothing for split 'train'", "['test']", split="train")


def test_broken_meta_json(tmp_path: Path) -> None:
    path = meta(tmp_path)
    for content, part in [
        ("{", "not valid JSON"),
        ("[1]", "holds a list"),
        ('{"test": {"a": [{"mask_path": ""}]}}', "class 'a', entry 1: has no img_path"),
        ('{"test": {"a": {"b": 1}}}', "expected a list"),
        ('{"test": {"a": [{"img_path": "no.png"}]}}', "no.png does not exist"),
        ('{"test": {"a": [{"img_path": "screw/test/good/000.png", "anomaly": 7}]}}', "label is 7"),
    ]:
        path.write_text(content)
        refused(path, part, "meta.json")


def test_visa(tmp_path: Path) -> None:
    images(tmp_path / "pcb" / "Data", "Images/Normal/1.JPG", "Images/Anomaly/2.JPG", "Masks/Anomaly/2.png")
    (tmp_path / "split_csv").mkdir()
    table = tmp_path / "split_csv" / "1cls.csv"
    table.write_text(
        "object,split,label,image,mask\n"
        "pcb,train,normal,pcb/Data/Images/Normal/1.JPG,\n"
        "pcb,test,normal,pcb/Data/Images/Normal/1.JPG,\n"
        "pcb,test,anomaly,pcb/Data/Images/Anomaly/2.JPG,pcb/Data/Masks/Anomaly/2.png\n"
    )
    for given in (tmp_path, table):
        data = discover(given)
        assert (data.layout, data.classes, counts(data)) == ("visa", ["pcb"], (1, 1, 0, 1))
    assert counts(discover(tmp_path, split="train")) == (1, 0, 0, 0)
    refused(tmp_path, "['test', 'train']", split="val")
    table.write_text("object,label\npcb,normal\n")
    refused(tmp_path, "column 'split' is missing")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_manifest(tmp_path: Path, delimiter: str) -> None:
    images(tmp_path, "img/b.png", "img/a.png", "img/c.png", "m/a.png")
    rows = [
        ["Image", "mask", "label", "class", "kind"],
        ["img/b.png", "", "normal", "nut", ""],
        ["img/a.png", "m/a.png", "1", "nut", "dent"],
        ["img/c.png", "", "", "bolt", ""],
        ["img/c.png", "", "", "bolt", ""],
    ]
    path = tmp_path / "list.csv"
    path.write_text("\n".join(delimiter.join(row) for row in rows), encoding="utf-8-sig")
    data = discover(path)
    assert [s.image.name for s in data.samples] == ["b.png", "a.png", "c.png"]
    assert (data.layout, data.name, counts(data)) == ("manifest", "list", (1, 1, 1, 1))
    assert data.samples[1] == Sample(tmp_path / "img/a.png", "nut", 1, tmp_path / "m/a.png", "dent", "list")
    assert any("more than once" in note for note in data.notes)


def test_jsonl_manifest(tmp_path: Path) -> None:
    images(tmp_path, "a.png", "b.png", "c.png", "m.png")
    lines = [
        {"image": str(tmp_path / "a.png"), "label": 0, "mask": "m.png"},
        {"image": "b.png", "label": 1, "mask": None, "class": "nut"},
        {"image": "c.png", "label": 1, "mask": "m.png", "class": "nut"},
    ]
    path = tmp_path / "list.jsonl"
    path.write_text("\n\n".join(json.dumps(line) for line in lines) + "\n")
    data = discover(path)
    assert data.classes == ["nut", "object"] and counts(data) == (1, 2, 0, 1)
    assert f"anomalous image without a mask: {tmp_path / 'b.png'}" in data.notes
    assert any("masks of 1 normal images are ignored" in note for note in data.notes)


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("l.jsonl", '{"image": "a.png"}\n{"image": \n', "line 2: is not valid JSON"),
        ("l.jsonl", '\n\n["a.png"]', "line 3: holds a list"),
        ("l.jsonl", '{"image": "a.png", "masks": "x"}', "line 1: unknown column 'masks'"),
        ("l.jsonl", '{"image": "a.png", "masks": "x"}', "did you mean 'mask'"),
        ("l.jsonl", '{"label": 1}', "line 1: has no image"),
        ("l.jsonl", '{"image": 5}', "line 1: image is 5"),
        ("l.jsonl", '{"image": "a.png", "label": "maybe"}', "line 1: label is 'maybe'"),
        ("l.jsonl", '{"image": "a.png", "label": 1}\n{"image": "a.png", "label": 0}', "line 2"),
        ("l.jsonl", json.dumps({"image": "x" * 5000}), "does not exist"),
        ("l.jsonl", '{"image": "a\\u0000.png"}', "line 1"),
        ("l.jsonl", "[" * 100_000, "line 1"),
        ("l.csv", "image,label\na.png,0\nb.png,1\n", "line 3: image"),
        ("l.csv", "image,label\na.png\n", "line 2: has 1 fields, expected 2"),
        ("l.csv", "image,image\na.png,a.png\n", "line 1: a column is named twice"),
        ("l.csv", 'image,label\n"a.png,0\n', "is not valid CSV"),
        ("l.csv", "image,mask\na.png,m.png\n", "line 2: mask"),
        ("l.csv", "", "no usable image"),
        ("l.csv", "image\n", "no usable image"),
        ("l.txt", "a.png", "a file of unknown type '.txt'"),
        ("l.zip", "PK", "unknown type"),
    ],
)
def test_broken_manifest(tmp_path: Path, name: str, content: str, part: str) -> None:
    image(tmp_path / "a.png")
    (tmp_path / name).write_text(content)
    refused(tmp_path / name, part, name)


def test_other_refusals(tmp_path: Path) -> None:
    refused(tmp_path, "holds no images")
    refused(tmp_path / "absent", "does not exist")
    refused(image(tmp_path / "a.png"), "is an image, expected a folder")
    refused(Path("x" * 4000), "no possible path")
    (tmp_path / "l.csv").write_bytes(b"image\n\xff\xfe.png\n")
    refused(tmp_path / "l.csv", "not UTF-8")


# the development images


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="no development images beside the checkout")
def test_counts_of_the_development_images() -> None:
    table = {
        "MVTec/screw": (41, 119, 119),
        "MVTec/hazelnut": (52, 8, 8),
        "MVTec3D-RGB/tire": (25, 87, 87),
        "MagneticTile/tile": (300, 388, 388),
        "BSData/ball_screw": (150, 150, 150),
        "CrackForest/road": (8, 118, 118),
        "CVC-ColonDB/colon": (0, 155, 155),
        "BrainMRI/brain": (98, 155, 0),
        "Br35H/brain": (300, 300, 0),
        "BUSI/breast": (133, 210, 0),
        "NEU-Seg/steel": (0, 440, 440),
        "CrackTile/cracked_tile": (0, 100, 100),
        "MVTec-leather/leather": (4, 11, 11),
        "LGG/brain": (150, 150, 150),
    }
    groups = discover(SHARED).groups()
    assert set(table) <= set(groups)  # further sets may be added
    for key, expected in table.items():
        listed = discover(SHARED / key.split("/")[0])
        looked = discover(SHARED / key)
        assert (listed.layout, looked.layout, looked.has_masks) == ("meta.json", "mvtec", expected[2] > 0)
        normal, anomalous, unknown, masks = counts(looked)
        assert (normal, anomalous, masks, unknown) == (*expected, 0), key
        assert {s.image for s in groups[key]} == {s.image for s in looked.samples}
        assert {s.mask for s in groups[key]} == {s.mask for s in looked.samples}
        check_masks(looked)


def test_listings_with_names_that_no_file_can_have_are_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text('{"image": "a.png", "label": 0, "class": "\\ud800"}\n')
    with pytest.raises(DataError, match=r"line 1: is not valid JSON .*half of a character"):
        discover(tmp_path / "list.jsonl")
    entry = {"img_path": "é" * 300 + ".png", "mask_path": "", "cls_name": "bolt", "anomaly": 0}
    (tmp_path / "meta.json").write_text(json.dumps({"test": {"bolt": [entry]}}))
    with pytest.raises(DataError) as caught:
        discover(tmp_path / "meta.json")
    assert "\n" not in str(caught.value)
