"""Every method through the command line: trained, measured, used, and stopped on the way."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import zsad.cli.train
from zsad.cli.main import main
from zsad.methods.registry import METHODS
from zsad.train.train_config import TrainConfig

TRAINED = tuple(name for name, entry in METHODS.items() if entry.needs_training)
STEPS = 4  # of an epoch: two classes, two labels, two images each, two a step
GIVEN = {"batch_size": 2, "limit_per_class": 2, "workers": 1}


def call(*words: object) -> tuple[int, str, str]:
    """Exit code and what is said of a command line."""
    said, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(told):
        code = main([str(word) for word in words])
    return code, said.getvalue(), told.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes in MVTec's layout, each with three good images and three with a bright square."""
    root = tmp_path_factory.mktemp("set")
    for name, grey in (("metal_nut", 150), ("tile", 60)):
        for index in range(6):
            random = np.random.default_rng([grey, index])
            kind = "spot" if index % 2 else "good"
            pixels = random.normal(grey, 8, (48, 48, 3))
            mask = np.zeros((48, 48), np.uint8)
            if index % 2:
                row, column = random.integers(0, 32, 2)
                pixels[row : row + 16, column : column + 16] += 80
                mask[row : row + 16, column : column + 16] = 255
                (root / name / "ground_truth" / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(root / name / "ground_truth" / kind / f"{index}_mask.png")
            (root / name / "test" / kind).mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
            image.save(root / name / "test" / kind / f"{index}.png")
    return root


def epochs_of(name: str) -> int:
    return len(METHODS[name].load().stages)


def training(name: str, toy: Any, data: Path, out: Path) -> tuple[int, str, str]:
    words = ["train", name, "--data", data, "--out", out, "--backbone", toy.backbone, "--device", "cpu"]
    words += ["--threads", 1, "--epochs", epochs_of(name)]
    for field, value in GIVEN.items():
        words += [f"--{field.replace('_', '-')}", value]
    return call(*words)


@pytest.fixture(scope="module")
def run_of(toy, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Finished runs by method, each trained once; not to be changed."""
    root, made = tmp_path_factory.mktemp("runs"), set()

    def get(name: str) -> Path:
        if name not in made:
            code, said, told = training(name, toy, data, root / name)
            assert code == 0 and "wrote" in said, told
            made.add(name)
        return root / name

    return get


@pytest.fixture
def use(toy):
    """A verb with a model on the toy backbone."""

    def run(verb: str, *words: object) -> tuple[int, str, str]:
        return call(verb, *words, "--backbone", toy.backbone, "--device", "cpu", "--threads", 1)

    return run


def scores_of(out: Path) -> dict[str, float]:
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    return {row["source"]: row["score"] for row in rows}


def steps_of(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.mark.parametrize("name", TRAINED)
def test_a_method_is_trained_measured_and_used(run_of, use, data: Path, tmp_path: Path, name: str) -> None:
    run, epochs = run_of(name), epochs_of(name)
    written = json.loads((run / "run.json").read_text())
    expected = TrainConfig(**{**METHODS[name].load().training_defaults, **GIVEN, "epochs": epochs})
    settings = expected.model_dump(mode="json")
    assert written["method"] == name and written["training"].items() <= settings.items()
    assert {"learning_rate", "betas", "warmup_epochs", "milestones", "batch_size"} <= written[
        "training"
    ].keys()
    assert len(steps_of(run)) == STEPS * epochs and not (run / "state.safetensors").exists()
    card = json.loads((run / "card.json").read_text())
    assert card["training"]["classes"] == ["metal_nut", "tile"] and card["training"]["samples"] == 8
    assert bool(card["provenance"]) == bool(METHODS[name].provenance)

    code, printed, told = use("evaluate", run, "--data", data, "--out", tmp_path / "measured", "--allow-seen")
    assert code == 0 and "metal_nut" in printed and "pixel AUROC" in printed, told
    re_designed = f"The method {name} is re-designed from the abstract" in " ".join(printed.split())
    assert re_designed == bool(METHODS[name].provenance)
    rows = json.loads((tmp_path / "measured" / "metrics.json").read_text())["rows"]
    table = list(csv.DictReader((tmp_path / "measured" / "metrics.csv").open()))
    assert [row["name"] for row in rows][:2] == ["metal_nut", "tile"] and len(table) == len(rows)
    for row in rows:
        assert all(0 <= value <= 1 for value in row["metrics"].values()) and len(row["metrics"]) >= 5

    used = tmp_path / "used"
    code, printed, told = use(
        *("predict", data / "metal_nut" / "test", "--model", run),
        *("--object", "metal nut", "--out", used, "--no-overlay"),
    )
    assert code == 0 and "6 images scored" in printed, told
    assert {"predictions.jsonl", "scores.csv", "grids.npy", "report.html"} <= {p.name for p in used.iterdir()}
    measured = scores_of(tmp_path / "measured")
    for source, score in scores_of(used).items():
        # What the data set calls the class is what the user calls it.
        assert score == pytest.approx(measured[source], abs=1e-4)


@pytest.mark.parametrize(("name", "stops"), [("moeclip", (2,)), ("mpama", (STEPS, STEPS + 2))])
def test_a_stopped_training_ends_as_one_that_was_not(
    toy, run_of, data: Path, tmp_path: Path, monkeypatch, name: str, stops: tuple[int, ...]
) -> None:
    report = zsad.cli.train._Reporter.__call__
    for stop in stops:

        def stopping(self: Any, now: Any, stop: int = stop) -> None:
            report(self, now)
            if now.stage == "train" and now.done == stop:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(zsad.cli.train._Reporter, "__call__", stopping)
            code, _, told = training(name, toy, data, tmp_path)
        assert code == 130 and f"step {stop} of" in told and not (tmp_path / "model.safetensors").exists()
    assert training(name, toy, data, tmp_path)[0] == 0
    whole = run_of(name)
    expected, found = (load_file(folder / "model.safetensors") for folder in (whole, tmp_path))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert steps_of(tmp_path) == steps_of(whole)
    cards = [json.loads((folder / "card.json").read_text()) for folder in (whole, tmp_path)]
    assert cards[0]["map_spec"] == cards[1]["map_spec"]


@pytest.mark.parametrize(
    ("name", "named"), [("winclip", True), ("moeclip", True), ("clip", False), ("promptmoe", False)]
)
def test_the_objects_name_counts_where_prompts_have_it(
    run_of, use, data: Path, tmp_path: Path, name: str, named: bool
) -> None:
    model = run_of(name) if name in TRAINED else name
    images, found = data / "tile" / "test" / "good", {}
    for word in (None, "object", "brain scan"):
        out = tmp_path / str(word)
        given = [] if word is None else ["--object", word]
        code, _, told = use(
            *("predict", images, "--model", model, *given, "--out", out, "--no-overlay", "--no-report")
        )
        assert code == 0, told
        found[word] = list(scores_of(out).values())
    assert len(found[None]) == 3 and found[None] == found["object"]
    assert (found["brain scan"] != found["object"]) == named


def test_published_transductive_scores_are_moeclips_alone(run_of, use, data: Path, tmp_path: Path) -> None:
    words = ["evaluate", run_of("moeclip"), "--data", data, "--out", tmp_path / "out", "--allow-seen"]
    tables = []
    for more in ([], ["--transductive"], ["--transductive"]):  # after the first, all is read back
        code, printed, told = use(*words, *more)
        assert code == 0, told
        assert ("scores are transductive" in printed) == bool(more)
        tables.append(json.loads((tmp_path / "out" / "metrics.json").read_text()))
    assert (
        any("transductive" in note for note in tables[1]["notes"]) and tables[1]["rows"] == tables[2]["rows"]
    )
    pixels = [[row["metrics"]["pixel_auroc"] for row in table["rows"]] for table in tables]
    assert pixels[0] == pixels[1]
    for name in ("promptmoe", "winclip"):
        model, out = run_of(name) if name in TRAINED else name, tmp_path / name
        code, printed, told = use(
            *("evaluate", model, "--data", data, "--out", out, "--transductive", "--allow-seen")
        )
        assert code == 2 and printed == "" and "MoECLIP's" in told.splitlines()[-1]
        assert told.count("zsad: error: ") == 1 and not (out / "metrics.json").exists()


def test_a_model_on_own_weights_says_where_they_have_to_be_named(
    toy, run_of, data: Path, tmp_path: Path
) -> None:
    run = run_of("aprilgan")
    code, printed, _ = training("aprilgan", toy, data, run)  # finished before
    assert code == 0 and f"zsad evaluate {run} --backbone {toy.backbone} --data" in printed
    code, _, told = call("predict", data, "--model", run, "--out", tmp_path / "out", "--device", "cpu")
    assert code == 2 and told.count("\n") == 2 and told.startswith("zsad: left out, folders of masks")
    assert "trained on backbone 'toy'" in told and "--backbone" in told and "did you mean" not in told
