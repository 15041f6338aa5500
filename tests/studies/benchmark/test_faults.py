"""What is wrong with a data set, found file by file, in folders and in listings alike."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zsad.datasets.manifest import DataSet, discover
from zsad.errors import DataError
from zsad.metrics.table import COLUMNS
from zsad.studies.benchmark.cell_results import CellResult, ClassRow, FileProblem
from zsad.studies.benchmark.faults import masked, of_the_set
from zsad.studies.benchmark.summary import Summary
from zsad.studies.report.result_tables import entry_text, notes, to_latex


def listing(root: Path, *, drop: str = "", swap: bool = False, numbered: bool = False) -> Path:
    """Two classes of two normal and three anomalous pictures below a meta.json; masks may have numbers of their own."""
    rng = np.random.default_rng(0)
    classes: dict[str, list[dict[str, object]]] = {"bolt": [], "nut": []}
    for name, entries in classes.items():
        for index in range(5):
            image, mask = f"{name}/image/{index}.png", f"{name}/mask/{4 - index if numbered else index}.png"
            for path in (image, mask):
                (root / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(root / image)
            anomalous = int(index > 1)
            if anomalous:
                Image.fromarray(np.eye(24, dtype=np.uint8) * 255).save(root / mask)
            entries.append({"img_path": image, "mask_path": mask if anomalous else "", "anomaly": anomalous})
    if swap:
        two, three = classes["nut"][2], classes["nut"][3]
        two["mask_path"], three["mask_path"] = three["mask_path"], two["mask_path"]
        classes["nut"] += [classes["nut"][4] | {"img_path": f"nut/image/{n}.png"} for n in "56"]
        for number in "56":
            for kind in ("image", "mask"):
                (root / f"nut/{kind}/{number}.png").write_bytes((root / f"nut/{kind}/4.png").read_bytes())
            classes["nut"][int(number)]["mask_path"] = f"nut/mask/{number}.png"
    (root / "meta.json").write_text(json.dumps({"test": classes}))
    if drop:
        (root / drop).unlink()
    return root


def reasons(root: Path, work: Path) -> tuple[DataSet, dict[str, str]]:
    data, faults = masked(discover(root, missing="keep"), folder=work, workers=1)
    return data, {fault.path: fault.reason for fault in faults}


def test_listed_files_that_are_missing_cost_their_class_alone(tmp_path: Path) -> None:
    root = listing(tmp_path / "set", drop="nut/mask/3.png")
    with pytest.raises(DataError, match="does not exist"):
        discover(root)
    data, found = reasons(root, tmp_path / "work")
    assert list(found) == [str(root / "nut/mask/3.png")]
    assert data.pixel_metric_classes() == ["bolt"] and len(data.samples) == 10


def test_masks_exchanged_in_a_listing_are_named(tmp_path: Path) -> None:
    root = listing(tmp_path / "set", swap=True)
    data, found = reasons(root, tmp_path / "work")
    assert set(found) == {str(root / "nut/mask/2.png"), str(root / "nut/mask/3.png")}
    assert all("swapped?" in reason for reason in found.values())
    assert data.pixel_metric_classes() == ["bolt"]
    # What was found is kept, and found again.
    assert reasons(root, tmp_path / "work")[1] == found


def test_masks_with_numbers_of_their_own_are_no_fault(tmp_path: Path) -> None:
    data, found = reasons(listing(tmp_path / "set", numbered=True), tmp_path / "work")
    assert not found and data.pixel_metric_classes() == ["bolt", "nut"]


def test_means_without_a_broken_class_are_marked() -> None:
    def result(name: str, *problems: FileProblem) -> CellResult:
        rows = tuple(
            ClassRow(name=part, normal=2, anomalous=3, masks=3, metrics=dict.fromkeys(COLUMNS, value))
            for part, value in (("bolt", 0.5), ("nut", None if problems else 0.6))
        )
        texts = {"method": "clip", "label": "clip", "backbone": "toy", "backbone_sha256": "0", "target": name}
        return CellResult(key=f"clip-{name}", rows=rows, problems=problems, **texts)

    summary = Summary([result("whole"), result("broken", FileProblem(path="nut/3.png", reason="is damaged"))])
    assert entry_text(summary.entry("clip", "whole", "pixel_pro")) == "55.0"
    assert entry_text(summary.entry("clip", "broken", "pixel_pro")) == "50.0§"
    assert any(line.startswith("§ Mean without the classes") for line in notes(summary))
    assert r"50.0\textsuperscript{\S{}}" in to_latex(summary)


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), "grey").save(path)


def test_masks_without_image_classes_without_images_and_without_normals_are_named(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for number in range(3):
        picture(root / f"Class1/Test/{number}.PNG")
        picture(root / f"Class2/Test/{number}.PNG")
        picture(root / f"Class2/Test/Label/{number}_label.PNG")
    picture(root / "Class1/Test/Label/0_label.PNG")
    picture(root / "Class1/Test/Label/9_label.PNG")
    (root / "Class3/Test").mkdir(parents=True)
    data = discover(root)
    found = {problem.path: problem.reason for problem in of_the_set(data, [])}
    assert found == {
        str(root / "Class1/Test/Label/9_label.PNG"): "mask without an image of its name",
        str(root / "Class3/Test"): "class without images",
        str(root / "Class2/Test"): "class Class2 has no normal image: image metrics are undefined",
    }


def test_sets_without_any_normal_images_are_sound(tmp_path: Path) -> None:
    for number in range(2):
        picture(tmp_path / f"set/images/{number}.png")
        picture(tmp_path / f"set/masks/{number}.png")
    assert not list(of_the_set(discover(tmp_path / "set"), []))


@pytest.mark.parametrize("others", [("yes", "no"), ("defect", "good")])
def test_an_empty_folder_of_normals_still_says_what_the_others_are(
    tmp_path: Path, others: tuple[str, str]
) -> None:
    anomalous, normal = others
    picture(tmp_path / "set" / anomalous / "0.png")
    picture(tmp_path / "set" / "pred" / "0.png")
    (tmp_path / "set" / normal).mkdir()
    data = discover(tmp_path / "set")
    labels = {sample.kind: sample.label for sample in data.samples}
    assert labels[anomalous] == 1 and (normal == "good" or set(labels) == {"yes"})
