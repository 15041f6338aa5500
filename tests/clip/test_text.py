"""The text tower: truncation, packing and deep tokens are exact; errors say what does not fit."""

from __future__ import annotations

import pytest
import torch
from clip_oracles import slow_text

from zsad.clip.model import CLIP
from zsad.errors import ConfigError

EOS = 49


def ids_of(lengths: list[int], context: int = 77) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ids with SOS 48 and EOS 49, padded with 0, and where EOS is."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.zeros(len(lengths), context, dtype=torch.long)
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = torch.randint(1, 48, (length,), generator=generator)
        row[0], row[length - 1] = 48, EOS
    return ids, torch.tensor(lengths) - 1


def test_truncated_pass_equals_whole_context(clip: CLIP) -> None:
    clip = clip.double()
    ids, eos = ids_of([5, 17, 23, 9])
    whole = slow_text(clip, clip.text.embed(ids), eos)
    torch.testing.assert_close(clip.text.encode(ids, eos=EOS), whole, atol=1e-12, rtol=1e-12)
    filled = ids.clone()
    filled[0, 6:] = 7  # whatever lies behind EOS is ignored
    torch.testing.assert_close(clip.text.encode(filled, eos=EOS), whole, atol=1e-12, rtol=1e-12)


def test_whole_context_can_be_used(clip: CLIP) -> None:
    clip = clip.double()
    ids, eos = ids_of([77, 2])
    torch.testing.assert_close(
        clip.text.encode(ids, eos=EOS), slow_text(clip, clip.text.embed(ids), eos), atol=1e-12, rtol=1e-12
    )


def test_packed_tree_equals_separate_passes(clip: CLIP) -> None:
    """Normal: prefix and 5 tokens; abnormal: the same prefix, 3 more, then 5. Two images at once."""
    clip = clip.double()
    generator = torch.Generator().manual_seed(2)
    prefix, normal, abnormal = (
        torch.randn(2, count, 48, generator=generator, dtype=torch.float64) for count in (6, 5, 8)
    )
    packed = torch.cat([prefix, normal, abnormal], dim=1)
    positions = torch.tensor([*range(6), *range(6, 11), *range(6, 14)])
    mask = torch.ones(19, 19, dtype=torch.bool).tril()
    mask[11:, 6:11] = False
    found = clip.text.forward_packed(packed, positions=positions, mask=mask, eos=torch.tensor([10, 18]))
    for index, (branch, end) in enumerate(((normal, 10), (abnormal, 13))):
        separate = clip.text(torch.cat([prefix, branch], dim=1), eos=torch.full((2,), end))
        torch.testing.assert_close(found[:, index], separate, atol=1e-12, rtol=1e-12)
    assert (found[:, 0] - found[:, 1]).abs().max() > 0.1


def test_deep_tokens_equal_slow_form(clip: CLIP) -> None:
    clip = clip.double()
    ids, eos = ids_of([9, 14])
    deep = torch.randn(2, 4, 48, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    embeddings = clip.text.embed(ids)
    expected = slow_text(clip, embeddings, eos, deep)
    found = clip.text(embeddings, eos=eos, deep_tokens=deep)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    assert (found - clip.text(embeddings, eos=eos)).abs().max() > 0.1


def test_deep_tokens_do_not_write_into_their_inputs(clip: CLIP) -> None:
    ids, eos = ids_of([9, 14])
    embeddings, deep = clip.text.embed(ids), torch.randn(2, 4, 48)
    copies = embeddings.clone(), deep.clone()
    clip.text(embeddings, eos=eos, deep_tokens=deep)
    assert torch.equal(embeddings, copies[0]) and torch.equal(deep, copies[1])


def test_learnable_tokens_get_gradients_through_the_frozen_tower(clip: CLIP) -> None:
    ids, eos = ids_of([9, 14])
    embeddings = clip.text.embed(ids).clone().requires_grad_()
    deep = torch.randn(2, 4, 48, requires_grad=True)
    clip.text(embeddings, eos=eos, deep_tokens=deep).square().sum().backward()
    assert embeddings.grad is not None and deep.grad is not None
    assert deep.grad.abs().min() > 0
    assert embeddings.grad[0, 5:9].abs().min() > 0
    assert embeddings.grad[0, 9:].abs().max() == 0
    assert all(parameter.grad is None for parameter in clip.parameters())


def test_too_long_prompts_are_refused(clip: CLIP) -> None:
    with pytest.raises(ConfigError, match=r"prompt of 78 tokens .* context of 77"):
        clip.text(torch.randn(1, 80, 48), eos=torch.tensor([77]))
    with pytest.raises(ConfigError, match="prompt of 81 tokens"):
        clip.text.forward_packed(
            torch.randn(1, 2, 48),
            positions=torch.tensor([0, 80]),
            mask=torch.ones(2, 2, dtype=torch.bool).tril(),
            eos=torch.tensor([1]),
        )


def test_too_many_deep_tokens_are_refused(clip: CLIP) -> None:
    with pytest.raises(ConfigError, match="3 sets of deep text tokens"):
        clip.text(torch.randn(1, 9, 48), eos=torch.tensor([8]), deep_tokens=torch.randn(3, 2, 48))


def test_similarity_is_scaled_cosine(clip: CLIP) -> None:
    image, text = torch.randn(2, 24), torch.randn(3, 24)
    expected = torch.stack([torch.stack([torch.cosine_similarity(i, t, dim=0) for t in text]) for i in image])
    torch.testing.assert_close(clip.similarity(image, text), expected * clip.logit_scale.exp())
