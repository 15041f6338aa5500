"""Gates, mixtures and auxiliary losses against loops, and against the bounds that their formulas have."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from promptmoe_oracles import slow_balance, slow_decouple, slow_gates

from zsad.nn.moe import Router, balance_loss, decouple_loss, mixture, topk_gates


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("k", [1, 3, 8])
def test_gates_are_a_softmax_over_the_k_largest(k):
    logits = 3 * randn(4, 2, 8)
    gates = topk_gates(logits, k)
    assert ((gates != 0).sum(-1) == k).all()
    torch.testing.assert_close(gates.sum(-1), torch.ones(4, 2, dtype=torch.float64))
    expected = torch.stack([slow_gates(row, k) for row in logits.flatten(0, 1)]).view_as(gates)
    torch.testing.assert_close(gates, expected, atol=1e-14, rtol=0)


@settings(max_examples=150)
@given(data=st.data())
def test_exactly_k_gates_are_not_zero_for_any_finite_logits(data):
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
    largest = float(torch.finfo(dtype).max) / 2
    size = data.draw(st.integers(1, 8))
    values = st.one_of(st.floats(-200, 200), st.floats(-largest, largest), st.sampled_from([0.0, 104.0]))
    logits = torch.tensor(data.draw(st.lists(values, min_size=size, max_size=size)), dtype=torch.float64).to(
        dtype
    )
    k = data.draw(st.integers(1, size))
    gates = topk_gates(logits, k)
    assert gates.dtype == dtype and int((gates > 0).sum()) == k and not (gates < 0).any()
    assert float(gates.double().sum()) == pytest.approx(1, abs=8 * torch.finfo(dtype).eps)
    assert gates[logits == logits.max()].max() == gates.max()


def test_gates_pass_gradients_to_the_chosen_alone():
    logits = randn(5, 6).requires_grad_()
    (topk_gates(logits, 2) * randn(5, 6, seed=1)).sum().backward()
    chosen = torch.zeros(5, 6, dtype=torch.bool).scatter(-1, logits.topk(2).indices, True)
    assert (logits.grad[chosen] != 0).all() and (logits.grad[~chosen] == 0).all()


def test_gates_and_mixture_equal_the_renormalised_softmax_in_value_and_gradient():
    """Published: a softmax over all experts, the k largest of it divided by their sum, the chosen gathered."""
    logits, pool = randn(3, 2, 5).requires_grad_(), randn(2, 5, 4, 7, seed=1).requires_grad_()
    top, chosen = logits.softmax(-1).topk(2, dim=-1)
    slow = torch.stack(
        [
            torch.stack(
                [
                    sum(
                        top[b, layer, n] / top[b, layer].sum() * pool[layer, chosen[b, layer, n]]
                        for n in (0, 1)
                    )
                    for layer in range(2)
                ]
            )
            for b in range(3)
        ]
    )
    fast = mixture(topk_gates(logits, 2), pool)
    torch.testing.assert_close(fast, slow, atol=1e-14, rtol=0)
    probe = randn(*fast.shape, seed=2)
    for ours, theirs in zip(
        *(torch.autograd.grad((form * probe).sum(), (logits, pool)) for form in (fast, slow)), strict=True
    ):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours, theirs, atol=1e-13, rtol=0)


def test_mixture_is_the_weighted_sum_of_experts():
    weights, pool = topk_gates(randn(3, 2, 5), 2), randn(2, 5, 4, 7, seed=1)
    mixed = mixture(weights, pool)
    for image in range(3):
        for layer in range(2):
            expected = sum(weights[image, layer, expert] * pool[layer, expert] for expert in range(5))
            torch.testing.assert_close(mixed[image, layer], expected, atol=1e-14, rtol=0)


def test_balance_equals_its_formula_and_keeps_its_bounds():
    alpha, layers, experts = 0.01, 4, 8
    torch.testing.assert_close(float(balance_loss(randn(6, 4, 8))), slow_balance(randn(6, 4, 8)))
    uniform = torch.zeros(6, layers, experts)
    assert float(alpha * balance_loss(uniform)) == pytest.approx(alpha * layers)
    collapsed = uniform.clone()
    collapsed[..., 3] = 1e4
    assert float(alpha * balance_loss(collapsed)) == pytest.approx(alpha * layers * experts)
    # Every image certain of an expert, but each of another one: balanced over the batch.
    spread = 1e4 * torch.eye(experts)[:, None].expand(-1, layers, -1)
    assert float(alpha * balance_loss(spread)) == pytest.approx(alpha * layers)


def test_decouple_equals_its_formula_and_vanishes_on_orthogonal_experts():
    pool = randn(3, 5, 4, 9)
    torch.testing.assert_close(float(decouple_loss(pool)), slow_decouple(pool))
    basis = torch.linalg.qr(randn(9, 9)).Q[:5]
    orthogonal = (
        basis[None, :, None] * torch.tensor([0.5, 1.0, 2.5], dtype=torch.float64)[None, None, :, None]
    )
    assert float(decouple_loss(orthogonal)) == pytest.approx(0, abs=1e-24)
    same = basis[:1].expand(5, -1)[None, :, None]
    assert float(decouple_loss(same)) == pytest.approx(5 * 4)


def test_routers_are_independent_two_layer_perceptrons():
    router = Router((2, 3), 6, 10, 4).double()
    x = randn(5, 2, 3, 6).requires_grad_()
    logits = router(x)
    probe = randn(*logits.shape, seed=1)
    (of_x,) = torch.autograd.grad((logits * probe).sum(), x)
    for state in range(2):
        for layer in range(3):
            linear = torch.nn.Sequential(
                torch.nn.Linear(6, 10), torch.nn.ReLU(), torch.nn.Linear(10, 4)
            ).double()
            linear[0].weight.data = router.first[state, layer].T
            linear[0].bias.data = router.first_bias[state, layer]
            linear[2].weight.data = router.second[state, layer].T
            linear[2].bias.data = router.second_bias[state, layer]
            own = linear(x[:, state, layer])
            torch.testing.assert_close(logits[:, state, layer], own, atol=1e-13, rtol=0)
            (expected,) = torch.autograd.grad((own * probe[:, state, layer]).sum(), x)
            torch.testing.assert_close(of_x[:, state, layer], expected[:, state, layer], atol=1e-13, rtol=0)


def test_a_seeded_generator_makes_the_same_router():
    first, second = Router((1, 2), 6, 10, 4), Router((1, 2), 6, 10, 4)
    first.reset_parameters(torch.Generator().manual_seed(3))
    second.reset_parameters(torch.Generator().manual_seed(3))
    assert torch.equal(first.first, second.first) and torch.equal(first.second_bias, second.second_bias)
    assert first.first.abs().max() <= 6**-0.5 < 1.2 * first.first.abs().max()
