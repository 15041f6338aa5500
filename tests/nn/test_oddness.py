"""The three cues against loops over patches, and what they must say of pictures made for them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from zsad.nn.oddness import asymmetry, contrast, cosine_matrix, oddness, rarity, top_mean

GRIDS = ((9, 11), (12, 12), (3, 4), (1, 1), (2, 9))


def picture(grid: tuple[int, int], *, seed: int = 0, width: int = 6) -> torch.Tensor:
    return torch.rand(2, grid[0] * grid[1], width, generator=torch.Generator().manual_seed(seed))


def slow(texture: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Patch by patch, as the cues are defined."""
    rows, columns = grid
    places = [(row, column) for row in range(rows) for column in range(columns)]
    out = torch.zeros(len(texture), 3, len(places))
    for image, features in enumerate(texture):
        for here, (row, column) in enumerate(places):
            cosine = F.cosine_similarity(features[here].expand_as(features), features)
            apart = [max(abs(row - r), abs(column - c)) for r, c in places]
            far = sorted((cosine[i].item() for i, d in enumerate(apart) if d > 3), reverse=True)[:10]
            ring = [cosine[i].item() for i, d in enumerate(apart) if 1 < d <= 4]
            twin = [
                cosine[i].item()
                for i, (r, c) in enumerate(places)
                if abs(row - r) <= 1 and abs(columns - 1 - column - c) <= 1 and abs(column - c) > 2
            ]
            out[image, 0, here] = 1 - sum(far) / len(far) if far else 0
            out[image, 1, here] = 1 - sum(ring) / len(ring) if ring else 0
            out[image, 2, here] = 1 - max(twin) if twin else 0
    return out


@pytest.mark.parametrize("grid", GRIDS)
def test_equals_the_loops(grid):
    texture = picture(grid)
    torch.testing.assert_close(oddness(texture, grid), slow(texture, grid), atol=2e-6, rtol=0)


@pytest.mark.parametrize("grid", GRIDS)
def test_a_picture_of_one_texture_is_nowhere_odd(grid):
    texture = torch.full((1, grid[0] * grid[1], 4), 0.3)
    assert oddness(texture, grid).abs().max() < 1e-6


def test_one_strange_patch_is_the_oddest_by_every_cue():
    texture = torch.tensor([1.0, 0.0, 0.0]).repeat(1, 144, 1)
    texture[0, 3 * 12 + 2] = torch.tensor([0.0, 1.0, 0.0])
    for cue in oddness(texture, (12, 12))[0]:
        assert int(cue.argmax()) == 3 * 12 + 2 and cue[3 * 12 + 2] == pytest.approx(1)


def test_a_pair_of_equal_patches_in_mirrored_places_is_symmetric_but_rare():
    texture = torch.tensor([1.0, 0.0]).repeat(1, 144, 1)
    texture[0, [3 * 12 + 2, 3 * 12 + 9]] = torch.tensor([0.0, 1.0])
    cosines = cosine_matrix(texture)
    assert asymmetry(cosines, (12, 12)).max() == 0
    assert rarity(cosines, (12, 12), neighbours=10)[0, 3 * 12 + 2] == pytest.approx(0.9)


def test_the_middle_has_no_counterpart():
    texture = picture((6, 9))
    middle = asymmetry(cosine_matrix(texture), (6, 9)).reshape(2, 6, 9)[..., 4]
    assert middle.abs().max() == 0


def test_a_large_defect_is_no_witness_for_itself():
    texture = torch.tensor([1.0, 0.0]).repeat(1, 400, 1).reshape(1, 20, 20, 2)
    texture[:, 8:11, 8:11] = torch.tensor([0.0, 1.0])
    cue = rarity(cosine_matrix(texture.flatten(1, 2)), (20, 20)).reshape(20, 20)
    assert (cue[8:11, 8:11] == 1).all() and cue[0, 0] == 0
    ring = contrast(cosine_matrix(texture.flatten(1, 2)), (20, 20)).reshape(20, 20)
    assert ring[9, 9] > ring[7, 9] > ring[0, 0]


@given(st.integers(1, 60), st.floats(0.001, 1.0))
def test_top_mean_is_between_mean_and_maximum(count, share):
    values = torch.randn(3, count, generator=torch.Generator().manual_seed(count))
    top = top_mean(values, share)
    assert (top <= values.amax(1) + 1e-6).all() and (top >= values.mean(1) - 1e-6).all()


def test_scale_and_batch_do_not_matter():
    texture = picture((8, 8))
    both = oddness(texture, (8, 8))
    torch.testing.assert_close(oddness(7 * texture, (8, 8)), both, atol=1e-6, rtol=0)
    torch.testing.assert_close(oddness(texture[1:], (8, 8)), both[1:], atol=1e-6, rtol=0)
