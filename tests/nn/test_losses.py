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


def test_gradients_equal_those_of_the_two_channel_forms():
    maps, masks = maps_and_masks()
    maps.requires_grad_()
    channels, onehot = torch.stack([1 - maps, maps]), torch.stack([1 - masks, masks])
    hit = (onehot.clamp(1e-5, 1 - 1e-5) * channels).sum(0) + 1e-5
    slow = [(-((1 - hit) ** 2) * hit.log()).mean()]
    slow += [
        1 - (2 * (p * m).sum() + 1) / (p.sum() + m.sum() + 1)
        for pair in zip(channels, onehot, strict=True)
        for p, m in zip(*pair, strict=True)
    ]
    fast = [focal_loss(maps, masks), *dice_loss(1 - maps, 1 - masks), *dice_loss(maps, masks)]
    for ours, theirs in zip(fast, slow, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-14, rtol=0)
        gradients = [torch.autograd.grad(loss, maps, retain_graph=True)[0] for loss in (ours, theirs)]
        assert gradients[1].abs().max() > 0
        torch.testing.assert_close(*gradients, atol=1e-14, rtol=0)


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
