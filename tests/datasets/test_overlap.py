"""What a model has seen is found by name, alias, shared images and content, and only that."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zsad.card import BackboneReference, Card, Training
from zsad.datasets import overlap
from zsad.datasets.manifest import discover
from zsad.datasets.overlap import check_unseen, names_of, overlap_of, pack_tags, seen_images, tag, unpack_tags
from zsad.errors import DataError
from zsad.methods.base import MapSpec
from zsad.train.checkpoint import bundled_models, read_card, resolve_model


def card(
    *datasets: str,
    classes: tuple[str, ...] = (),
    images: str = "",
    backbone: str = "toy",
    trained: bool = True,
) -> Card:
    return Card(
        method="promptmoe",
        config={},
        backbone=BackboneReference(name=backbone, sha256="0"),
        preprocess={},
        map_spec=MapSpec(size=(8, 8)),
        training=Training(datasets=datasets, classes=classes, images=images) if trained else None,
    )


def noise(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (12, 12), dtype=np.uint8)).save(path)
    return path


def data_set(root: Path, first: int = 0) -> Path:
    for seed in range(3):
        noise(root / "disc" / "test" / "good" / f"{seed}.png", first + seed)
        noise(root / "disc" / "test" / "dent" / f"{seed}.png", first + 10 + seed)
    return root


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("trained", "folder", "named"),
    [
        ("MVTec", "mvtec_anomaly_detection", ("MVTec",)),
        ("mine", "Mine", ("mine",)),
        ("SDD", "SDD-thirds", ("SDD",)),
        ("BrainMRI", "Br35H", ("BrainMRI",)),
        ("Br35H", "brain_tumor_dataset", ("Br35H",)),
        ("BrainMRI", "Brain_AD", ()),
        ("VisA", "MVTec", ()),
        ("MVTec", "MVTec3D-RGB", ()),
    ],
)
def test_names(tmp_path: Path, trained: str, folder: str, named: tuple[str, ...]) -> None:
    found = overlap_of(card("other", trained), discover(data_set(tmp_path / folder)))
    assert found.names == named and bool(found) is bool(named)


def test_a_class_of_a_known_set_is_part_of_it(tmp_path: Path) -> None:
    root = data_set(tmp_path / "MVTec")
    for part in (root / "disc", root / "disc" / "test"):
        assert names_of(discover(part)) == ("disc", "MVTec")
        assert overlap_of(card("mvtec-ad"), discover(part)).names == ("mvtec-ad",)
    # Beyond a known name nothing counts: a set that happens to lie in another one's folder is itself.
    assert names_of(discover(data_set(root / "visa"))) == ("visa",)


def test_several_sets_in_one_folder_are_all_looked_at(tmp_path: Path) -> None:
    for name in ("MVTec", "own"):
        data_set(tmp_path / name)
    assert names_of(discover(tmp_path)) == ("MVTec", "own")
    assert overlap_of(card("own"), discover(tmp_path)).names == ("own",)


def with_classes(root: Path, *names: str) -> Path:
    for first, name in enumerate(names):
        (data_set(root, 100 * first) / "disc").rename(root / name)
    return root


def test_other_classes_of_the_same_set_are_unseen_and_marked(tmp_path: Path) -> None:
    model = card("screw", "MVTec", classes=("screw",))
    root = with_classes(tmp_path / "mvtec_ad", "screw", "bottle", "metal_nut")
    bottle = overlap_of(model, discover(root / "bottle"))
    assert not bottle and bottle.related == ("MVTec",) and bottle.sentence() == ""
    assert bottle.remark() == ("same data set, class not trained on: the model knows other classes of MVTec")
    screw = overlap_of(model, discover(root / "screw"))
    assert (screw.names, screw.classes, screw.related) == (("screw", "MVTec"), (), ())
    whole = overlap_of(model, discover(root))
    assert whole.sentence() == "was trained on MVTec (classes screw)" and not whole.remark()
    assert overlap_of(card("MVTec", classes=("Metal Nut",)), discover(root / "metal_nut"))
    assert overlap_of(card("MVTec"), discover(root / "bottle")).names == ("MVTec",)  # classes not known
    chosen = check_unseen(model, discover(root), model="m", classes=["bottle"])
    assert chosen.related and chosen.total == 6
    with pytest.raises(DataError, match=r"m was trained on MVTec \(classes screw\)"):
        check_unseen(model, discover(root), model="m", classes=["bottle", "screw"])


def test_classes_that_do_not_compare_leave_a_set_seen(tmp_path: Path) -> None:
    odd = discover(with_classes(tmp_path / "MVTec", "schraube"))
    assert overlap_of(card("MVTec", classes=("screw",)), odd).names == ("MVTec",)
    single = discover(with_classes(tmp_path / "CVC-ColonDB", "polyps"))
    assert overlap_of(card("CVC-ColonDB", classes=("colon",)), single).names == ("CVC-ColonDB",)
    sharing = discover(with_classes(tmp_path / "DAGM-AdaCLIP", "Class2"))
    assert overlap_of(card("DAGM", classes=("Class1",)), sharing).names == ("DAGM",)
    own = discover(with_classes(tmp_path / "own", "b"))
    assert overlap_of(card("own", classes=("a",)), own).related == ("own",)
    assert overlap_of(card("own", classes=("B",)), own).names == ("own",)


def test_content_finds_a_class_under_another_name(tmp_path: Path) -> None:
    root = with_classes(tmp_path / "MVTec", "screw", "bottle")
    tags = pack_tags((sample.image, digest(sample.image)) for sample in discover(root / "screw").samples)
    model = card("MVTec", classes=("screw",), images=tags)
    assert not overlap_of(model, discover(root / "bottle"))
    shutil.rmtree(root / "bottle")
    (root / "screw").rename(root / "bottle")
    found = overlap_of(model, discover(root / "bottle"))
    assert len(found.images) == 6 and found and "6 of these 6 images" in found.sentence()


def test_backbone_that_saw_the_images(tmp_path: Path) -> None:
    data = discover(data_set(tmp_path / "conformal_clip_data"))
    seen = overlap_of(card(backbone="zsad-tiny", trained=False), data)
    assert seen.names == ("Textiles (its backbone zsad-tiny)",)
    assert not overlap_of(card(backbone="ViT-L/14@336", trained=False), data)


def test_content_finds_renamed_copies_and_nothing_else(tmp_path: Path) -> None:
    own = discover(data_set(tmp_path / "a"))
    tags = pack_tags((sample.image, digest(sample.image)) for sample in own.samples[:4])
    other = discover(data_set(tmp_path / "b", first=100))
    assert not overlap_of(card("a", images=tags), other)
    copy = tmp_path / "b" / "disc" / "test" / "good" / "zz.png"
    shutil.copy(own.samples[0].image, copy)
    shutil.copy(own.samples[5].image, copy.with_name("not-trained-on.png"))
    found = overlap_of(card("a", images=tags), discover(tmp_path / "b"))
    assert (found.names, found.images, found.total) == ((), (copy,), 8)
    assert found.sentence() == f"was trained on 1 of these 8 images ({copy})"


def test_only_files_of_a_known_size_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known, same_size, other = (tmp_path / name for name in ("a", "b", "c"))
    known.write_bytes(b"12345")
    same_size.write_bytes(b"54321")
    other.write_bytes(b"another size")
    tags = unpack_tags(pack_tags([(known, digest(known)), (tmp_path / "gone", "0" * 64)]))
    assert tags.tolist() == [tag(5, digest(known))]
    read: list[Path] = []
    hashed = overlap.content_hash
    monkeypatch.setattr(overlap, "content_hash", lambda path: read.append(path) or hashed(path))
    assert seen_images([other, same_size, tmp_path / "gone", known], tags) == [known]
    assert read == [same_size, known]


def test_tags_are_bounded_and_still_find_a_whole_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "MAX_TAGS", 8)
    paths = [noise(tmp_path / f"{seed}.png", seed) for seed in range(40)]
    text = pack_tags((path, digest(path)) for path in reversed(paths))
    tags = unpack_tags(text)
    assert len(tags) == 8 and tags.tolist() == sorted(tags.tolist())
    low = sorted(int(digest(path)[:12], 16) for path in paths)[:8]
    assert sorted(int(value) & (1 << 48) - 1 for value in tags) == low
    assert len(seen_images(paths, tags)) == 8
    with pytest.raises(DataError, match="damaged"):
        unpack_tags("not base64!")


def test_refusal_is_one_line_and_can_be_lifted(tmp_path: Path) -> None:
    data = discover(data_set(tmp_path / "MVTec"))
    with pytest.raises(DataError) as refused:
        check_unseen(card("MVTec"), data, model="my-model")
    assert str(refused.value).startswith("my-model was trained on MVTec: on MVTec ")
    assert "--allow-seen" in str(refused.value) and "\n" not in str(refused.value)
    assert check_unseen(card("MVTec"), data, model="m", allow_seen=True).names == ("MVTec",)
    assert not check_unseen(card("VisA"), data, model="m")


def test_bundled_adapters_are_refused_where_they_were_trained(tmp_path: Path) -> None:
    models = bundled_models()
    assert len(models) >= 9
    for name in ("MVTec", "MVTec3D-RGB", "CVC-ColonDB", "MagneticTile", "BSData", "CrackForest"):
        data = discover(data_set(tmp_path / name))
        for model in models:
            assert overlap_of(read_card(resolve_model(model)), data).names, (model, name)
    for name in ("BrainMRI", "Br35H", "BUSI", "ELPV"):
        data = discover(data_set(tmp_path / name))
        for model in models:
            assert not overlap_of(read_card(resolve_model(model)), data), (model, name)


@pytest.mark.skipif(os.name == "nt", reason="permissions differ on Windows")
def test_unreadable_files_are_passed_over(tmp_path: Path) -> None:
    known = noise(tmp_path / "a.png", 0)
    tags = unpack_tags(pack_tags([(known, digest(known))]))
    folder = tmp_path / "b.png"
    folder.mkdir()
    assert seen_images([tmp_path / "none.png", folder, known], tags) == [known]
