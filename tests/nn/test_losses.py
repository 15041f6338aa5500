"""Focal, Dice and score losses against the two-channel forms of the field's code, and at their extremes."""

from __future__ import annotations

import math

import pytest
import torch
from promptmoe_oracles import slow_dice, slow_focal

from zsad.nn.losses import dice_loss, focal_loss, score_loss


def maps_and_masks() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    maps = torch.rand(3, 9, 8, generator=generator, dtype=torch.float64)
    return maps, (torch.rand(3, 9, 8, generator=generator) > 0.7).double()


def test_focal_and_dice_equal_the_two_channel_forms():
    maps, masks = maps_and_masks()
    expected = sum(slow_focal(*pair) for pair in zip(maps, masks, strict=True)) / 3
    assert float(focal_loss(maps, masks)) == pytest.approx(expected, abs=1e-14)
    for loss, probability, mask in zip(dice_loss(maps, masks), maps, masks, strict=True):
        assert float(loss) == pytest.approx(slow_dice(probability, mask), abs=1e-14)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_certain_maps_give_finite_losses_and_gradients(value):
    _, masks = maps_and_masks()
    for target in (masks, torch.zeros_like(masks), torch.ones_like(masks)):
        maps = torch.full_like(masks, value).requires_grad_()
        (focal_loss(maps, target) + dice_loss(maps, target).mean()).backward()
        assert torch.isfinite(maps.grad).all()


def test_a_perfect_map_costs_next_to_nothing_and_an_inverted_one_much():
    _, masks = maps_and_masks()
    assert float(focal_loss(masks, masks)) < 1e-8 and float(dice_loss(masks, masks).max()) == 0
    assert float(focal_loss(1 - masks, masks)) > 10 and float(dice_loss(1 - masks, masks).min()) > 0.9


def test_score_loss_is_cross_entropy_and_survives_certainty():
    score = torch.tensor([0.2, 0.9, 1.0, 0.0], dtype=torch.float64)
    label = torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    expected = -(math.log(0.8) + math.log(0.9) + math.log(1e-6) + math.log(1 - 1e-6)) / 4
    assert float(score_loss(score, label)) == pytest.approx(expected, rel=1e-9)
    half = score_loss(torch.tensor([1.0]).bfloat16(), torch.tensor([0.0]))
    assert torch.isfinite(half) and half.dtype == torch.float32
