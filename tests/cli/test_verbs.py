"""The other verbs, in this process."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import zsad
from zsad.cli.demo import demo_samples, standard_error
from zsad.cli.main import VERBS, main
from zsad.errors import ConfigError


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]):
    def run(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        return (code, *capsys.readouterr())

    return run


@pytest.fixture
def mvtec(make_images, tmp_path: Path) -> Path:
    """One class in MVTec's layout: two good, two scratched with masks."""
    images = sorted(make_images(tmp_path / "all", 4).iterdir())
    root = tmp_path / "set" / "disc"
    for index, path in enumerate(images):
        kind = "scratch" if index % 2 else "good"
        (root / "test" / kind).mkdir(parents=True, exist_ok=True)
        path.rename(root / "test" / kind / path.name)
        if kind == "scratch":
            size = Image.open(root / "test" / kind / path.name).size
            mask = np.zeros(size[::-1], np.uint8)
            mask[28:55, 28:68] = 255
            (root / "ground_truth" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(root / "ground_truth" / kind / f"{path.stem}_mask.png")
    return tmp_path / "set"


def test_every_verb_is_listed_with_help(call) -> None:
    code, printed, _ = call("--help")
    assert code == 0
    for verb in VERBS:
        assert verb in printed
        assert call(verb, "--help")[0] == 0


def test_models_are_listed_with_the_parts_of_their_image_score(call) -> None:
    code, printed, _ = call("list", "models")
    rows = {line.split()[0]: line for line in printed.splitlines()}
    assert code == 0 and " map, oddness " in rows["promptmoe-tiny"]
    assert " map and global, oddness " in rows["aprilgan-tiny"] and " the method's " in rows["clip-tiny"]


@pytest.mark.parametrize("words", [["nope"], ["predict", "--nope", "1"], ["evaluate"], ["list", "cats"]])
def test_misuse_is_one_line(call, words: list[str]) -> None:
    code, printed, said = call(*words)
    assert (code, printed) == (2, "")
    assert said.startswith("zsad: error: ") and said.count("\n") == 1


def test_version(call) -> None:
    assert call("version")[:2] == call("--version")[:2] == (0, zsad.__version__ + "\n")


def test_lists(call) -> None:
    assert "promptmoe" in call("list", "methods")[1]
    assert "ViT-L/14@336" in call("list", "backbones")[1]
    code, printed, _ = call("list", "models")
    assert code == 0 and "clip-tiny" in printed


def test_doctor_tells_what_is_missing_and_how_to_get_it(call, monkeypatch: pytest.MonkeyPatch) -> None:
    import zsad.cli.doctor as doctor

    find_spec = doctor.find_spec
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == "jinja2" else find_spec(name))
    code, printed, _ = call("doctor")
    assert code == 0
    for said in ("torch", "cores", "memory", "hub", f"zsad               {zsad.__version__}"):
        assert said in printed
    assert "missing jinja2; get it with: pip install 'zsad[report]'" in printed


def test_evaluate_prints_and_writes_the_table(call, toy, mvtec: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, printed, _ = call("evaluate", toy.model, "--data", mvtec, "--out", out, "--device", "cpu")
    assert code == 0
    assert "disc" in printed and "image AUROC" in printed and "mean" in printed
    document = json.loads((out / "metrics.json").read_text())
    row = next(row for row in document["rows"] if row["name"] == "disc")
    table = list(csv.DictReader((out / "metrics.csv").open()))
    assert float(table[0]["image_auroc"]) == row["metrics"]["image_auroc"]
    assert 0 <= row["metrics"]["pixel_auroc"] <= 1 and (row["normal"], row["anomalous"]) == (2, 2)
    assert document["card"]["method"] == "promptmoe" and document["environment"]["zsad"] == zsad.__version__
    detector = zsad.load(toy.model, device="cpu")
    scores = {True: [], False: []}
    for path in sorted((mvtec / "disc" / "test").rglob("part*")):
        scores["scratch" in path.parts].append(detector.predict(path).score)
    wins = [(a > n) + 0.5 * (a == n) for a in scores[True] for n in scores[False]]
    assert row["metrics"]["image_auroc"] == pytest.approx(sum(wins) / len(wins))


def test_evaluate_takes_the_domain_of_the_catalogue_or_the_users(call, mvtec: Path, tmp_path: Path) -> None:
    """BrainMRI is a medical set: MoECLIP's wider Gaussian, said below the table and kept with the run."""
    brain = mvtec.rename(tmp_path / "BrainMRI")
    for words, domain, sigma in (([], "medical", 1.5), (["--domain", "industrial"], "industrial", 1.0)):
        out = tmp_path / domain
        code, printed, _ = call(
            "evaluate", "moeclip-tiny", "--data", brain, "--out", out, "--device", "cpu", *words
        )
        assert code == 0 and f"scored as {domain} images: maps smoothed over {sigma:g} patches" in printed
        card = json.loads((out / "metrics.json").read_text())["card"]
        assert (card["config"]["domain"], card["map_spec"]["sigma"]) == (domain, sigma)
    code, _, said = call("evaluate", "moeclip-tiny", "--data", brain, "--out", tmp_path / "industrial")
    assert code == 2 and "other settings" in said


def test_evaluate_prints_further_metrics_and_the_pooled_row(call, toy, mvtec: Path, tmp_path: Path) -> None:
    words = ["evaluate", toy.model, "--data", mvtec, "--device", "cpu", "--out", tmp_path / "out"]
    code, plain, _ = call(*words)
    assert code == 0 and "pooled" not in plain
    more = [
        "--also",
        "aupimo",
        "--also",
        "aupro@0.05",
        "--pro",
        "anomalyclip",
        "--pro-limit",
        "0.2",
        "--micro",
    ]
    code, printed, _ = call(*words, *more)
    assert code == 0
    for heading in ("PRO to 0.2 (anomalyclip)", "AUPIMO", "AUPRO to 0.05", "pooled", "note: pooled: micro"):
        assert heading in printed
    document = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert document["pro"] == {"name": "anomalyclip", "limit": 0.2}
    assert document["rows"][-1]["kind"] == "micro"
    assert "pixel_aupro@0.05" in document["rows"][0]["metrics"]
    code, _, said = call(*words, "--also", "pimo")
    assert code == 2 and "metric 'pimo' is unknown, expected one of aupro, pro_anomalyclip" in said


def test_evaluate_says_what_cannot_be_computed(call, toy, make_images, tmp_path: Path) -> None:
    make_images(tmp_path / "set" / "good", 2)
    make_images(tmp_path / "set" / "bad", 2)
    (tmp_path / "set" / "bad" / "zz.png").write_bytes(b"")
    code, printed, said = call("evaluate", toy.model, "--data", tmp_path / "set", "--out", tmp_path / "out")
    assert code == 3 and "zz.png" in said
    assert "no masks, pixel metrics undefined" in printed and "pixel AUROC" not in printed


def test_evaluate_refuses_what_cannot_be_measured(call, toy, tmp_path: Path) -> None:
    code, _, said = call("evaluate", toy.model, "--data", toy.images, "--out", tmp_path / "out")
    assert code == 2 and "neither labels nor masks" in said
    code, _, said = call("evaluate", toy.model, "--data", tmp_path / "none", "--out", tmp_path / "out")
    assert code == 2 and "does not exist" in said
    assert not (tmp_path / "out").exists()


def test_evaluate_names_bad_masks(call, toy, mvtec: Path, tmp_path: Path) -> None:
    out, mask = tmp_path / "out", next((mvtec / "disc" / "ground_truth" / "scratch").iterdir())
    mask.write_bytes(b"")
    code, printed, _ = call("evaluate", toy.model, "--data", mvtec, "--out", out)
    assert code == 3 and f"{mask} is empty" in printed
    Image.new("L", (9, 11), 1).save(mask)
    code, printed, said = call("evaluate", toy.model, "--data", mvtec, "--out", tmp_path / "other")
    assert (code, printed) == (2, "") and "9x11 px" in said and str(mask) in said
    assert said.splitlines()[-1].startswith("zsad: error: mask ") and not (tmp_path / "other").exists()


def test_evaluate_interrupted_goes_on(call, toy, mvtec: Path, tmp_path: Path, monkeypatch) -> None:
    from zsad.metrics.classes import ClassScores

    words = ["evaluate", toy.model, "--data", mvtec, "--device", "cpu", "--out"]
    assert call(*words, tmp_path / "whole")[0] == 0
    whole = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    add, seen = ClassScores.add, []

    def stop(self: ClassScores, sample: object, scored: object, **options: bool) -> None:
        seen.append(sample)
        if len(seen) == 3:
            raise KeyboardInterrupt
        add(self, sample, scored, **options)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(ClassScores, "add", stop)
        code, _, said = call(*words, out)
    assert code == 130 and "goes on there" in said.splitlines()[-1] and not (out / "metrics.json").exists()
    kept = (out / "predictions.jsonl").read_text().splitlines()
    assert len(kept) == 3
    assert call(*words, out)[0] == 0
    assert (out / "predictions.jsonl").read_text().splitlines()[:3] == kept
    assert json.loads((out / "metrics.json").read_text())["rows"] == whole["rows"]
    assert call(*words, out)[0] == 0  # everything read back
    assert json.loads((out / "metrics.json").read_text())["rows"] == whole["rows"]
    assert not (out / "overlays").exists()


def test_train_then_resume_then_predict(call, toy, mvtec: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [
        "train",
        "promptmoe",
        "--data",
        mvtec,
        "--out",
        run,
        "--backbone",
        toy.backbone,
        "--device",
        "cpu",
    ]
    words += ["--epochs", 1, "--batch-size", 2, "--set", "experts=4", "--set", "top_k=2", "--set", "heads=4"]
    code, printed, said = call(*words)
    assert code == 0, said
    assert "2 normal and 2 anomalous" in said and "wrote" in printed
    card = json.loads((run / "card.json").read_text())
    assert card["config"]["experts"] == 4 and card["training"]["epochs"] == 1
    before = (run / "model.safetensors").read_bytes()
    code, _, said = call(*words)
    assert code == 0 and "finished before" in said
    assert (run / "model.safetensors").read_bytes() == before
    code, _, said = call(
        *("predict", toy.images, "--model", run, "--backbone", toy.backbone, "--out", tmp_path / "out")
    )
    assert code == 0, said
    code, _, said = call(*words, "--learning-rate", 0.5)
    assert code == 2 and said.count("\n") <= 2


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (["promptmo"], "did you mean 'promptmoe'"),
        (["promptmoe", "--set", "expert=4"], "did you mean 'experts'"),
        (["promptmoe", "--set", "experts"], "key=value"),
        (["promptmoe", "--epochs", "0"], "epochs"),
        (["promptmoe", "--betas", "2", "3"], "betas"),
        (["promptmoe", "--learning-rate", "inf"], "learning-rate"),
        (["promptmoe", "--device", "gpu"], "unknown device 'gpu'"),
        (["promptmoe", "--amp", "fp16", "--device", "cpu"], "needs CUDA"),
        (["clip"], "no parameters to train"),
    ],
)
def test_train_refuses_nonsense(call, toy, mvtec: Path, tmp_path: Path, words: list[str], word: str) -> None:
    code, _, said = call(
        *("train", *words, "--data", mvtec, "--out", tmp_path / "run", "--backbone", toy.backbone)
    )
    assert code == 2 and word in said and said.count("\n") == 1 and "pydantic" not in said
    assert not (tmp_path / "run").exists()


def test_train_names_broken_files_and_tells_by_the_exit_code(call, toy, mvtec: Path, tmp_path: Path) -> None:
    mask = min((mvtec / "disc" / "ground_truth" / "scratch").iterdir())
    Image.new("L", (9, 11), 1).save(mask)
    words = ["promptmoe", "--data", mvtec, "--out", tmp_path / "run", "--backbone", toy.backbone]
    code, _, said = call("train", *words, "--epochs", 1, "--set", "heads=4", "--device", "cpu")
    assert code == 3 and (tmp_path / "run" / "model.safetensors").is_file()
    (line,) = [line for line in said.splitlines() if "left out" in line]
    assert str(mask) in line and "9x11 px" in line and "104x80 px" in line


def test_demo_sample_is_pinned_and_balanced() -> None:
    pytest.importorskip("elpv_dataset")
    samples = demo_samples(24)
    assert len(samples) == len({sample.image for sample in samples}) == 24
    groups = [(sample.dataset, sample.label) for sample in samples]
    assert {group: groups.count(group) for group in groups} == {
        (f"elpv {silicon}", label): 6 for silicon in ("mono", "poly") for label in (0, 1)
    }
    assert [sample.image.stem for sample in samples[:4]] == ["cell0305", "cell0311", "cell0466", "cell0471"]
    assert all(sample.image.is_file() for sample in samples)
    assert {sample.image for sample in demo_samples(12)} < {sample.image for sample in samples}


def test_demo_ends_with_the_area_under_the_curve(call, toy, tmp_path: Path) -> None:
    pytest.importorskip("elpv_dataset")
    out = tmp_path / "out"
    code, printed, said = call("demo", "--model", toy.model, "--out", out, "--count", 8, "--device", "cpu")
    assert code == 0, said
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    scores = {label: [row["score"] for row in rows if row["label"] == label] for label in (0, 1)}
    wins = [(a > n) + 0.5 * (a == n) for a in scores[1] for n in scores[0]]
    assert f"image AUROC {100 * sum(wins) / len(wins):.1f} %" in printed
    assert "4 functional against 4 defective" in printed and "never seen" not in printed
    assert "image AUROC" in (out / "report.html").read_text()


def test_demo_without_its_data_says_how_to_get_it(call, tmp_path: Path, monkeypatch) -> None:
    import zsad.cli.demo as demo

    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    code, _, said = call("demo", "--out", tmp_path / "out")
    assert code == 2 and "pip install 'zsad[demo]'" in said and said.count("\n") == 1
    with pytest.raises(ConfigError, match="4 to 1000"):
        demo_samples(2)


def test_standard_error_of_an_area() -> None:
    # Hanley and McNeil's formula written out once more, and its two limits.
    area, first, second = 0.8, 0.8 / 1.2, 2 * 0.64 / 1.8
    wanted = math.sqrt((0.16 + 11 * (first - 0.64) + 11 * (second - 0.64)) / 144)
    assert standard_error(area, normal=12, anomalous=12) == pytest.approx(wanted)
    assert standard_error(1.0, normal=5, anomalous=5) == 0
    assert standard_error(0.5, normal=10**6, anomalous=10**6) < 1e-3


def test_a_large_picture_has_a_bar_of_its_own_until_it_is_done() -> None:
    from rich.progress import Progress

    from zsad.cli.console import Advance

    bar = Progress(disable=True)
    advance = Advance(bar, title="scoring", total=2)
    images, tiles = bar.tasks
    assert (images.total, tiles.visible) == (2, False)
    for done, shown in ((8, True), (16, True), (20, False)):
        advance.tiles(done, 20)
        assert (tiles.completed, tiles.total, tiles.visible) == (done, 20, shown)
    advance(1)
    advance.tiles(8, 8)
    assert (images.completed, tiles.completed, tiles.visible) == (1, 8, False)
    Advance().tiles(1, 2)  # no terminal, no bar


def test_progress_bar_is_for_terminals_only(call, toy, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    code, _, said = call("predict", toy.images, "--model", toy.model, "--out", tmp_path / "out")
    assert (code, said) == (0, "")
