"""`zsad benchmark`: cells kept through kills, with holes where data are broken."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from zsad.cli.main import main
from zsad.files import sole_writer
from zsad.methods.base import Method
from zsad.metrics.table import COLUMNS
from zsad.runs.store import read_run
from zsad.studies.benchmark.cell_results import read_cells

PAIRS = ["--pair", "aux,one>two", "--pair", "two>one", "--seeds", "7", "8"]


def table(out: Path) -> Any:
    """The results less what differs between two runs of the same: times."""
    document = json.loads((out / "results.json").read_text())
    for cell in document["cells"]:
        for name in ("seconds_training", "seconds_per_image", "peak_memory_mb", "environment"):
            cell.pop(name)
    return document


@pytest.fixture(scope="module")
def whole(toy, drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a benchmark that was never stopped: clip and promptmoe, both directions, two seeds."""
    root = tmp_path_factory.mktemp("whole")
    patch = pytest.MonkeyPatch()
    patch.setattr("zsad.studies.benchmark.write_results.find_spec", lambda name: None)
    conftest = Path(__file__).with_name("conftest.py").read_text()
    (root / "recipes.toml").write_text(conftest.split('RECIPES = """\\\n')[1].split('"""')[0])
    words = ["benchmark", "--methods", "clip", "promptmoe", "--data", drawn, "--out", root / "out"]
    words += [
        "--backbone",
        toy.backbone,
        "--recipes",
        root / "recipes.toml",
        "--device",
        "cpu",
        "--threads",
        1,
    ]
    assert main([str(word) for word in (*words, "--no-cost", *PAIRS)]) == 0
    patch.undo()
    return root / "out"


def test_every_cell_says_what_was_measured_and_how(whole: Path, drawn: Path) -> None:
    cells = read_cells(whole)
    assert [(cell.label, cell.target, cell.trained_on, cell.seed) for cell in cells] == [
        ("clip", "one", (), None),
        *(("promptmoe", "one", ("two",), seed) for seed in (7, 8)),
        ("clip", "two", (), None),
        *(("promptmoe", "two", ("aux", "one"), seed) for seed in (7, 8)),
    ]
    for cell in cells:
        assert cell.state == "done" and cell.backbone == "toy" and not cell.seen and not cell.problems
        assert cell.environment["torch"] and (cell.seconds_training is None) == (cell.seed is None)
        assert (cell.training is None) == (cell.seed is None)
        [row] = cell.rows
        assert row.name == cell.target and row.normal + row.anomalous == 10 and row.masks == row.anomalous
        assert set(row.metrics) == set(COLUMNS)
        scores = np.load(whole / cell.files.scores)
        assert all((drawn / cell.target / name).is_file() for name in scores["image"])
        truth, found = scores["label"], scores["score"]
        assert row.metrics["image_auroc"] == pytest.approx(roc_auc_score(truth, found), abs=1e-12)
        kept = list(read_run(whole / cell.files.grids))
        assert [prediction.score for prediction in kept] == pytest.approx(found.tolist(), rel=1e-8)
        lines = np.load(whole / cell.files.curves)
        area = np.trapezoid(lines[f"{row.name}/roc_y"], lines[f"{row.name}/roc_x"])
        assert area == pytest.approx(row.metrics["pixel_auroc"], abs=0.02)
    assert {cell.training["seed"] for cell in cells if cell.training} == {7, 8}


def test_means_of_a_direction_are_those_of_its_targets(whole: Path) -> None:
    directions = json.loads((whole / "results.json").read_text())["directions"]
    assert [(entry["trained_on"], entry["label"]) for entry in directions] == [
        (sets, label) for sets in (["two"], ["aux", "one"]) for label in ("clip", "promptmoe")
    ]
    cells = read_cells(whole)
    for entry in directions:
        own = [
            cell.rows[0].metrics["pixel_pro"]
            for cell in cells
            if cell.label == entry["label"]
            and cell.trained_on in ((), tuple(entry["trained_on"]))
            and cell.target == {"two": "one"}.get(entry["trained_on"][0], "two")
        ]
        assert entry["mean"]["pixel_pro"] == pytest.approx(sum(own) / len(own))
        deviation = entry["deviation"]["pixel_pro"]
        assert (
            deviation is None
            if len(own) == 1
            else deviation == pytest.approx(abs(own[0] - own[1]) / math.sqrt(2))
        )


def test_same_command_computes_nothing_again(
    call, words, whole: Path, tmp_path: Path, no_report: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole, tmp_path / "out")

    def refused(*_: object) -> None:
        raise AssertionError("computed")

    monkeypatch.setattr(Method, "features", refused)
    monkeypatch.setattr("zsad.studies.benchmark.cell_runner.train", refused)
    code, printed, said = call(*words(*PAIRS))
    assert code == 0, said
    assert "wrote results.json" in printed and "done" not in said
    assert table(tmp_path / "out") == table(whole)
    code, printed, _ = call("benchmark", "--report-only", "--out", tmp_path / "out")
    assert code == 0 and "promptmoe" in printed


def test_frozen_features_are_computed_once_for_all_methods(
    call, words, no_report: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    features = Method.features

    def counted(self: Method, pixels: Any) -> Any:
        seen.append(len(getattr(pixels, "tokens", pixels)))  # images, or their patches
        return features(self, pixels)

    monkeypatch.setattr(Method, "features", counted)
    code, _, said = call(*words(*PAIRS, methods="clip anomalyclip promptmoe"))
    assert code == 0, said
    assert sum(seen) <= 3 * (4 * 2 + 10 + 10)  # three ways of reading the tower; of `aux` what is trained on


def written(folder: Path) -> int:
    """How many JSON files there are just now; folders may vanish while they are counted, which glob() minds."""
    return sum(name.endswith(".json") for _, _, names in os.walk(folder) for name in names)


@pytest.mark.skipif(os.name != "posix", reason="fork and SIGKILL")
def test_killed_at_random_moments_gives_the_same_tables(
    words, whole: Path, tmp_path: Path, no_report: None
) -> None:
    out, chance = tmp_path / "out", random.Random(5)
    command = words(*PAIRS)
    done: list[int] = []
    for _ in range(5):
        child = os.fork()
        if not child:
            try:
                os._exit(main(command))
            finally:
                os._exit(9)
        before, deadline, ended = written(out), time.monotonic() + 20, False
        while not ended and time.monotonic() < deadline and written(out) < before + 4:
            time.sleep(0.005)
            ended = os.waitpid(child, os.WNOHANG)[0] == child
        if not ended:
            time.sleep(chance.uniform(0, 0.2))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        finished = {path: path.read_bytes() for path in (out / "cells").glob("*.json")}
        assert len(finished) >= (done[-1] if done else 0)
        done.append(len(finished))
    assert len(set(done)) > 1, done
    assert main(command) == 0
    assert all(path.read_bytes() == content for path, content in finished.items())
    assert table(out) == table(whole)


@pytest.mark.skipif(os.name != "posix", reason="locks of POSIX")
def test_a_second_benchmark_in_the_same_folder_is_refused(call, words, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with sole_writer(out):
        code, printed, said = call(*words(*PAIRS))
    assert (
        code == 2 and not printed and said.splitlines()[-1].startswith("zsad: error: another zsad is writing")
    )
    assert not list(out.iterdir())


def broken(drawn: Path, root: Path) -> dict[str, Path]:
    """A copy of the drawn sets; `two` with a mask gone, one swapped with its image, one of another size, and a
    picture cut off, each in a class of its own; and one without normals."""
    shutil.copytree(drawn, root)
    found = {}
    for name in ("missing", "swapped", "size", "cut", "anomalous"):
        shutil.copytree(root / "two" / "two", root / "two" / name)
        images = sorted((root / "two" / name / "test").glob("[!g]*/*.png"))
        masks = sorted((root / "two" / name / "ground_truth").rglob("*.png"))
        found[name] = images[0] if name in ("cut", "missing") else masks[0]
        if name == "missing":
            masks[0].unlink()
        elif name == "swapped":
            noise = np.random.default_rng(0).integers(1, 255, (64, 64), dtype=np.uint8)
            Image.fromarray(noise).save(masks[0])
        elif name == "size":
            Image.new("L", (32, 32)).save(masks[0])
        elif name == "cut":
            images[0].write_bytes(images[0].read_bytes()[:300])
        else:
            shutil.rmtree(root / "two" / name / "test" / "good")
            found[name] = root / "two" / name / "test"
    return found


def test_broken_files_are_named_and_leave_holes(
    call, words, drawn: Path, tmp_path: Path, no_report: None
) -> None:
    bad = broken(drawn, tmp_path / "data")
    (tmp_path / "data" / "empty").mkdir()
    (tmp_path / "data" / "two" / "gone" / "test").mkdir(parents=True)
    bad["gone"] = tmp_path / "data" / "two" / "gone" / "test"
    code, _, said = call(
        *words("--pair", "aux>two,empty,one", methods="clip promptmoe", data=tmp_path / "data")
    )
    assert code == 3
    cells = {(cell.label, cell.target): cell for cell in read_cells(tmp_path / "out")}
    assert {key for key, cell in cells.items() if cell.state == "failed"} == {
        ("clip", "empty"),
        ("promptmoe", "empty"),
    }
    assert "holds no images" in cells["clip", "empty"].reason and "no result: clip on empty" in said
    for label in ("clip", "promptmoe"):
        assert cells[label, "one"].rows[0].metrics["image_auroc"] is not None
        cell = cells[label, "two"]
        rows = {row.name: row for row in cell.rows}
        assert rows["two"].metrics["pixel_pro"] is not None and rows["two"].metrics["image_auroc"] is not None
        for name in ("missing", "swapped", "size"):
            assert rows[name].metrics["pixel_auroc"] is None and rows[name].metrics["pixel_pro"] is None
            assert rows[name].metrics["image_auroc"] is not None
        assert set(rows["cut"].metrics.values()) == set(rows["gone"].metrics.values()) == {None}
        assert (
            rows["anomalous"].metrics["image_auroc"] is None
            and rows["anomalous"].metrics["pixel_pro"] is not None
        )
        assert {problem.path for problem in cell.problems} == set(map(str, bad.values()))
    for name in ("missing", "swapped", "size", "cut", "anomalous"):
        assert sum(str(bad[name]) in line for line in said.splitlines()) == 1
        assert any(str(bad[name]) in note or name in note for note in cells["clip", "two"].notes)
    assert "swapped?" in said
    # Whole again, they are measured again, and nothing else is.
    shutil.rmtree(tmp_path / "data" / "empty")
    shutil.copytree(drawn / "two", tmp_path / "data" / "empty")
    before = {cell.key for cell in cells.values() if cell.state == "done"}
    code, _, said = call(
        *words("--pair", "aux>two,empty,one", methods="clip promptmoe", data=tmp_path / "data")
    )
    after = read_cells(tmp_path / "out")
    assert before <= {cell.key for cell in after} and all(cell.state == "done" for cell in after)
    assert said.count(" done") == 2


def test_trained_models_are_measured_where_they_are_unseen(
    call, words, whole: Path, toy, tmp_path: Path, no_report: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = next(
        path for path in (whole / "runs").glob("promptmoe-7-*") if "two" in (path / "card.json").read_text()
    )
    card = json.loads((run / "card.json").read_text())
    one = next(name for name in ("one", "two") if name not in card["training"]["datasets"])
    seen = next(name for name in ("one", "two") if name in card["training"]["datasets"])
    Path(card["backbone"]["name"]).symlink_to(toy.backbone)  # by which the card knows it
    command = words("--pair", "aux>one,two", methods=f"mine={run}")
    code, _, said = call(*command)
    assert code == 3 and f"mine was trained on {seen}" in said.replace("promptmoe", "mine")
    cells = {cell.target: cell for cell in read_cells(tmp_path / "out")}
    assert cells[seen].state == "failed" and cells[one].state == "done"
    own = next(c for c in read_cells(whole) if c.target == one and c.seed == 7)
    assert cells[one].rows == own.rows and cells[one].label == "mine" and cells[one].seed == 7
    assert call(*command, "--allow-seen")[0] == 0
    cells = {cell.target: cell for cell in read_cells(tmp_path / "out")}
    assert cells[seen].seen and not cells[one].seen


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--pair", "one>one"], "--allow-seen"),
        (["--pair", "aux>on"], "no data set 'on'"),
        (["--pair", "aux"], "is no pair"),
        (["--train-on", "aux"], "say what to measure on"),
        (["--test-on", "one"], "no set to train on is given"),
        ([], "nothing to measure on"),
        (["--protocol", "mvtec"], "did you mean 'mvtec-first'?"),
        (["--protocol", "visa-first"], "no pair is left to run"),
        (["--pair", "aux>one", "--seed", "3"], "use --seeds"),
        (["--pair", "aux>one", "--jobs", "0"], "expected 1 or more"),
        (["--pair", "aux>one", "--learning-rate", "-1"], "learning"),
    ],
)
def test_slips_are_explained_before_anything_is_done(
    call, words, tmp_path: Path, more: list[str], reason: str
) -> None:
    code, printed, said = call(*words(*more))
    assert code == 2 and reason in said and said.count("\n") == 1 and not printed
    assert not (tmp_path / "out").exists()


def test_cost_is_measured_in_a_process_of_its_own(call, words, tmp_path: Path, no_report: None) -> None:
    command = words("--pair", "aux>one,two", methods="clip")
    command.remove("--no-cost")
    assert call(*command)[0] == 0
    first, second = read_cells(tmp_path / "out")
    assert first.seconds_per_image == second.seconds_per_image and 0 < first.seconds_per_image < 60
    assert 100 < first.peak_memory_mb < 3000


def test_without_ray_one_line_says_what_to_install(
    call, words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for more in (["--jobs", 2], ["--address", "auto"]):
        code, printed, said = call(*words(*PAIRS, *more))
        assert code == 2 and not printed and said.count("pip install 'zsad[scale]'") == said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A cluster on this machine: commands use the one that their process has joined."""
    ray = pytest.importorskip("ray")
    pytest.importorskip("pyarrow")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield ray
    ray.shutdown()


def test_tasks_of_ray_give_the_same_results(
    call, words, whole: Path, tmp_path: Path, no_report: None, ray: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = words(*PAIRS, "--jobs", 2)
    command[command.index("--data") + 1] = "sets"  # also by paths from the present folder
    (tmp_path / "sets").symlink_to(words()[words().index("--data") + 1])
    monkeypatch.chdir(tmp_path)
    code, _, said = call(*command)
    assert code == 0, said
    assert table(tmp_path / "out") == table(whole)
    assert sum(" done" in line for line in said.splitlines()) == 6
    cells = read_cells(tmp_path / "out")
    assert {cell.environment["processes"] for cell in cells} == {2}
    code, _, said = call(*command)
    assert code == 0 and " done" not in said


def test_failures_in_tasks_of_ray_leave_holes(
    call, words, drawn: Path, tmp_path: Path, no_report: None, ray: Any
) -> None:
    shutil.copytree(drawn, tmp_path / "data")
    for mask in (tmp_path / "data" / "aux").rglob("ground_truth/**/*.png"):
        mask.unlink()
    (tmp_path / "data" / "empty").mkdir()
    code, _, said = call(
        *words("--pair", "aux>empty,one", "--jobs", 2, "--learning-rate", "1e30", data=tmp_path / "data")
    )
    assert code == 3
    states = {(cell.label, cell.target): cell.state for cell in read_cells(tmp_path / "out")}
    assert states["clip", "one"] == "done" and states["clip", "empty"] == "failed"
    assert states["promptmoe", "one"] == states["promptmoe", "empty"] == "failed"
    assert "no result: promptmoe on one, seed 111: " in said


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_killed_with_its_tasks_of_ray_gives_the_same_tables(
    words, whole: Path, tmp_path: Path, no_report: None
) -> None:
    pytest.importorskip("ray")
    pytest.importorskip("pyarrow")
    command, out = words(*PAIRS), tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "zsad", *command, "--jobs", "2"], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while len(list((out / "cells").glob("*.json"))) < 2 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    finished = {path: path.read_bytes() for path in (out / "cells").glob("*.json")}
    assert 2 <= len(finished) < 6
    assert main(command) == 0
    assert all(path.read_bytes() == content for path, content in finished.items())
    assert table(out) == table(whole)
