"""The image tower: against slow forms, its value-value branch, its taps and shortcuts, position grids, errors."""

from __future__ import annotations

import pytest
import torch
from clip_oracles import looped_attention, slow_block, slow_value_value
from torch.nn import functional as F

from zsad.clip.config import CLIPConfig, MobileStage, MobileStemConfig
from zsad.clip.model import CLIP
from zsad.errors import ConfigError


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("act", ["gelu", "quick_gelu"])
def test_blocks_equal_their_formula(config: CLIPConfig, pixels: torch.Tensor, act: str) -> None:
    from clip_oracles import randomised

    vision = config.vision.model_copy(update={"activation": act})
    clip = randomised(CLIP(config.model_copy(update={"vision": vision})), seed=1).double()
    x, _ = clip.visual.embed(pixels.double())
    found = clip.visual(pixels.double(), taps=(1, 2, 3, 4)).taps
    for block, tap in zip(clip.visual.blocks, found, strict=True):
        x = slow_block(block, x)
        close(tap, x, 1e-12)


def test_taps_come_in_the_order_asked_and_are_distinct(clip: CLIP, pixels: torch.Tensor) -> None:
    output = clip.visual(pixels, taps=(4, 1, 2))
    backwards = clip.visual(pixels, taps=(2, 1, 4))
    assert len({tap.data_ptr() for tap in output.taps}) == 3
    for tap, same in zip(output.taps, reversed(backwards.taps), strict=True):
        assert torch.equal(tap, same)
    assert (output.taps[0] - output.taps[1]).abs().max() > 0.1
    assert (output.taps[1] - output.taps[2]).abs().max() > 0.1
    assert output.grid == (4, 4) and output.taps[0].shape == (2, 17, 32)


def test_a_tap_is_not_changed_by_later_blocks(clip: CLIP, pixels: torch.Tensor) -> None:
    """The published dual path once returned one tensor for all taps; a shorter tower shows what is right."""
    for start in (None, 2):
        early = clip.visual(pixels, taps=(2, 4), value_value_from=start).taps[0]
        alone = clip.visual(pixels, taps=(2,), value_value_from=start).taps[0]
        close(early, alone)


@pytest.mark.parametrize("start", [1, 2, 4])
def test_value_value_branch_equals_explicit_loop(clip: CLIP, pixels: torch.Tensor, start: int) -> None:
    clip = clip.double()
    expected, cls = slow_value_value(clip, pixels.double(), start=start, attention=looped_attention)
    taps = tuple(range(start, 5))
    output = clip.visual(pixels.double(), taps=taps, value_value_from=start)
    for found, wanted in zip(output.taps, expected, strict=True):
        close(found, wanted, 1e-11)
    close(output.cls, cls, 1e-12)
    for a, b in zip(output.taps, output.taps[1:], strict=False):
        assert (a - b).abs().max() > 1e-2


def test_value_value_branch_is_block_input_plus_sum(clip: CLIP, pixels: torch.Tensor) -> None:
    """x_vv(4) = x(1) + the contributions of blocks 2 to 4, each from the ordinary stream before it, no MLP."""
    plain = clip.visual(pixels, taps=(1, 2, 3, 4))
    expected = plain.taps[0]
    for number in (2, 3, 4):
        block, before = clip.visual.blocks[number - 1], plain.taps[number - 2]
        _, _, value = block.attn.qkv(block.ln_1(before))
        expected = expected + block.attn.attend(value, value, value)
    branched = clip.visual(pixels, taps=(4,), value_value_from=2)
    close(branched.taps[0], expected)
    close(branched.cls, plain.cls)


def test_class_token_shortcut_is_exact(clip: CLIP, pixels: torch.Tensor) -> None:
    clip, pixels = clip.double(), pixels.double()
    full = clip.visual(pixels, taps=(4,))
    close(clip.visual(pixels).cls, full.cls, 1e-13)
    close(full.cls, full.taps[0][:, 0], 0.0)
    short = clip.visual(pixels, taps=(3,), value_value_from=3)
    long = clip.visual(pixels, taps=(3,), value_value_from=3, hooks={4: lambda x: x})
    close(short.cls, long.cls, 1e-13)
    close(short.taps[0], long.taps[0], 1e-13)


def test_hooks_change_the_stream_behind_their_block(clip: CLIP, pixels: torch.Tensor) -> None:
    seen: list[tuple[int, ...]] = []

    def double(x: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(x.shape))
        return 2 * x

    plain = clip.visual(pixels, taps=(1, 2, 3, 4)).taps
    hooked = clip.visual(pixels, taps=(1, 2, 3, 4), hooks={2: double, 4: double})
    assert seen == [(2, 17, 32)] * 2
    close(hooked.taps[0], plain[0])
    close(hooked.taps[1], 2 * plain[1])
    close(hooked.taps[2], clip.visual.blocks[2](2 * plain[1]))
    close(hooked.cls, hooked.taps[3][:, 0])


def test_project_and_encode(clip: CLIP, pixels: torch.Tensor) -> None:
    cls = clip.visual(pixels).cls
    tower = clip.visual
    normed = F.layer_norm(cls, (32,), tower.ln_post.weight, tower.ln_post.bias)
    close(clip.visual.project(cls), normed @ tower.proj)
    close(clip.visual.project(cls, norm=False), cls @ tower.proj)
    close(clip.visual.encode(pixels), normed @ tower.proj)


def hand_made(clip: CLIP) -> None:
    """Positions 0 .. 15 on the native 4 x 4 grid in channel 0, the class token at 100."""
    with torch.no_grad():
        clip.visual.position_embedding.zero_()
        clip.visual.position_embedding[1:, 0] = torch.arange(16.0)
        clip.visual.position_embedding[0, 0] = 100


def cubic(x: float, a: float) -> float:
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def resample(values: list[float], size: int, mode: str, antialias: bool) -> list[float]:
    """One axis of PyTorch's resizing with half-pixel centres, from the definitions of its kernels."""
    count, scale = len(values), len(values) / size
    stretch = max(scale, 1.0) if antialias else 1.0
    result = []
    for index in range(size):
        centre = (index + 0.5) * scale - 0.5
        reach = int(2 * stretch) + 2
        weights: list[tuple[float, float]] = []
        for tap in range(int(centre // 1) - reach, int(centre // 1) + reach + 1):
            distance = (tap - centre) / stretch
            weight = (
                max(0.0, 1 - abs(distance))
                if mode == "bilinear"
                else cubic(distance, -0.5 if antialias else -0.75)
            )
            if antialias and not 0 <= tap < count:
                continue  # cut off and normalised instead of repeating the border
            weights.append((weight, values[min(max(tap, 0), count - 1)]))
        total = sum(weight for weight, _ in weights)
        result.append(sum(weight * value for weight, value in weights) / total)
    return result


@pytest.mark.parametrize("grid", [(6, 6), (3, 7), (2, 2)])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [False, True])
def test_position_grids_equal_kernels_by_hand(
    clip: CLIP, grid: tuple[int, int], mode: str, antialias: bool
) -> None:
    hand_made(clip)
    table = clip.visual.positions(grid, interpolation=mode, antialias=antialias)
    rows = resample([0.0, 4.0, 8.0, 12.0], grid[0], mode, antialias)
    columns = resample([0.0, 1.0, 2.0, 3.0], grid[1], mode, antialias)
    expected = torch.tensor([[row + column for column in columns] for row in rows]).flatten()
    close(table[1:, 0], expected, 1e-4)
    assert table[0, 0] == 100 and table.shape == (1 + grid[0] * grid[1], 32)


def test_antialias_matters_when_enlarging_bicubic_only(clip: CLIP) -> None:
    tower = clip.visual
    plain, smooth = (tower.positions((6, 6), antialias=flag) for flag in (False, True))
    assert (plain - smooth).abs().max() > 1e-3
    plain, smooth = (
        tower.positions((6, 6), interpolation="bilinear", antialias=flag) for flag in (False, True)
    )
    close(plain, smooth)


def test_position_cache_follows_the_weights(clip: CLIP, pixels: torch.Tensor) -> None:
    wide = F.pad(pixels, (0, 16, 0, 8))
    first = clip.visual(wide, taps=(1,))
    assert first.grid == (5, 6)
    before = clip.visual.positions((5, 6)).clone()
    assert clip.visual.positions((5, 6)) is clip.visual.positions((5, 6))
    with torch.no_grad():
        clip.visual.position_embedding.mul_(2)
    close(clip.visual.positions((5, 6)), 2 * before)


def test_positions_carry_gradients_when_trained(clip: CLIP) -> None:
    clip.visual.position_embedding.requires_grad_(True)
    clip.visual.positions((6, 5)).sum().backward()
    grad = clip.visual.position_embedding.grad
    assert grad is not None and grad.abs().min() > 0


@pytest.mark.parametrize("start", [None, 2])
def test_frozen_tower_passes_gradients_to_pixels(clip: CLIP, pixels: torch.Tensor, start: int | None) -> None:
    x = pixels.double().requires_grad_()
    clip = clip.double()
    output = clip.visual(x, taps=(4,), value_value_from=start)
    value = output.taps[0].square().sum() + output.cls.square().sum()
    (grad,) = torch.autograd.grad(value, x)
    step = torch.zeros_like(x)
    step[0, 1, 3, 5] = 1e-5
    with torch.no_grad():
        ends = [clip.visual(x + sign * step, taps=(4,), value_value_from=start) for sign in (1, -1)]
    sums = [end.taps[0].square().sum() + end.cls.square().sum() for end in ends]
    assert grad[0, 1, 3, 5].item() == pytest.approx((sums[0] - sums[1]).item() / 2e-5, rel=1e-4)


def test_remainders_of_a_patch_are_cut(clip: CLIP, pixels: torch.Tensor) -> None:
    padded = F.pad(pixels, (0, 5, 0, 7), value=9.0)
    close(clip.visual(padded, taps=(4,)).taps[0], clip.visual(pixels, taps=(4,)).taps[0])


@pytest.mark.parametrize("taps", [(0,), (5,), (-1,), (1, 9)])
def test_taps_outside_the_tower_are_refused(clip: CLIP, pixels: torch.Tensor, taps: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="blocks 1 to 4"):
        clip.visual(pixels, taps=taps)


def test_other_impossible_requests_are_refused(clip: CLIP, pixels: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="before block 3"):
        clip.visual(pixels, taps=(2, 4), value_value_from=3)
    with pytest.raises(ConfigError, match="block 5 does not exist"):
        clip.visual(pixels, hooks={5: lambda x: x})
    with pytest.raises(ConfigError, match="block 0 does not exist"):
        clip.visual(pixels, value_value_from=0)
    with pytest.raises(ConfigError, match="smaller than one 8-pixel patch"):
        clip.visual(pixels[..., :7])


def test_stem_replaces_the_patch_embedding(config: CLIPConfig) -> None:
    from clip_oracles import randomised

    stages = (
        MobileStage(kernel=3, stride=2, expand=1, channels=6, repeats=1),
        MobileStage(kernel=5, stride=2, expand=2, channels=8, repeats=2),
    )
    stem = MobileStemConfig(first_channels=4, stages=stages, merge_stages=(0, 1))
    vision = config.vision.model_copy(update={"stem": stem})
    clip = randomised(CLIP(config.model_copy(update={"vision": vision})), seed=5)
    output = clip.visual(torch.randn(2, 3, 40, 33), taps=(2, 4), value_value_from=2)
    assert output.grid == (5, 4)
    assert output.taps[0].shape == (2, 21, 32)
    joined = clip.visual.patch_embedding.maps(torch.randn(1, 3, 32, 32))
    assert joined.shape == (1, 4, 4, 6 * 4 + 8)


def test_a_stream_goes_on_where_it_stopped(clip: CLIP, pixels: torch.Tensor) -> None:
    whole = clip.visual(pixels, taps=(2, 3, 4), hooks={3: lambda x: 1.5 * x})
    for after in (0, 1):
        x, grid = clip.visual.stream(pixels, after=after)
        rest = clip.visual.resume(x, grid=grid, after=after, taps=(2, 3, 4), hooks={3: lambda x: 1.5 * x})
        assert rest.grid == whole.grid
        for tap, expected in zip((*rest.taps, rest.cls), (*whole.taps, whole.cls), strict=True):
            close(tap, expected)
    close(clip.visual.stream(pixels, after=2)[0], whole.taps[0])


def test_a_stream_takes_more_tokens(clip: CLIP, pixels: torch.Tensor) -> None:
    x, grid = clip.visual.stream(pixels, after=1)
    longer = torch.cat([x, torch.randn(2, 3, 32)], dim=1)
    [tap] = clip.visual.resume(longer, grid=grid, after=1, taps=(4,)).taps
    assert tap.shape == (2, 20, 32) and not torch.allclose(
        tap[:, :17], clip.visual(pixels, taps=(4,)).taps[0]
    )


def test_what_lies_before_a_stream_is_refused(clip: CLIP, pixels: torch.Tensor) -> None:
    x, grid = clip.visual.stream(pixels, after=2)
    for wrong in ({"taps": (2,)}, {"hooks": {1: lambda x: x}}, {"value_value_from": 2}):
        with pytest.raises(ConfigError, match="behind block 2"):
            clip.visual.resume(x, grid=grid, after=2, **wrong)
    with pytest.raises(ConfigError, match="block 5 does not exist"):
        clip.visual.stream(pixels, after=5)
