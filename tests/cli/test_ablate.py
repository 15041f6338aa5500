"""`zsad ablate` on drawn data and a tiny random backbone."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from zsad.cli.main import main
from zsad.clip.config import PRESETS
from zsad.clip.weights import load_backbone
from zsad.errors import ConfigError
from zsad.methods.base import Method
from zsad.methods.registry import build, find
from zsad.metrics.classes import ClassScores
from zsad.studies.ablations import Table, ablations, find_table, methods
from zsad.studies.ablations.study import Study
from zsad.studies.benchmark.cached_scoring import copy_layers, is_part
from zsad.studies.benchmark.papers import papers
from zsad.train.feature_cache import FeatureCache
from zsad.train.train_config import TrainConfig

Call = Callable[..., tuple[int, str, str]]
SETTINGS = ["heads=4", "router_hidden=8", "context_tokens=2", "queries=2"]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        return (code, *capsys.readouterr())

    return run


@pytest.fixture
def data(drawn: Path) -> Path:
    """Three sets: `aux` to train on, `one` and `two` to measure on."""
    return drawn


def words(
    data: Path, backbone: Path, out: Path, *, table: str = "3", targets: Sequence[str] = ("one",)
) -> list[object]:
    """The command, on few images and with a small adapter."""
    found = ["ablate", "promptmoe", "--table", table, "--train-on", data / "aux"]
    found += ["--test-on", *(data / name for name in targets), "--out", out, "--backbone", backbone]
    found += ["--device", "cpu", "--threads", 1, "--epochs", 1, "--batch-size", 4, "--limit-per-class", 2]
    return [*found, *(word for pair in SETTINGS for word in ("--set", pair))]


GOLDEN = """\
Weight alpha of the balance loss
PromptMoE (AAAI 2026, arXiv 2511.18116), Table 3.
Ours: toy at 64 px, trained on aux (10 images), measured on one, two; seeds 7, 8. Paper: ViT-L/14@336 at 518 px, \
measured on MVTec AD (trained on VisA), VisA (trained on MVTec-AD). Compare the rows of a column; ours and the paper's \
numbers do not compare.
PRO is AnomalyCLIP's, as most papers print it: 200 equal steps of the score, rates below 0.3.
promptmoe does not have the settings of PromptMoE (AAAI 2026, arXiv 2511.18116): backbone = toy (paper: \
ViT-L/14@336), layers = [2, 3, 4] (paper: [6, 12, 18, 24]), image_size = 64 (paper: 518), value_value_from = 2 \
(paper: 6), queries = 2 (paper: 8), heads = 4 (paper: 8), router_hidden = 8 (paper: 256), context_tokens = 2 (paper: \
8), epochs = 1 (paper: 15), batch_size = 4 (paper: 16), limit_per_class = 2 (paper: none), trained_on = ["aux"] \
(paper: ["MVTec-AD"]).
image AUROC, in percent
  variant  one  two  mean  paper: MVTec AD  paper: VisA
 ─
  alpha = 0  # ± #  # ± #  # ± #  92.1  83.4
  alpha = 0.01  # ± #  # ± #  # ± #  93.8  85.0
PRO (anomalyclip), in percent
  variant  one  two  mean  paper: MVTec AD  paper: VisA
 ─
  alpha = 0  # ± #  # ± #  # ± #  82.5  88.2
  alpha = 0.01  # ± #  # ± #  # ± #  83.2  89.2
wrote ablation.json, ablation.csv, ablation.md, ablation.tex, ablation.html into OUT
"""


def test_the_table_stands_beside_the_papers(call: Call, toy, data: Path, tmp_path: Path, short: None) -> None:
    out = tmp_path / "out"
    code, printed, said = call(*words(data, toy.backbone, out, targets=("one", "two")), "--seeds", 7, 8)
    assert code == 0, said
    # Numbers of a training differ in the last place between machines, widths of columns with them.
    plain = re.sub(r"\d+\.\d ± \d+\.\d", "# ± #", printed.replace(str(out), "OUT"))
    plain = re.sub(r"(?<=\S) {2,}(?=\S)", "  ", re.sub("─+", "─", plain))
    assert "\n".join(line.rstrip() for line in plain.splitlines() if line.strip()) + "\n" == GOLDEN
    document = json.loads((out / "ablation.json").read_text())
    assert document["complete"] and document["seeds"] == [7, 8] and document["broken_files"] == 0
    row = document["rows"][1]
    assert row["config"]["alpha"] == 0.01 and row["paper"]["VisA"] == {"image_auroc": 85.0, "pixel_pro": 89.2}
    one, two, mean = (row["zsad"][name]["image_auroc"] for name in ("one", "two", "mean"))
    for seed in ("7", "8"):
        assert mean["by_seed"][seed] == pytest.approx((one["by_seed"][seed] + two["by_seed"][seed]) / 2)
    values = list(mean["by_seed"].values())
    assert mean["mean"] == pytest.approx(sum(values) / 2)
    assert mean["deviation"] == pytest.approx(abs(values[0] - values[1]) / math.sqrt(2))
    lines = list(csv.DictReader((out / "ablation.csv").open()))
    assert len(lines) == 2 * 2 * (3 + 2)
    [line] = [
        line
        for line in lines
        if (line["variant"], line["data"], line["metric"]) == ("alpha = 0.01", "mean", "image_auroc")
    ]
    assert float(line["percent"]) == mean["mean"] and line["seeds"] == "2"
    text = (out / "ablation.md").read_text()
    assert f"| {mean['mean']:.1f} ± {mean['deviation']:.1f} | 93.8 | 85.0 |" in text
    assert document["setup"] in text and document["pro"] == "anomalyclip"
    differing = {each["setting"]: (each["ours"], each["paper"]) for each in document["not_the_papers"]["all"]}
    assert differing["epochs"] == (1, 15) and differing["backbone"] == ("toy", "ViT-L/14@336")
    assert "alpha" not in differing and document["not_the_papers"].keys() == {"all"}
    for suffix, sentence in (("tex", "heads = 4 (paper: 8)"), ("html", "heads = 4 (paper: 8)")):
        assert sentence in (out / f"ablation.{suffix}").read_text()
    tables = (out / "ablation.tex").read_text()
    assert f"{mean['mean']:.1f} {{\\scriptsize $\\pm$ {mean['deviation']:.1f}}} & 93.8 & 85.0 \\\\" in tables


def test_nothing_frozen_is_computed_twice(
    call: Call, toy, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, seen = Method.features, []

    def counted(self: Method, pixels):
        seen.append(len(pixels))
        return features(self, pixels)

    monkeypatch.setattr(Method, "features", counted)
    command = [*words(data, toy.backbone, tmp_path / "out", table="4"), "--set", "layers=[1,2,3,4]"]
    code, _, said = call(*command, "--set", "value_value_from=1", "--set", "heads=2")
    assert code == 0, said
    assert len(list((tmp_path / "out" / "runs").glob("*/model.safetensors"))) == 5
    assert sum(seen) <= 4 + 10  # two of each label, and all of the target


def test_copied_layers_are_those_that_would_be_computed(toy, tmp_path: Path) -> None:
    tower = load_backbone(toy.backbone)
    wide = build("promptmoe", {"heads": 4, "layers": [2, 3, 4]}, tower)
    narrow = build("promptmoe", {"heads": 4, "layers": [2, 4]}, tower)
    assert is_part(narrow, wide) and not is_part(wide, narrow) and not is_part(wide, wide)
    other = build("promptmoe", {"heads": 4, "layers": [2, 4], "cls_norm": True}, tower)
    assert not is_part(other, wide)
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    source, target = (FeatureCache(tmp_path, key_parts={"layers": name}) for name in ("wide", "narrow"))
    source.add(["a", "b", "c"], wide.features(pixels))
    copy_layers(source, target, ["b", "x", "a", "b"], tapped=(2, 3, 4), chosen_layers=(2, 4))
    assert "c" not in target and "x" not in target and len(target) == 2
    found, expected = target.read(["a", "b"]), narrow.features(pixels)
    assert torch.equal(found.patches, expected.patches[:2].half().float())
    assert torch.equal(found.cls, expected.cls[:2].half().float()) and found.grid == expected.grid


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables end behind their second row."""

    def cut(method: str, name: str) -> Table:
        table = find_table(method, name)
        return table.model_copy(update={"rows": table.rows[:2]})

    monkeypatch.setattr("zsad.studies.ablations.find_table", cut)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders into which something was trained."""
    from zsad.studies.benchmark import cell_runner

    train, seen = cell_runner.train, []

    def counted(*given: object, out: Path, **more: object) -> Path:
        seen.append(out)
        return train(*given, out=out, **more)

    monkeypatch.setattr(cell_runner, "train", counted)
    return seen


def test_what_is_finished_is_read_back(
    call: Call, toy, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainings: list[Path]
) -> None:
    command, out = words(data, toy.backbone, tmp_path / "out"), tmp_path / "out"
    add, seen = ClassScores.add, []

    def stop(self: ClassScores, sample: object, scored: object, **options: bool) -> None:
        seen.append(sample)
        if len(seen) == 14:  # in the second variant
            raise KeyboardInterrupt
        add(self, sample, scored, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ClassScores, "add", stop)
        code, printed, said = call(*command)
    assert (code, printed) == (130, "")
    assert said.splitlines()[-1].endswith(
        "1 of 3 variants and seeds are done, the same command goes on there"
    )
    partial = json.loads((out / "ablation.json").read_text())
    assert not partial["complete"]
    assert "| alpha = 0.1 | - | 92.9 | 84.2 |" in (out / "ablation.md").read_text()
    assert len(trainings) == 2
    assert call(*command)[0] == 0
    assert len(trainings) == len(set(trainings)) == 3
    whole = json.loads((out / "ablation.json").read_text())
    assert whole["complete"] and whole["rows"][0] == partial["rows"][0]
    monkeypatch.setattr(ClassScores, "add", None)  # nothing is measured any more
    assert call(*command)[0] == 0
    assert json.loads((out / "ablation.json").read_text()) == whole
    monkeypatch.undo()


def test_tables_share_variants_and_changed_data_are_measured_anew(
    call: Call,
    toy,
    data: Path,
    tmp_path: Path,
    trainings: list[Path],
    short: None,
    draw_set: Callable[..., Path],
) -> None:
    target = draw_set(tmp_path / "own", seed=1)
    command = [*words(data, toy.backbone, tmp_path / "out", targets=(target,)), "--seeds", 7]
    assert call(*command)[0] == 0 and len(trainings) == 2
    [picture, *_] = sorted(target.rglob("good/*.png"))
    picture.unlink()
    code, _, said = call(*command)
    assert code == 0 and "own: 9 images" in said and len(trainings) == 2
    command[3] = "5"
    assert call(*command)[0] == 0 and len(trainings) == 2 + 1  # "Separate Components" is alpha = 0.01


def test_broken_files_are_named_and_told_by_the_exit_code(
    call: Call, toy, data: Path, tmp_path: Path, short: None, draw_set: Callable[..., Path]
) -> None:
    target = draw_set(tmp_path / "own", seed=1)
    auxiliary = draw_set(tmp_path / "learn", seed=0)
    [picture, *_] = sorted(target.rglob("good/*.png"))
    whole = picture.read_bytes()
    picture.write_bytes(whole[: len(whole) // 2])
    [learned, *_] = sorted(auxiliary.rglob("good/*.png"))
    learned.write_bytes(b"")
    command = words(data, toy.backbone, tmp_path / "out", targets=(target,))
    command[command.index(data / "aux")] = auxiliary
    command[command.index("--limit-per-class") + 1] = 20
    for _ in range(2):  # also where all is read back
        code, printed, said = call(*command)
        assert code == 3
        for path in (picture, learned):
            assert sum(str(path) in line for line in said.splitlines()) == 1
            assert any(str(path) in line for line in printed.splitlines() if line.startswith("note: "))
        assert "1 of 10 images could not be read" in printed
    learned.write_bytes(whole)
    picture.write_bytes(whole)
    code, _, said = call(*command)
    assert code == 0, said


def test_undefined_metrics_are_dashes(
    call: Call, toy, data: Path, tmp_path: Path, make_images, short: None
) -> None:
    make_images(tmp_path / "flat" / "good", 2)
    make_images(tmp_path / "flat" / "bad", 2)
    code, printed, _ = call(*words(data, toy.backbone, tmp_path / "out", targets=("one", tmp_path / "flat")))
    assert code == 0 and "no masks, pixel metrics undefined" in printed
    [row] = [
        line.split()
        for line in printed[printed.index("PRO (anomalyclip), in percent") :].splitlines()
        if "alpha = 0.01" in line
    ]
    assert row[4] == "-" and row[3] == row[5]  # the mean is of the target that has one
    row = json.loads((tmp_path / "out" / "ablation.json").read_text())["rows"][0]["zsad"]["flat"]
    assert row["pixel_pro"]["mean"] is None and 0 <= row["image_auroc"]["mean"] <= 100


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        (["--table", "7"], "no ablation table '7'; there is 2 (Compositional prompting"),
        (["--seed", "3"], "--seeds 111 112"),
        (["--seeds", "-1"], "--seeds has -1"),
        (["--set", "alpha=1"], "'alpha' is what this table varies"),
        (["--set", "alpa=1"], "did you mean 'alpha'"),
        (["--table", "4"], "tap more with --set layers"),
        (["--test-on", "nowhere"], "nowhere does not exist"),
        (["--device", "gpu"], "unknown device 'gpu'"),
    ],
)
def test_nonsense_is_one_line(
    call: Call, toy, data: Path, tmp_path: Path, changes: list[str], word: str
) -> None:
    command = words(data, toy.backbone, tmp_path / "out")
    code, printed, said = call(*_replaced(command, changes))
    assert (code, printed) == (2, "") and word in said.splitlines()[-1], said
    assert said.count("\n") == 1 and not (tmp_path / "out").exists()


def _replaced(command: list[object], changes: list[str]) -> list[object]:
    """The command with an option's value changed, or the option added."""
    option, value = changes
    if option in command and option != "--set":
        position = command.index(option)
        return [*command[: position + 1], value, *command[position + 2 :]]
    return [*command, *changes]


def test_unknown_methods_say_which_there_are(call: Call, toy, data: Path, tmp_path: Path) -> None:
    command = words(data, toy.backbone, tmp_path / "out")
    command[1] = "clip"
    code, _, said = call(*command)
    assert code == 2 and "no ablation tables of 'clip'; there are those of moeclip, promptmoe" in said


def test_images_that_are_also_trained_on_are_told(
    call: Call, toy, data: Path, tmp_path: Path, short: None
) -> None:
    code, printed, _ = call(*words(data, toy.backbone, tmp_path / "out", targets=("aux",)))
    assert code == 0 and "10 of 10 images of aux are also trained on: not zero-shot" in printed


@pytest.mark.parametrize(
    ("method", "table"), [(method, table) for method in methods() for table in ablations(method)]
)
def test_every_variant_builds_on_the_bundled_backbone(method: str, table: str, tmp_path: Path) -> None:
    found = find_table(method, table)
    study = Study(
        method=method,
        table=found,
        backbone=load_backbone("zsad-tiny"),
        settings={},
        training=TrainConfig(),
        seeds=(1,),
        auxiliary=[],
        targets={},
        folder=tmp_path,
    )
    assert [candidate.label for candidate in study.candidates] == [row.label for row in found.rows]
    configs = [(candidate.method, candidate.config) for candidate in study.candidates]
    assert all(first != second for i, first in enumerate(configs) for second in configs[:i])
    untrained = [candidate.method for candidate in study.candidates if candidate.training is None]
    assert untrained == [row.method for row in found.rows if row.method is not None]


def test_settings_of_the_image_reach_rows_of_other_methods(toy, tmp_path: Path) -> None:
    study = Study(
        method="moeclip",
        table=find_table("moeclip", "components"),
        backbone=load_backbone(toy.backbone),
        settings={"image_size": 48, "sigma": 2.5, "experts": 3},
        training=TrainConfig(),
        seeds=(1,),
        auxiliary=[],
        targets={},
        folder=tmp_path,
    )
    clip, *_, full = (candidate.config for candidate in study.candidates)
    assert clip.image_size == full.image_size == study.image_size == 48
    assert (full.sigma, full.experts) == (2.5, 3) and clip.sigma == 4.0


@pytest.mark.parametrize("method", methods())
def test_every_variant_is_possible_on_the_papers_backbone(method: str) -> None:
    paper = papers()[method]
    preset = PRESETS[paper.backbone]
    assert preset.detection_size == paper.image_size
    for table in ablations(method).values():
        for row in table.rows:
            config_class = find(row.method or method).load().config_class
            config = config_class.for_backbone(preset, **row.resolve({}, taps=preset.taps))
            assert config.image_size == paper.image_size


def test_layers_are_chosen_among_the_taps() -> None:
    row = find_table("promptmoe", "4").rows[1]
    assert row.resolve({"alpha": 0}, taps=(6, 12, 18, 24)) == {"alpha": 0, "layers": (12, 24)}
    with pytest.raises(ConfigError, match="12, 24"):
        row.resolve({}, taps=(4,))
    row = find_table("promptmoe", "2").rows[2]
    assert row.resolve({"alpha": 1}, taps=(6, 12, 18, 24)) == {
        "alpha": 0.0,
        "beta": 0.0,
        "prompt_layers": (24,),
    }
