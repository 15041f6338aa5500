"""A packed token tree shows every token exactly what its own prompt would show it."""

from __future__ import annotations

import pytest
import torch

from zsad.clip.model import pack, tree_layout


@pytest.mark.parametrize(("prefix", "branches"), [(6, (11, 17)), (1, (16, 17)), (3, (1,)), (2, (4, 1, 3))])
def test_layout_is_that_of_the_separate_prompts(prefix, branches):
    layout = tree_layout(prefix, branches)
    assert layout.mask.shape == (prefix + sum(branches),) * 2
    start = prefix
    for number, length in enumerate(branches):
        own = torch.cat([torch.arange(prefix), torch.arange(start, start + length)])
        start += length
        assert layout.positions[own].tolist() == list(range(prefix + length))
        assert layout.ends[number] == own[-1]
        # Within a prompt: causal. From its own branch to any other token: nothing.
        assert torch.equal(layout.mask[own][:, own], torch.ones(len(own), len(own)).tril().bool())
        others = torch.tensor(
            [index for index in range(start - length, len(layout.mask)) if index not in own]
        )
        assert not layout.mask[own[prefix:]][:, others.long()].any()


def test_segments_are_joined_in_order_and_broadcast():
    shared = torch.arange(2.0)[:, None].expand(-1, 3)
    own = torch.stack([torch.full((2, 3), 10.0), torch.full((2, 3), 20.0)])
    packed, layout = pack([shared, own], [[shared], [own, shared]], batch=2)
    assert packed[:, :, 0].tolist() == [[0, 1, v, v, 0, 1, v, v, 0, 1] for v in (10.0, 20.0)]
    assert layout.ends.tolist() == [5, 9] and layout.positions.tolist() == [0, 1, 2, 3, 4, 5, 4, 5, 6, 7]
