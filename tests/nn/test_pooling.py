"""Neighbourhood means against `unfold`, which copies every window, in value and gradient."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from zsad.errors import ConfigError
from zsad.nn.pooling import average_pool


def slow_pool(tokens: torch.Tensor, grid: tuple[int, int], *, size: int, zero_padded: bool) -> torch.Tensor:
    """The published form on (B, N, D): every window unfolded, then summed and divided."""
    batch, count, width = tokens.shape
    image = tokens.transpose(1, 2).reshape(batch, width, *grid)

    def windows(image: torch.Tensor) -> torch.Tensor:
        return F.unfold(image, size, padding=size // 2).view(len(image), -1, size * size, count)

    total = windows(image).sum(2).transpose(1, 2)
    covered = windows(torch.ones(1, 1, *grid, dtype=tokens.dtype)).sum(2).transpose(1, 2)
    return total / (size * size if zero_padded else covered)


def randn(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("zero_padded", [True, False])
@pytest.mark.parametrize("size", [1, 3, 5, 7])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_equals_unfold_in_value_and_gradient(dtype, error, size, zero_padded):
    for grid in ((5, 7), (2, 9), (1, 1)):
        tokens = randn(2, grid[0] * grid[1], 6, dtype=dtype).requires_grad_()
        probe = randn(*tokens.shape, dtype=dtype, seed=1)
        fast = average_pool(tokens, grid, size=size, zero_padded=zero_padded)
        slow = slow_pool(tokens, grid, size=size, zero_padded=zero_padded)
        torch.testing.assert_close(fast, slow, atol=error, rtol=0)
        ours, theirs = (torch.autograd.grad((form * probe).sum(), tokens)[0] for form in (fast, slow))
        torch.testing.assert_close(ours, theirs, atol=error, rtol=0)


@pytest.mark.parametrize("zero_padded", [True, False])
def test_takes_any_leading_axes_and_slices_without_the_class_token(zero_padded):
    stream = randn(3, 2, 1 + 20, 8, dtype=torch.float32)
    together = average_pool(stream[:, :, 1:], (4, 5), size=3, zero_padded=zero_padded)
    assert together.shape == (3, 2, 20, 8)
    for image in range(3):
        alone = average_pool(stream[image, :, 1:], (4, 5), size=3, zero_padded=zero_padded)
        torch.testing.assert_close(together[image], alone, atol=1e-6, rtol=0)


def test_constant_tokens_stay_constant_only_where_the_border_does_not_count():
    ones = torch.ones(1, 25, 4)
    safe = average_pool(ones, (5, 5), size=5, zero_padded=False)
    torch.testing.assert_close(safe, ones)
    padded = average_pool(ones, (5, 5), size=5, zero_padded=True).view(5, 5, 4)
    assert padded[2, 2, 0] == pytest.approx(1) and padded[0, 0, 0] == pytest.approx(9 / 25)


def test_mixed_precision_does_not_round_the_kernel():
    ones = torch.ones(1, 25, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        means = average_pool(ones, (5, 5), size=3, zero_padded=True).view(5, 5, 4)
    assert means[2, 2, 0] == pytest.approx(1, abs=1e-6)
    half = average_pool(ones.bfloat16(), (5, 5), size=3, zero_padded=True)
    assert half.dtype == torch.bfloat16 and float(half.view(5, 5, 4)[2, 2, 0]) == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize("size", [0, 2, -3])
def test_a_window_without_a_centre_is_refused(size):
    with pytest.raises(ConfigError, match="odd"):
        average_pool(torch.zeros(1, 4, 2), (2, 2), size=size, zero_padded=True)


def test_a_class_token_left_in_is_refused():
    with pytest.raises(ConfigError, match="2 x 2 does not hold 5 tokens"):
        average_pool(torch.zeros(1, 5, 2), (2, 2), size=3, zero_padded=True)
