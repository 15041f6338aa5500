"""Images and masks are changed by one and the same motion; mosaics are made of quarters."""

from __future__ import annotations

import math

import pytest
import torch

from zsad.train.transforms import draw_motion, mosaic, move


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
