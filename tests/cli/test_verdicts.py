"""From normal images to verdicts on the command line: `calibrate`, `predict`, `monitor`, and the files they write."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zsad.cli.main import main
from zsad.runs.region_files import FORMATS


@pytest.fixture
def call(toy, capsys: pytest.CaptureFixture[str]):
    """Runs `zsad ...`; returns exit code, stdout and stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        return (code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def calibrated(toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibration of the toy model on its five images, loose enough that some are anomalous."""
    path = tmp_path_factory.mktemp("calibration") / "c.json"
    words = ["--target-fpr", "0.4", "--confidence", "0", "--pixel-fpr", "0.6"]
    assert main(["calibrate", str(toy.model), "--normals", str(toy.images), "--out", str(path), *words]) == 0
    return path


@pytest.fixture(scope="module")
def judged(toy, calibrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with verdicts and all region files; not to be changed."""
    out = tmp_path_factory.mktemp("judged") / "out"
    words = ["--calibration", str(calibrated), "--regions", *FORMATS, "--device", "cpu"]
    assert main(["predict", str(toy.images), "--model", str(toy.model), "--out", str(out), *words]) == 0
    return out


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def test_rows_lines_and_report_tell_the_verdict(judged: Path, calibrated: Path) -> None:
    made = json.loads(calibrated.read_text())
    rows = rows_of(judged)
    for row in rows:
        assert row["verdict"] == ("anomalous" if row["score"] > made["image"]["value"] else "normal")
        above = sum(score >= row["score"] - 1e-9 for score in made["scores"])
        assert row["p_value"] == pytest.approx((1 + above) / 6, abs=1e-6)
        assert (row["threshold"], row["pixel_threshold"]) == (made["image"]["value"], made["pixel"]["value"])
    assert {row["verdict"] for row in rows} == {"normal", "anomalous"}
    table = list(csv.DictReader((judged / "scores.csv").open()))
    assert [entry["verdict"] for entry in table] == [row["verdict"] for row in rows]
    assert [int(entry["regions"]) for entry in table] == [len(row["regions"]) for row in rows]
    page = (judged / "report.html").read_text()
    assert 'class="threshold"' in page and "p-value" in page and "at most 40 % of normal images" in page
    assert page.count('<span class="tag t1">anomalous</span>') == sum(
        r["verdict"] == "anomalous" for r in rows
    )


def test_region_files_agree(judged: Path) -> None:
    rows = rows_of(judged)
    told = [(row["source"], region) for row in rows for region in row["regions"]]
    assert told
    lines = [json.loads(line) for line in (judged / "regions.jsonl").read_text().splitlines()]
    assert [(line["source"], line["polygon"]) for line in lines] == [(s, r["polygon"]) for s, r in told]
    table = list(csv.DictReader((judged / "regions.csv").open()))
    assert [float(entry["area"]) for entry in table] == [region["area"] for _, region in told]
    coco = json.loads((judged / "regions.coco.json").read_text())
    names = {image["id"]: image for image in coco["images"]}
    assert len(names) == 5
    for entry, (source, region) in zip(coco["annotations"], told, strict=True):
        assert names[entry["image_id"]]["file_name"] == source
        assert (
            entry["segmentation"] == [np.ravel(region["polygon"]).tolist()] and entry["bbox"] == region["box"]
        )
    tasks = json.loads((judged / "regions.labelstudio.json").read_text())
    found = [shape for task in tasks for shape in task["predictions"][0]["result"]]
    for shape, (_, region) in zip(found, told, strict=True):
        points = (
            np.asarray(shape["value"]["points"]) * (shape["original_width"], shape["original_height"]) / 100
        )
        np.testing.assert_allclose(points, region["polygon"], atol=0.01)
        assert shape["value"]["polygonlabels"] == ["anomaly"]


def test_coco_file_is_read_by_cocos_own_tools(judged: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    data = coco.COCO(str(judged / "regions.coco.json"))
    for number in data.getAnnIds():
        [entry] = data.loadAnns(number)
        assert data.annToMask(entry).sum() == pytest.approx(entry["area"], rel=0.5, abs=200)


def test_console_shows_what_a_user_acts_on(call, toy, calibrated: Path, tmp_path: Path) -> None:
    code, printed, said = call(
        "predict", toy.images / "part01.png", "--model", toy.model, "--calibration", calibrated,
        "--out", tmp_path / "out", "--no-report", "--device", "cpu",
    )  # fmt: skip
    lines = printed.splitlines()
    assert (code, said) == (0, "")
    assert lines[0].split() == ["score", "time", "verdict", "p-value", "regions", "image"]
    [row] = rows_of(tmp_path / "out")
    cells = lines[1].split()
    assert cells[3] == row["verdict"] and float(cells[4]) == pytest.approx(row["p_value"], rel=0.05)
    assert int(cells[5]) == len(row["regions"]) and cells[6] == "part01.png"
    assert f"{int(row['verdict'] == 'anomalous')} anomalous" in lines[2]


def test_calibrate_says_what_it_promises_and_what_is_lacking(call, toy, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    code, printed, said = call("calibrate", toy.model, "--normals", toy.images, "--out", path)
    assert code == 0 and printed.startswith("5 normal images, scores ")
    assert (
        "with 5 normals the smallest false-positive rate that can be promised at 95 % confidence is 45.1 %"
        in said
    )
    assert "1 % needs 299 normals" in said and said.count("\n") == 2
    assert f"wrote {path}" in printed


def test_calibration_beside_the_model_is_found_and_labels_choose(
    call, toy, make_images, tmp_path: Path
) -> None:
    import shutil

    model = shutil.copytree(toy.model, tmp_path / "model")
    data = tmp_path / "data"
    for index, path in enumerate(sorted(make_images(tmp_path / "all", 4).iterdir())):
        kind = data / ("scratch" if index % 2 else "good")
        kind.mkdir(parents=True, exist_ok=True)
        path.rename(kind / path.name)
    code, printed, _ = call(
        "calibrate", model, "--labelled", data, "--goal", "recall=0.5", "--confidence", "0"
    )
    assert code == 0 and "of 2 anomalous images found" in printed and (model / "calibration.json").is_file()
    out = tmp_path / "out"
    code, printed, _ = call(
        "predict", data / "good", "--model", model, "--out", out, "--no-report", "--no-overlay"
    )
    assert code == 0 and "p-value" in printed and all(row["verdict"] for row in rows_of(out))
    code, _, said = call("predict", data, "--model", model, "--out", out, "--calibration", "none")
    assert code == 2 and "other settings (" in said and "calibration" in said


def test_refusals_are_one_line(call, toy, calibrated: Path, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text("[[0, 0], [40, 0], [40, 40]]")
    predict = ("predict", toy.images, "--out", tmp_path / "out", "--device", "cpu")
    other = ("--model", "clip", "--backbone", toy.backbone)
    for words, word in (
        ((*predict, "--model", toy.model, "--regions", "csv"), "--regions needs a pixel threshold"),
        ((*predict, *other, "--calibration", calibrated), "not for clip"),
        (
            (*predict, "--model", toy.model, "--calibration", calibrated, "--object", "nut"),
            "another --object",
        ),
        (
            (*predict, "--model", toy.model, "--calibration", calibrated, "--roi", tmp_path / "p.json"),
            "--roi",
        ),
        ((*predict, "--model", toy.model, "--calibration", tmp_path / "none.json"), "cannot be read"),
        ((*predict, "--model", toy.model, "--min-area", "-1"), "--min-area is -1"),
        (("calibrate", toy.model, "--out", tmp_path / "c.json"), "no images given"),
        (("calibrate", "promptmoe-tiny", "--normals", toy.images), "--out calibration.json"),
        (("calibrate", toy.model, "--labelled", toy.images, "--out", tmp_path / "c.json"), "no labels"),
        (
            ("calibrate", toy.model, "--normals", toy.images, "--target-fpr", "0"),
            "target false-positive rate is 0",
        ),
        (("monitor", calibrated, toy.images), "holds no predictions.jsonl"),
    ):
        code, printed, said = call(*words)
        assert (code, printed) == (2, ""), (words, printed, said)
        assert word in said and said.count("\n") == 1, said
    assert not (tmp_path / "out").exists() and not (tmp_path / "c.json").exists()


def test_region_of_interest_travels_with_the_calibration(call, toy, make_images, tmp_path: Path) -> None:
    images = make_images(tmp_path / "in", 1)
    mask = np.zeros((80, 96), np.uint8)
    mask[:, :48] = 1
    Image.fromarray(mask * 255).save(tmp_path / "left.png")
    path, out = tmp_path / "c.json", tmp_path / "out"
    roi = (
        "--roi",
        tmp_path / "left.png",
        "--confidence",
        "0",
        "--target-fpr",
        "0.5",
        "--pixel-rule",
        "pixels",
    )
    assert call("calibrate", toy.model, "--normals", images, "--out", path, *roi)[0] == 0
    Image.new("RGB", (50, 40)).save(images / "small.png")
    code, _, said = call("predict", images, "--model", toy.model, "--out", out, "--calibration", path)
    assert code == 3 and "small.png" in said and "made for 96x80 px" in said
    [row, failed] = sorted(rows_of(out), key=lambda row: "error" in row)
    assert row["p_value"] == 1 and row["verdict"] == "normal" and "made for" in failed["error"]
    assert all(x <= 50 for region in row["regions"] for x, _ in region["polygon"])
    assert json.loads((out / "run.json").read_text())["region"]["include"]["size"] == [80, 96]
    assert "Only the region of interest" in (out / "report.html").read_text()


def test_monitor_is_calm_on_the_same_and_warns_of_others(
    call, toy, calibrated: Path, judged: Path, tmp_path
) -> None:
    code, printed, said = call("monitor", calibrated, judged)
    assert (code, said) == (0, "") and "no drift at a false alarm rate of 1 %" in printed
    rows = rows_of(judged)
    moved = tmp_path / "predictions.jsonl"
    lines = [{**rows[n % 5], "score": min(1.0, 0.98 + 0.0001 * n)} for n in range(80)]
    moved.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "run.json").write_text((judged / "run.json").read_text())
    code, printed, said = call("monitor", calibrated, moved)
    assert (
        code == 4
        and "warning: drift: all images score higher" in said
        and "above the threshold: 80 of 80" in printed
    )
    code, printed, _ = call("monitor", calibrated, tmp_path, "--json", "--last", "60")
    assert code == 4 and json.loads(printed)["drifted"] and json.loads(printed)["count"] == 60
    run = json.loads((judged / "run.json").read_text())
    run["settings"]["model"] = "another"
    (tmp_path / "run.json").write_text(json.dumps(run))
    code, _, said = call("monitor", calibrated, tmp_path)
    assert code == 2 and "another model" in said and said.count("\n") == 1


def test_monitor_scores_a_folder_of_images(call, toy, calibrated: Path) -> None:
    code, printed, _ = call("monitor", calibrated, toy.images, "--model", toy.model, "--device", "cpu")
    assert (
        code == 0 and "5 new images against 5 of the calibration" in printed and "distance 0.000" in printed
    )
