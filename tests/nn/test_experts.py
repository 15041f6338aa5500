"""Attention-pool experts and their balance against loops, and cross-attention against its formula."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from zsad.nn.attention import CrossAttention
from zsad.nn.experts import AttentionPoolExperts, SemanticExperts, load_balance_loss
from zsad.nn.moe import topk_gates


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_same_gradients(fast, slow, inputs):
    probe = randn(*fast.shape, seed=9)
    for ours, theirs in zip(
        *(torch.autograd.grad((form * probe).sum(), inputs) for form in (fast, slow)), strict=True
    ):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=0)


def test_experts_equal_a_loop_in_value_and_gradient():
    experts = AttentionPoolExperts(3, 6, 4).double()
    for seed, parameter in enumerate(experts.parameters()):
        parameter.data = randn(*parameter.shape, seed=seed)
    tokens, gates = randn(2, 7, 6).requires_grad_(), topk_gates(randn(2, 3, seed=5), 2).requires_grad_()
    rows = []
    for image in range(2):
        read = (tokens[image] - tokens[image].mean(1, keepdim=True)) / (
            tokens[image].var(1, correction=0, keepdim=True) + 1e-5
        ).sqrt()
        total = 0
        for index in range(3):
            attention = (read @ experts.queries[index] / 6**0.5).softmax(0)
            hidden = F.gelu(attention @ read @ experts.first[index] + experts.first_bias[index])
            total = total + gates[image, index] * (
                hidden @ experts.second[index] + experts.second_bias[index]
            )
        rows.append(total)
    fast, slow = experts(tokens, gates), torch.stack(rows)
    torch.testing.assert_close(fast, slow, atol=1e-12, rtol=0)
    assert_same_gradients(fast, slow, [tokens, gates, *experts.parameters()])


def test_experts_start_small_and_unlike_each_other_and_their_outputs_learn():
    experts = AttentionPoolExperts(4, 96, 24)
    experts.reset_parameters(torch.Generator().manual_seed(0))
    tokens = torch.randn(5, 30, 96, generator=torch.Generator().manual_seed(1))
    said = torch.stack([experts(tokens, gates.expand(5, -1)) for gates in torch.eye(4)])
    assert 0.01 < said.norm(dim=-1).mean() < 1
    alike = F.cosine_similarity(said[:, None], said[None], dim=-1).mean(dim=-1)
    assert alike[~torch.eye(4, dtype=torch.bool)].abs().max() < 0.3
    said.sum().backward()
    assert experts.second.grad.abs().sum() > 0 and experts.second_bias.grad.abs().sum() > 0


def test_an_expert_that_is_not_chosen_gets_no_gradient():
    experts = AttentionPoolExperts(3, 6, 4).double()
    experts(randn(2, 7, 6), torch.tensor([[0.4, 0.6, 0], [1, 0, 0]]).double()).square().sum().backward()
    for parameter in experts.parameters():
        assert parameter.grad[:2].abs().sum() > 0 and not parameter.grad[2].any()


@pytest.mark.parametrize("layers", [(), (3,)])
def test_balance_is_one_where_experts_are_used_alike(layers):
    experts, k = 4, 2
    logits = torch.zeros(6, *layers, experts)
    # Six images choose all six pairs of four experts.
    for image, pair in enumerate([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]):
        logits[image, ..., pair] = 1e-3
    assert float(load_balance_loss(logits, top_k=k)) == pytest.approx(1, abs=1e-6)
    same = torch.tensor([50.0, 50.0, 0, 0]).expand(6, *layers, experts)
    assert float(load_balance_loss(same, top_k=k)) == pytest.approx(experts / k, abs=1e-6)


def test_balance_equals_its_formula_and_pushes_the_busy_expert_down():
    logits = (2 * randn(5, 2, 4)).requires_grad_()
    gates = topk_gates(logits, 2)
    expected = 0.0
    for layer in range(2):
        probability = logits[:, layer].softmax(-1).mean(0)
        for expert in range(4):
            share = sum(bool(gates[image, layer, expert] != 0) for image in range(5)) / (5 * 2)
            expected = expected + 4 * share * probability[expert] / 2
    loss = load_balance_loss(logits, top_k=2)
    torch.testing.assert_close(loss, expected, atol=1e-13, rtol=0)
    busy = torch.tensor([[3.0, 2.0, 0.0]]).requires_grad_()
    load_balance_loss(busy, top_k=1).backward()
    assert busy.grad[0, 0] > 0 > busy.grad[0, 2]


def test_balance_counts_the_chosen_however_small_their_weight():
    """Every image chooses experts 0 and 1, the second with a weight that underflows."""
    logits = torch.tensor([[200.0, 0.0, -200.0, -200.0]]).repeat(3, 1)
    assert float(load_balance_loss(logits, top_k=2)) == 4 * (1 / 2 * 1 + 1 / 2 * 0)


@pytest.mark.parametrize("shared", [False, True])
def test_cross_attention_equals_its_formula_in_value_and_gradient(shared):
    layer = CrossAttention(6, heads=2).double()
    for seed, parameter in enumerate(layer.parameters()):
        parameter.data = randn(6, 6, seed=seed)
    queries, tokens = (
        randn(1 if shared else 3, 2, 6).requires_grad_(),
        randn(3, 4, 7, 6, seed=8).requires_grad_(),
    )
    fast = layer(queries, tokens)
    key, value = tokens @ layer.key, tokens @ layer.value
    asked = (queries @ layer.query)[:, None].expand(3, 4, -1, -1)
    q, k, v = (x.unflatten(-1, (2, 3)).transpose(2, 3) for x in (asked, key, value))
    slow = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).flatten(-2) @ layer.output
    torch.testing.assert_close(fast, slow, atol=1e-11, rtol=0)
    assert_same_gradients(fast, slow, [queries, tokens, *layer.parameters()])


def test_cross_attention_starts_as_nothing():
    layer = CrossAttention(6, heads=3)
    out = layer(torch.randn(2, 2, 6), torch.randn(2, 1, 5, 6))
    assert torch.equal(out, torch.zeros(2, 1, 2, 6))
    out.sum().backward()
    assert layer.output.grad.abs().sum() > 0


def test_semantic_experts_add_to_the_feature_and_route_by_meaning():
    layer = SemanticExperts(4, 6, 3, router_width=5, top_k=2).double()
    f, meaning, tokens = F.normalize(randn(3, 6), dim=-1), randn(3, 5, seed=1), randn(3, 7, 6, seed=2)
    g, logits, gates = layer(f, meaning, tokens)
    torch.testing.assert_close(logits[:, 0], meaning @ layer.router.weight.T, atol=1e-14, rtol=0)
    assert ((gates > 0).sum(-1) == 2).all() and gates.shape == (3, 1, 4)
    torch.testing.assert_close(g, F.normalize(f + layer.pool(tokens, gates[:, 0]), dim=-1))
    g.square().sum().backward()
    assert layer.router.weight.grad.abs().sum() > 0
