"""`zsad evaluate` on what a model was trained on: refused, or marked wherever the result is shown."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from zsad.cli.main import main
from zsad.datasets.manifest import discover
from zsad.datasets.overlap import names_of, overlap_of
from zsad.train.checkpoint import read_card


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]):
    def run(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def sets(make_images, tmp_path: Path) -> tuple[Path, Path]:
    """Two sets of six images with masks, none in common."""
    from PIL import Image

    roots = []
    for number, name in enumerate(("first", "second")):
        pool = make_images(tmp_path / "pool", 12)
        root = tmp_path / name
        for index, path in enumerate(sorted(pool.iterdir())[number::2]):
            kind = "dent" if index % 2 else "good"
            place = root / "disc" / "test" / kind / path.name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)
            if kind == "dent":
                mask = Image.new("L", Image.open(path).size)
                mask.paste(255, (20, 20, 40, 40))
                target = root / "disc" / "ground_truth" / kind / f"{path.stem}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                mask.save(target)
        roots.append(root)
    return roots[0], roots[1]


def test_what_a_model_was_trained_on_is_refused_and_marked(call, toy, sets, tmp_path: Path) -> None:
    first, second = sets
    run = tmp_path / "run"
    words = [
        "train",
        "promptmoe",
        "--data",
        first,
        "--out",
        run,
        "--backbone",
        toy.backbone,
        "--device",
        "cpu",
    ]
    code, _, said = call(*words, "--epochs", 1, "--set", "experts=4", "--set", "top_k=2", "--set", "heads=4")
    assert code == 0, said
    card = read_card(run / "model.safetensors")
    assert card.training is not None and card.training.datasets == names_of(discover(first)) == ("first",)
    assert len(overlap_of(card, discover(first)).images) == len(discover(first).samples)

    measure = ["evaluate", run, "--backbone", toy.backbone, "--device", "cpu", "--out"]
    code, printed, said = call(*measure, tmp_path / "out", "--data", first)
    assert (code, printed) == (2, "") and not (tmp_path / "out").exists()
    assert said.splitlines()[-1].startswith(
        f"zsad: error: {run} was trained on first and on 6 of these 6 images"
    )

    renamed = first.rename(tmp_path / "under-another-name")
    code, _, said = call(*measure, tmp_path / "out", "--data", renamed)
    assert code == 2 and "was trained on 6 of these 6 images" in said

    code, printed, _ = call(*measure, tmp_path / "out", "--data", renamed, "--allow-seen")
    assert code == 0 and "SEEN DATA, not zero-shot" in " ".join(printed.split())
    document = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert document["seen"].startswith("was trained on 6 of these 6 images")
    with (tmp_path / "out" / "metrics.csv").open() as stream:
        assert all(row["seen"] == document["seen"] for row in csv.DictReader(stream))

    code, printed, _ = call(*measure, tmp_path / "unseen", "--data", second, "--allow-seen")
    assert code == 0 and "SEEN" not in printed
    assert "seen" not in (tmp_path / "unseen" / "metrics.csv").read_text()
    assert "seen" not in json.loads((tmp_path / "unseen" / "metrics.json").read_text())
