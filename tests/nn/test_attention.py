"""The folded attention equals Eq. 2 as written, in value and in every gradient."""

from __future__ import annotations

import pytest
import torch
from promptmoe_oracles import slow_attention

from zsad.nn.attention import QueryAttention


def build() -> QueryAttention:
    layer = QueryAttention(2, 3, queries=4, token_width=10, width=12, heads=3).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.7, generator=torch.Generator().manual_seed(parameter.ndim))
    return layer


@pytest.mark.parametrize("with_extra", [True, False])
def test_equals_the_slow_form_in_value_and_gradient(with_extra):
    layer = build()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 3, 7, 10, generator=generator, dtype=torch.float64, requires_grad=True)
    extra = torch.randn(2, 10, generator=generator, dtype=torch.float64, requires_grad=True)
    fast = layer(tokens, extra=extra if with_extra else None)
    slow = []
    for image in range(2):
        for state in range(2):
            for level in range(3):
                read = tokens[image, level]
                if with_extra:
                    read = torch.cat([read, extra[image, None]])
                parameters = layer.queries, layer.key, layer.value
                folded = (parameter[state, level] for parameter in parameters)
                slow.append(slow_attention(*folded, read, heads=3, scale=4**-0.5))
    slow = torch.stack(slow).view_as(fast)
    torch.testing.assert_close(fast, slow, atol=1e-12, rtol=0)
    probe = torch.randn(fast.shape, generator=generator, dtype=torch.float64)
    inputs = [tokens, *layer.parameters(), *([extra] if with_extra else [])]
    for ours, theirs in zip(
        *(torch.autograd.grad((form * probe).sum(), inputs, retain_graph=True) for form in (fast, slow)),
        strict=True,
    ):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=0)


def test_a_seeded_generator_makes_the_same_start():
    layers = [build(), build()]
    for layer in layers:
        layer.reset_parameters(torch.Generator().manual_seed(1))
    assert torch.equal(layers[0].key, layers[1].key) and torch.equal(layers[0].queries, layers[1].queries)
    assert layers[0].key.abs().max() <= (6 / 22) ** 0.5
