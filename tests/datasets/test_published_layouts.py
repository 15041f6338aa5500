"""Real-IAD, MVTec LOCO, MVTec AD 2 and labelme's annotations as they are published; words; what `data check` sees."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zsad.datasets.check import check
from zsad.datasets.manifest import discover
from zsad.datasets.meta import write_meta
from zsad.datasets.words import parse_label
from zsad.errors import DataError
from zsad.images.masks import load_mask


def photo(path: Path, seed: int = 0, size: tuple[int, int] = (16, 24)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def mask(path: Path, value: int = 255, size: tuple[int, int] = (16, 24)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros(size, np.uint8)
    values[4:9, 6:12] = value
    Image.fromarray(values).save(path)
    return path


def test_real_iad(tmp_path: Path) -> None:
    root = tmp_path / "realiad_512" / "audiojack"
    for n in range(2):
        photo(root / f"OK/S{n}/ok{n}.jpg", n)
        for kind in ("BX", "QS"):
            photo(root / f"NG/{kind}/S{n}/ng{n}.jpg", 5 + n)
            mask(root / f"NG/{kind}/S{n}/ng{n}.png")
    data = discover(tmp_path / "realiad_512")
    assert [sample.label for sample in data.samples] == [1, 1, 1, 1, 0, 0]
    assert {sample.kind for sample in data.samples} == {"BX", "QS", "OK"}
    assert all(s.mask == s.image.with_suffix(".png") for s in data.samples if s.label)
    assert any("4 masks beside the images of audiojack" in note for note in data.notes)


def test_mvtec_loco(tmp_path: Path) -> None:
    root = tmp_path / "mvtec_loco" / "pushpins"
    photo(root / "train/good/000.png")
    photo(root / "validation/good/000.png")
    photo(root / "test/good/000.png")
    for kind in ("logical_anomalies", "structural_anomalies"):
        for n in range(2):
            photo(root / f"test/{kind}/00{n}.png", len(kind) + n)
            mask(root / f"ground_truth/{kind}/00{n}/000.png", 254)
    mask(root / "ground_truth/logical_anomalies/001/001.png", 250)
    data = discover(tmp_path / "mvtec_loco")
    assert data.pixel_metric_classes() == ["pushpins"] and not data.notes
    assert {sample.mask for sample in data.samples if sample.kind == "logical_anomalies"} == {
        root / "ground_truth/logical_anomalies/000",
        root / "ground_truth/logical_anomalies/001",
    }
    assert check(data).sound
    written = tmp_path / "mvtec_loco" / "meta.json"
    write_meta(tmp_path / "mvtec_loco", written)
    assert [s.mask for s in discover(written).samples] == [s.mask for s in data.samples]


def test_mvtec_ad_2(tmp_path: Path) -> None:
    root = tmp_path / "mvtec_ad_2" / "can"
    photo(root / "train/good/000_regular.png")
    photo(root / "validation/good/000_regular.png")
    photo(root / "test_private/000_regular.png")
    photo(root / "test_private_mixed/000_mixed.png")
    photo(root / "test_public/good/000_regular.png")
    photo(root / "test_public/bad/000_regular.png")
    mask(root / "test_public/ground_truth/bad/000_regular_mask.png")
    data = discover(tmp_path / "mvtec_ad_2")
    assert [(s.label, s.mask is not None) for s in data.samples] == [(1, True), (0, False)]
    assert len(discover(tmp_path / "mvtec_ad_2", split="train").samples) == 1


def test_bitmaps_of_btad(tmp_path: Path) -> None:
    photo(tmp_path / "BTAD/03/test/ok/0.bmp")
    photo(tmp_path / "BTAD/03/test/ko/1.bmp", 1)
    mask(tmp_path / "BTAD/03/ground_truth/ko/1.bmp")
    data = discover(tmp_path / "BTAD")
    assert data.pixel_metric_classes() == data.image_metric_classes() == ["03"]


def test_labelme_annotations_beside_images(tmp_path: Path) -> None:
    shape = {"label": "scratch", "shape_type": "polygon", "points": [[2, 3], [6, 3], [6, 8], [2, 8]]}
    for name, shapes in (("a", [shape]), ("b", [])):
        photo(tmp_path / f"parts/{name}.jpg")
        content = {"shapes": shapes, "imageHeight": 16, "imageWidth": 24, "imagePath": f"{name}.jpg"}
        (tmp_path / f"parts/{name}.json").write_text(json.dumps(content))
    photo(tmp_path / "parts/c.jpg")
    data = discover(tmp_path / "parts")
    assert [(s.image.name, s.label) for s in data.samples] == [("a.jpg", 1), ("b.jpg", 0), ("c.jpg", None)]
    assert data.samples[0].mask is not None and load_mask(data.samples[0].mask).sum() == 30
    (tmp_path / "sorted/ng").mkdir(parents=True)
    for name in ("a.jpg", "a.json"):
        (tmp_path / "parts" / name).rename(tmp_path / "sorted/ng" / name)
    photo(tmp_path / "sorted/good/d.jpg", 3)
    assert [(s.label, s.mask is not None) for s in discover(tmp_path / "sorted").samples] == [
        (0, False),
        (1, True),
    ]


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("OK", "NG"),
        ("OK", "NOK"),
        ("pass", "fail"),
        ("normal", "abnormal"),
        ("non_defective", "defective"),
        ("no-defect", "defect"),
        ("Good", "Anomalous"),
    ],
)
def test_words_of_folders_and_lists_are_the_same(tmp_path: Path, good: str, bad: str) -> None:
    photo(tmp_path / f"set/{good}/a.png")
    photo(tmp_path / f"set/{bad}/b.png", 1)
    assert sorted((s.image.name, s.label) for s in discover(tmp_path / "set").samples) == [
        ("a.png", 0),
        ("b.png", 1),
    ]
    assert (parse_label(good), parse_label(bad)) == (0, 1)


@pytest.mark.parametrize(
    "text",
    [
        "image,label,mask\na.png,1.0,m.png\nb.png,0.0,nan\n",
        "sep=;\nimage;label;mask\na.png;NG;m.png\nb.png;OK;\n",
        '"sep=\t"\nimage\tlabel\tmask\na.png\ttrue\tm.png\nb.png\tfalse\tNA\n',
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_as_pandas_and_excel_write_them(tmp_path: Path, text: str, encoding: str) -> None:
    photo(tmp_path / "a.png")
    photo(tmp_path / "b.png", 1)
    mask(tmp_path / "m.png")
    (tmp_path / "list.csv").write_text(text, encoding=encoding)
    assert [(s.label, s.mask is None) for s in discover(tmp_path / "list.csv").samples] == [
        (1, False),
        (0, True),
    ]


def test_words_that_mean_either_are_asked_for(tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    (tmp_path / "list.csv").write_text("image,label\na.png,negative\n")
    with pytest.raises(DataError, match=r"label is 'negative', expected 0, 1, good"):
        discover(tmp_path / "list.csv")


def reasons(root: Path) -> str:
    return "\n".join(f"{Path(p.path).name}: {p.reason}" for p in check(discover(root)).problems)


def test_check_sees_what_a_person_would(tmp_path: Path) -> None:
    root = tmp_path / "set" / "bolt"
    photo(root / "test/good/0.png")
    for name, size in (("full", (16, 24)), ("inverted", (16, 24)), ("turned", (24, 16)), ("fine", (16, 24))):
        photo(root / f"test/bad/{name}.png", len(name))
        mask(root / f"ground_truth/bad/{name}_mask.png", size=size)
    Image.new("L", (24, 16), 255).save(root / "ground_truth/bad/full_mask.png")
    inverted = np.full((16, 24), 255, np.uint8)
    inverted[1:9, 1:16] = 0
    Image.fromarray(inverted).save(root / "ground_truth/bad/inverted_mask.png")
    mask(root / "ground_truth/good/0_mask.png")
    said = reasons(tmp_path / "set")
    assert "full_mask.png: mask marks 100 % of the picture: inverted" in said
    assert "inverted_mask.png: mask marks 69 % of the picture and all of its border: inverted?" in said
    assert "turned_mask.png: mask is 16x24 px" in said and "another orientation" in said
    assert "0_mask.png: mask marks something, though" in said
    assert len(said.splitlines()) == 4


def test_check_sees_one_class_under_two_names(tmp_path: Path) -> None:
    for name in ("metal_nut", "Metal Nut", "nut"):
        photo(tmp_path / f"set/{name}/test/good/0.png", len(name))
        photo(tmp_path / f"set/{name}/test/bad/1.png", 50 + len(name))
    said = reasons(tmp_path / "set")
    assert "Metal Nut and metal_nut are spelled alike" in said and "share 2 images" in said
