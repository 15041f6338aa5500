"""What is watched in training is measured right, changes nothing, and is never of what is trained on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from zsad.errors import DataError
from zsad.metrics.functional import auroc
from zsad.train.train_config import TrainConfig

SETTINGS = {"epochs": 3, "batch_size": 4, "warmup_epochs": 0, "learning_rate": 0.01}


def lines(out: Path) -> list[dict]:
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


@pytest.fixture(scope="module")
def data(fake, tmp_path_factory):
    """What is trained on, and other images to watch."""
    root = tmp_path_factory.mktemp("data")
    other = fake.make_data(root / "other", normal=9, anomalous=8)
    # The first images of both are alike, and no image without a label can be measured.
    other.samples[-1] = replace(other.samples[-1], label=None)
    return fake.make_data(root / "own", normal=4, anomalous=3), other


@pytest.mark.parametrize("cache", [True, False])
def test_the_last_measurement_is_that_of_the_finished_model(fake, data, tmp_path, cache):
    own, other = data
    config = TrainConfig(**SETTINGS, cache=cache)
    method, model = fake.run(tmp_path / "watched", own, config, validation=[other])
    records = lines(model.parent)
    measured = [record for record in records if "image_auroc" in record]
    assert [(record["epoch"], record["step"]) for record in measured] == [(0, 2), (1, 4), (2, 6)]
    trained = {sample.image.read_bytes() for sample in own.samples}
    unseen = [s for s in other.samples if s.label is not None and s.image.read_bytes() not in trained]
    assert len(unseen) < len(other.samples) - 1
    pixels = torch.stack([torch.from_numpy(fake.PREPROCESS(fake.Image.open(s.image))) for s in unseen])
    with torch.no_grad():
        scores = method.eval()(method.features(pixels)).score.numpy()
    each = []
    for name in ("tile", "wood"):
        rows = [row for row, sample in enumerate(unseen) if sample.class_name == name]
        each.append(auroc(scores[rows], [unseen[row].label for row in rows]))
    assert measured[-1]["image_auroc"] == pytest.approx(sum(each) / 2, abs=1e-6)
    # InputOptions changes nothing.
    _, plain = fake.run(tmp_path / "plain", own, config)
    assert lines(plain.parent) == [record for record in records if "image_auroc" not in record]
    expected, found = load_file(plain), load_file(model)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_run_that_goes_on_has_every_measurement_once(fake, data, tmp_path):
    own, other = data

    def stop(now) -> None:
        if now.stage == "train" and now.done == 3:
            raise KeyboardInterrupt

    config = TrainConfig(**SETTINGS)
    _, whole = fake.run(tmp_path / "whole", own, config, validation=[other])
    with pytest.raises(KeyboardInterrupt):
        fake.run(tmp_path / "parts", own, config, validation=[other], progress=stop)
    _, model = fake.run(tmp_path / "parts", own, config, validation=[other])
    assert lines(model.parent) == lines(whole.parent)


def test_what_is_trained_on_or_of_one_label_cannot_be_watched(fake, data, tmp_path):
    own, other = data
    normal = replace(other, samples=[sample for sample in other.samples if sample.label == 0])
    for index, watch in enumerate((own, normal)):
        with pytest.raises(DataError, match=r"noise has normal and anomalous.*give labelled data") as caught:
            fake.run(tmp_path / str(index), own, TrainConfig(**SETTINGS), validation=[watch])
        assert "\n" not in str(caught.value)
