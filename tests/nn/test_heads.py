"""The token head against `nn.Conv1d` and a mean of unit vectors, in value and gradient."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from zsad.nn.heads import TokenHead


@pytest.mark.parametrize("depthwise", [True, False])
def test_equals_the_definition_in_value_and_gradient(depthwise):
    head = TokenHead(6, 5, depthwise=depthwise).double()
    head.reset_parameters(torch.Generator().manual_seed(0))
    x = torch.randn(3, 7, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    tokens = x
    if depthwise:
        mixed = F.conv1d(head.norm(x).transpose(1, 2), head.mix[:, :, 0], padding="same", groups=6)
        tokens = F.gelu(mixed).transpose(1, 2)
    slow = torch.stack([F.normalize(token @ head.project.T, dim=-1) for token in tokens.unbind(1)]).mean(0)
    fast = head(x)
    torch.testing.assert_close(fast, slow, atol=1e-12, rtol=0)
    assert (fast.norm(dim=-1) <= 1).all()
    inputs = [x, *head.parameters()]
    for ours, theirs in zip(
        *(torch.autograd.grad((form * slow.detach().cos()).sum(), inputs) for form in (fast, slow)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


def test_the_kernel_starts_as_xaviers_over_the_one_dimensional_convolution():
    head = TokenHead(1024, 2, depthwise=True)
    head.reset_parameters(torch.Generator().manual_seed(0))
    kernel = torch.nn.init.xavier_uniform_(
        torch.empty(1024, 1, 3), generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(head.mix[:, :, 0], kernel)
    assert float(head.mix.abs().max()) == pytest.approx((6 / (3 + 3 * 1024)) ** 0.5, rel=0.01)


def test_a_seeded_generator_makes_the_same_start():
    heads = [TokenHead(8, 4, depthwise=True) for _ in range(2)]
    for head in heads:
        head.reset_parameters(torch.Generator().manual_seed(3))
    assert torch.equal(heads[0].mix, heads[1].mix) and torch.equal(heads[0].project, heads[1].project)
