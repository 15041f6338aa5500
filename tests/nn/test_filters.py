"""Maps against PyTorch's interpolation and SciPy's Gaussian."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

from zsad.nn.filters import gaussian, map_operator, render_map, upsample
from zsad.nn.maps import MapSpec, gaussian_matrix, render_map_numpy


def slow_map(logits, spec, *, size=None, smooth=True):
    """The definition, image by image, with the libraries' own filters in float64."""
    logits = torch.as_tensor(logits, dtype=torch.float64)

    def up(grids, target, align):
        return F.interpolate(grids[None], size=target, mode="bilinear", align_corners=align)[0]

    on_grid = spec.smooth != "map"
    window = {"mode": "mirror", "radius": int(3 * spec.sigma)} if spec.smooth == "grid_reflect" else {}

    def blurred(grids):
        if not (smooth and on_grid):
            return grids
        return torch.stack(
            [torch.as_tensor(gaussian_filter(one.numpy(), spec.sigma, **window)) for one in grids]
        )

    if spec.order == "before_softmax":
        canonical = up(blurred(logits), spec.size, spec.align_corners).sigmoid().mean(0)
    elif spec.order == "mean_logits":
        canonical = up(blurred(logits), spec.size, spec.align_corners).mean(0).sigmoid()
    else:
        canonical = up(blurred(logits.sigmoid()), spec.size, spec.align_corners).mean(0)
    if smooth and not on_grid:
        canonical = torch.as_tensor(gaussian_filter(canonical.numpy(), sigma=spec.sigma))
    if size is None:
        return canonical.numpy()
    return up(canonical[None], size, False)[0].numpy()


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("grid", "size", "sigma"), [(37, 518, 4.0), (5, 70, 2.5), (9, 12, 4.0), (7, 5, 0.0), (1, 6, 1.0)]
)
def test_operator_is_interpolation_then_gaussian(grid, size, sigma, align_corners):
    values = torch.randn(grid, generator=torch.Generator().manual_seed(grid), dtype=torch.float64)
    line = F.interpolate(values[None, None], size=size, mode="linear", align_corners=align_corners)[
        0, 0
    ].numpy()
    expected = gaussian_filter(line, sigma=sigma) if sigma else line
    operator = map_operator(grid, size, sigma=sigma, align_corners=align_corners)
    assert operator.shape == (size, grid) and operator.dtype == torch.float32
    np.testing.assert_allclose((operator.double() @ values).numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(operator.sum(1).numpy(), 1, atol=1e-6)


@pytest.mark.parametrize("order", ["before_softmax", "after_softmax", "mean_logits"])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [None, (61, 33), (200, 90)])
@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("where", ["map", "grid", "grid_reflect"])
def test_maps_equal_the_definition(order, align_corners, size, smooth, where):
    sigma = {"map": 3.0, "grid": 0.8, "grid_reflect": 1.5}[where]
    spec = MapSpec(size=(84, 70), order=order, sigma=sigma, align_corners=align_corners, smooth=where)
    logits = np.random.default_rng(1).normal(0, 4, (3, 4, 6, 5)).astype(np.float32)
    expected = np.stack([slow_map(one, spec, size=size, smooth=smooth) for one in logits])
    by_torch = render_map(torch.as_tensor(logits), spec, size=size, smooth=smooth)
    by_numpy = render_map_numpy(logits, spec, size=size, smooth=smooth)
    np.testing.assert_allclose(by_torch.numpy(), expected, atol=2e-6)
    np.testing.assert_allclose(by_numpy, expected, atol=2e-6)
    assert by_numpy.dtype == np.float32


@pytest.mark.parametrize("order", ["before_softmax", "after_softmax", "mean_logits"])
@pytest.mark.parametrize(("where", "size"), [("map", None), ("grid", None), ("map", (9, 13))])
def test_gradients_of_maps_are_those_of_their_values(order, where, size):
    spec = MapSpec(size=(12, 10), order=order, sigma=1.2, align_corners=True, smooth=where)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda grids: render_map(grids, spec, size=size), logits)


def test_full_size_map_equals_the_definition():
    spec = MapSpec(size=(518, 518))
    logits = np.random.default_rng(0).normal(0, 5, (4, 37, 37)).astype(np.float32)
    np.testing.assert_allclose(render_map_numpy(logits, spec), slow_map(logits, spec), atol=2e-6)


def test_extreme_logits_stay_finite_and_in_range():
    spec = MapSpec(size=(28, 28))
    logits = np.array([[[-1e4, 1e4], [1e4, -1e4]]], dtype=np.float32)
    with np.errstate(all="raise"):
        rendered = render_map_numpy(logits, spec)
    assert rendered.min() >= 0 and rendered.max() <= 1 + 1e-6


def test_operators_made_in_inference_mode_serve_training():
    spec = MapSpec(size=(31, 29), sigma=1.7)
    with torch.inference_mode():
        render_map(torch.zeros(1, 2, 3, 3), spec)
    logits = torch.zeros(1, 2, 3, 3, requires_grad=True)
    render_map(logits, spec).sum().backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all() and logits.grad.abs().sum() > 0


def test_upsample_equals_interpolate_in_value_and_gradient():
    grids = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    ours = upsample(grids, (17, 23), align_corners=False)
    theirs = F.interpolate(grids, size=(17, 23), mode="bilinear", align_corners=False)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
    weights = torch.randn_like(ours)
    gradients = [torch.autograd.grad((out * weights).sum(), grids)[0] for out in (ours, theirs)]
    torch.testing.assert_close(*gradients, atol=1e-11, rtol=0)


@pytest.mark.parametrize("size", [1, 2, 4, 37])
@pytest.mark.parametrize("sigma", [1.0, 1.5])
def test_mirrored_gaussian_equals_scipy_also_where_the_window_is_wider_than_the_grid(size, sigma):
    line = np.random.default_rng(size).normal(size=size)
    expected = gaussian_filter(line, sigma, mode="mirror", radius=int(3 * sigma))
    np.testing.assert_allclose(gaussian_matrix(size, sigma, reflect=True) @ line, expected, atol=1e-12)


def test_gaussian_equals_scipy():
    maps = torch.rand(2, 3, 20, 33, dtype=torch.float64)
    expected = gaussian_filter(maps.numpy(), sigma=(0, 0, 2.5, 2.5))
    np.testing.assert_allclose(gaussian(maps, 2.5).numpy(), expected, atol=1e-12)
