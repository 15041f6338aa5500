"""Hybrid prompts: what is learned, what comes from the feature, and their sum."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zsad.nn.hybrid import HybridPrompts, start_linear


@pytest.mark.parametrize("kinds", ["both", "static", "dynamic"])
def test_prompts_are_the_sum_of_their_kinds(kinds):
    made, feature = HybridPrompts(4, 3, 6, 5, kinds=kinds), torch.randn(2, 5)
    prompts = made(feature)
    assert prompts.shape == (2, 4, 3, 6)
    for image in range(2):
        for block in range(4):
            expected = torch.zeros(3, 6)
            if kinds != "dynamic":
                expected = expected + made.static[block]
            if kinds != "static":
                weight, bias = made.dynamic.weight.view(3, 6, 5), made.dynamic.bias.view(3, 6)
                expected = expected + torch.stack([weight[m] @ feature[image] + bias[m] for m in range(3)])
            torch.testing.assert_close(prompts[image, block], expected)
    prompts.sum().backward()
    names = {name for name, parameter in made.named_parameters() if parameter.grad is not None}
    own = {"static": {"static"}, "dynamic": {"dynamic.weight", "dynamic.bias"}}
    assert names == (own["static"] | own["dynamic"] if kinds == "both" else own[kinds])


def test_the_start_is_that_of_linear_layers_and_repeats():
    linear, other = nn.Linear(400, 50), nn.Linear(400, 50)
    for each in (linear, other):
        start_linear(each, torch.Generator().manual_seed(0))
    assert torch.equal(linear.weight, other.weight) and torch.equal(linear.bias, other.bias)
    assert linear.weight.abs().max() <= 1 / 20
    assert float(linear.weight.detach().std()) == pytest.approx(1 / 20 / 3**0.5, rel=0.05)
