"""Training on images that change at every step: aligned, reproducible, resumable, and never with kept features."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from zsad.errors import ConfigError
from zsad.train.augment import Augmenter
from zsad.train.config import RUN_FIELDS, TrainConfig
from zsad.train.features import FeatureSource
from zsad.train.samples import prepare

SMALL = {"epochs": 2, "batch_size": 4, "warmup_epochs": 0, "learning_rate": 0.01, "cache": False}


@pytest.mark.parametrize("recipe", ["moeclip", "mosaic"])
def test_images_and_masks_of_a_step_belong_together(fake, tmp_path, recipe):
    data = fake.make_data(tmp_path, normal=5, anomalous=12)
    config = TrainConfig(**SMALL, augment=recipe)
    training = prepare(data.samples, config=config, size=fake.SIZE)
    method, pixels = fake.FakeMethod(), []
    source = FeatureSource(method, fake.PREPROCESS, config=config, cache=None)
    compute = source._compute
    source._compute = lambda given: (pixels.append(given), compute(given))[1]
    order = [[row, row + 1] for row in range(0, 16, 2)] * 3
    augmenter = Augmenter(training, config, step=7, rank=0)
    shown = list(source.batches(training, order, augmenter=augmenter))
    low = fake.PREPROCESS(fake.Image.new("RGB", (32, 32), (120,) * 3)).max()
    high = fake.PREPROCESS(fake.Image.new("RGB", (32, 32), (250,) * 3)).min()
    changed = 0
    for rows, step, given in zip(order, shown, pixels, strict=True):
        assert step.masks.shape == (2, 32, 32) and step.features.patches.shape[0] == 2
        # The defect is bright and all else is dark: what the mask marks can be seen.
        wrong = (step.masks != (given.mean(1) > (low + high) / 2).float()).float().mean()
        assert wrong <= (0.04 if recipe == "mosaic" else 0)  # pixels half of which are defective
        assert [bool(label) for label in step.labels] >= [bool(own) for own in training.labels(rows)]
        assert ((step.masks.flatten(1).amax(1) > 0) <= (step.labels > 0)).all()
        changed += int(not torch.equal(step.masks, training.masks(rows)))
    assert changed > len(order) / 4
    # What happens to an image depends on nothing but seed, step and place.
    later = Augmenter(training, config, step=9, rank=0)
    again = list(source.batches(training, order[2:], augmenter=later))
    assert all(
        torch.equal(one.masks, other.masks) and torch.equal(one.features.patches, other.features.patches)
        for one, other in zip(again, shown[2:], strict=True)
    )
    other = Augmenter(training, config, step=7, rank=1)
    assert any(
        not torch.equal(one.masks, two.masks)
        for one, two in zip(source.batches(training, order, augmenter=other), shown, strict=True)
    )


def test_mosaics_are_a_fifth_and_of_one_class(fake, tmp_path):
    data = fake.make_data(tmp_path, normal=6, anomalous=6)
    config = TrainConfig(**SMALL, augment="mosaic")
    training = prepare(data.samples, config=config, size=fake.SIZE)
    plans = [
        parts
        for step in range(300)
        for parts in Augmenter(training, config, step=step, rank=0).plan(0, range(12))
    ]
    four = [parts for parts in plans if len(parts) == 4]
    assert abs(len(four) / len(plans) - 0.2) < 0.03 and all(len(parts) in (1, 4) for parts in plans)
    assert all(len({training.items[row].group[:2] for row in parts}) == 1 for parts in four)


@pytest.mark.parametrize("recipe", ["moeclip", "mosaic"])
def test_a_stopped_run_ends_as_one_that_was_not(fake, tmp_path, recipe):
    data = fake.make_data(tmp_path / "data")
    config = TrainConfig(**SMALL, augment=recipe, checkpoint_every=1)
    _, model = fake.run(tmp_path / "whole", data, config)

    def stop(now) -> None:
        if now.stage == "train" and now.done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fake.run(tmp_path / "parts", data, config, progress=stop)
    _, again = fake.run(tmp_path / "parts", data, config)
    expected, found = load_file(model), load_file(again)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    _, plain = fake.run(tmp_path / "plain", data, TrainConfig(**SMALL))
    assert any(not torch.equal(expected[name], tensor) for name, tensor in load_file(plain).items())


def test_kept_features_are_refused_before_anything_is_written(fake, tmp_path):
    data = fake.make_data(tmp_path / "data")
    config = TrainConfig(**{**SMALL, "cache": True}, augment="mosaic")
    with pytest.raises(ConfigError, match=r"augment = 'mosaic'.*add --no-cache") as caught:
        fake.run(tmp_path / "run", data, config)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_runs_from_before_there_was_augmentation_are_the_same_runs(fake, tmp_path):
    assert "augment" not in TrainConfig().model_dump(mode="json", exclude=set(RUN_FIELDS))
    assert TrainConfig(augment="mosaic").model_dump()["augment"] == "mosaic"
    assert TrainConfig(**TrainConfig(augment="mosaic").model_dump()) == TrainConfig(augment="mosaic")
    _, model = fake.run(tmp_path / "run", fake.make_data(tmp_path / "data"), TrainConfig(**SMALL))
    assert "augment" not in json.loads((model.parent / "run.json").read_text())["training"]
