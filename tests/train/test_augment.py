"""Training on images that change at every step: aligned, reproducible, resumable, and never with kept features."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from zsad.errors import ConfigError
from zsad.train.augment import Augmenter, draw_motion, mosaic, move
from zsad.train.features import FeatureSource
from zsad.train.samples import prepare
from zsad.train.train_config import RUN_FIELDS, TrainConfig

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


def painted(size: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """An image that is its own place, with a mask of some of it: rows and columns from 1."""
    rows, columns = torch.meshgrid(torch.arange(size) + 1.0, torch.arange(size) + 1.0, indexing="ij")
    mask = (rows - size / 3).square() + (columns - size / 2).square() < (size / 5) ** 2
    return torch.stack([rows, columns, rows]), mask.float()


@pytest.mark.parametrize("size", [24, 37])
def test_a_mask_moves_with_its_image(size):
    image, mask = painted(size)
    reached = 0
    for seed in range(60):
        motion = draw_motion(torch.Generator().manual_seed(seed))
        moved, own = move(image, motion), move(mask[None], motion)[0]
        row, column = moved[0].long() - 1, moved[1].long() - 1
        inside = row >= 0
        # Every pixel says where it came from: the mask must say what the mask said there.
        assert torch.equal(own[inside], mask[row[inside], column[inside]])
        assert not own[~inside].any() and set(own.unique().tolist()) <= {0.0, 1.0}
        # A mask of another size than the image moves alike, up to the pixels at its border.
        large = mask.repeat_interleave(3, 0).repeat_interleave(3, 1)
        small = move(large[None], motion)[0][1::3, 1::3]
        assert (small != own).float().mean() < 0.02
        reached += not torch.equal(moved, image)
    assert 50 <= reached < 60  # one in sixteen is left as it is


def test_motions_are_those_of_the_published_code():
    drawn = torch.stack([draw_motion(torch.Generator().manual_seed(seed)) for seed in range(4000)])
    turns, shifts = drawn[:, :, :2], drawn[:, :, 2]
    torch.testing.assert_close(
        turns @ turns.transpose(1, 2), torch.eye(2).expand(4000, 2, 2), atol=1e-6, rtol=0
    )
    angle = torch.rad2deg(turns[:, 0, 1].abs().asin())
    assert angle.max() <= 30.001 and angle.max() > 29 and abs((angle == 0).float().mean() - 0.5) < 0.03
    assert shifts.abs().max() <= 0.3 and shifts.abs().max() > 0.29  # of two units a side
    assert abs((shifts == 0).all(1).float().mean() - 0.5) < 0.03
    assert abs((turns[:, 0, 0] < 0).float().mean() - 0.5) < 0.03
    assert abs((turns[:, 1, 1] < 0).float().mean() - 0.5) < 0.03


def test_known_motions_are_exact():
    image, _ = painted(7)
    flip = torch.tensor([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    assert torch.equal(move(image, flip), image.flip(1))
    quarter = torch.tensor([[math.cos(math.pi / 2), -1.0, 0.0], [1.0, 0.0, 0.0]])
    assert torch.equal(move(image, quarter), torch.rot90(image, 1, (1, 2)))
    shifted = move(image, torch.tensor([[1.0, 0.0, 2 * 2 / 7], [0.0, 1.0, 0.0]]))
    assert torch.equal(shifted[:, :, :5], image[:, :, 2:]) and not shifted[:, :, 5:].any()


@pytest.mark.parametrize("size", [8, 9])
def test_a_mosaic_holds_its_four_parts(size):
    tiles = [torch.full((3, size, size), float(number)) for number in range(4)]
    joined = mosaic(tiles)
    assert joined.shape == (3, size, size)
    half = size // 2
    assert [joined[0, row, column].item() for row in (half - 1, half) for column in (half - 1, half)] == [
        0,
        1,
        2,
        3,
    ]
    spot = torch.zeros(1, 8, 8)
    spot[0, 4:6, 2:4] = 1
    joined = mosaic([torch.zeros(1, 8, 8), torch.zeros(1, 8, 8), torch.zeros(1, 8, 8), spot])
    assert joined.nonzero().tolist() == [[0, 6, 5]] and joined.max() == 1
