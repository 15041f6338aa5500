"""The pool of experts against a loop over experts, in value and gradient, and what it promises."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zsad.errors import ConfigError
from zsad.nn.pool_experts import ExpertPool


def pool_of(**settings) -> ExpertPool:
    settings = {"rank": 3, "alpha": 5.0, **settings}
    generator = torch.Generator().manual_seed(3)
    pool = ExpertPool(10, 7, **settings).double()
    with torch.no_grad():
        for parameter in pool.parameters():
            parameter.normal_(generator=generator)
    return pool


def inputs(layers: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(2, layers, 9, 10, generator=generator, dtype=torch.float64)
    projection = torch.randn(10, 7, generator=generator, dtype=torch.float64)
    return x, projection


def slow(pool: ExpertPool, x: Tensor, projection: Tensor) -> Tensor:
    """Token by token: softmax over all experts, the k largest of it, divided by their sum, experts one by one."""
    rows = []
    for image in range(x.shape[0]):
        for layer in range(x.shape[1]):
            for token in x[image, layer]:
                pi = (pool.router[0] @ token).softmax(-1)
                chosen = sorted(range(len(pi)), key=lambda e: -float(pi[e].detach()))[: pool.top_k]
                total = sum(pi[e] for e in chosen)
                out, factor = torch.zeros(7, dtype=x.dtype), 0
                for e in chosen:
                    if e < pool.frozen:
                        value = token @ projection
                    elif e < pool.frozen + pool.learnable:
                        i = e - pool.frozen
                        value = pool.scale * (pool.down[i] @ token @ pool.up[i]) + token @ projection
                    else:
                        continue
                    out = out + pi[e] / total * value
                    factor = factor + pi[e] / total
                rows.append(out / factor if pool.keep_length else out)
    return torch.stack(rows).view(*x.shape[:-1], 7)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"zero": 0, "top_k": 1},
        {"frozen": 0, "zero": 2, "top_k": 3},
        {"learnable": 2, "top_k": 4},
        {"zero": 2, "top_k": 3, "keep_length": True},
    ],
)
def test_rank_space_equals_the_loop_over_experts_in_value_and_gradient(settings):
    pool, (x, projection) = pool_of(**settings), inputs()
    assert pool.scale == 5 / 3
    weight = torch.randn(2, 2, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = []
    for run in (
        lambda: pool(x, pool.gates(pool.route(x)), base=x @ projection),
        lambda: slow(pool, x, projection),
    ):
        pool.zero_grad()
        result = run()
        (result * weight).sum().backward()
        found.append([result.detach(), *(parameter.grad.clone() for parameter in pool.parameters())])
    for fast, expected in zip(*found, strict=True):
        torch.testing.assert_close(fast, expected, atol=1e-10, rtol=1e-10)
        assert expected.abs().sum() > 0


def test_fresh_pool_keeps_directions_whatever_the_routing():
    pool, (x, projection) = pool_of(), inputs()
    with torch.no_grad():
        pool.up.zero_()
        for seed in range(3):
            pool.router.normal_(std=10, generator=torch.Generator().manual_seed(seed))
            base = x @ projection
            mixed = pool(x, pool.gates(pool.route(x)), base=base)
            cosine = torch.nn.functional.cosine_similarity(mixed, base, dim=-1)
            torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_fresh_pool_that_keeps_length_changes_nothing_whatever_the_routing():
    pool, (x, projection) = pool_of(keep_length=True), inputs()
    with torch.no_grad():
        pool.up.zero_()
        for scale in (1.0, 1e4):
            pool.router.normal_(std=scale, generator=torch.Generator().manual_seed(1))
            base = x @ projection
            torch.testing.assert_close(pool(x, pool.gates(pool.route(x)), base=base), base)


def test_frozen_and_zero_pair_only_shortens():
    pool, (x, projection) = pool_of(), inputs()
    gates = torch.zeros(2, 2, 9, 6, dtype=torch.float64)
    gates[..., 0], gates[..., -1] = 0.3, 0.7
    torch.testing.assert_close(pool(x, gates, base=x @ projection), 0.3 * (x @ projection))


def test_a_router_certain_of_the_zero_expert_leaves_direction_and_gradients():
    pool, (x, projection) = pool_of().float(), [tensor.float() for tensor in inputs()]
    with torch.no_grad():
        pool.up.zero_()
        pool.router.zero_()
        pool.router[0, -1] = 1e4 * x[0, 0, 0]
    gates = pool.gates(pool.route(x))
    assert gates[0, 0, 0, -1] == 1
    mixed = pool(x, gates, base=x @ projection)
    unit = torch.nn.functional.normalize(mixed, dim=-1)
    torch.testing.assert_close(unit, torch.nn.functional.normalize(x @ projection, dim=-1))
    unit.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in pool.parameters())


def test_gates_have_k_weights_and_the_sum_one():
    pool, (x, _) = pool_of(top_k=3), inputs()
    gates = pool.gates(pool.route(x))
    assert ((gates > 0).sum(-1) == 3).all()
    torch.testing.assert_close(gates.sum(-1), torch.ones(2, 2, 9, dtype=torch.float64))


def test_labels_name_every_expert():
    assert pool_of().labels == ("frozen", "learnable 1", "learnable 2", "learnable 3", "learnable 4", "zero")
    assert pool_of(learnable=1, zero=2, top_k=3).labels == ("frozen", "learnable 1", "zero 1", "zero 2")


def test_draws_are_reproducible_and_updates_start_at_zero():
    pool, other = pool_of(), pool_of(zero=1)
    for drawn in (pool, other):
        drawn.reset_parameters(torch.Generator().manual_seed(8))
    assert all(torch.equal(a, b) for a, b in zip(pool.parameters(), other.parameters(), strict=True))
    assert not pool.up.any() and 0.01 < float(pool.router.detach().std()) < 0.03


def test_a_pool_of_the_default_size_has_63_488_parameters():
    pool = ExpertPool(1024, 768)
    assert sum(parameter.numel() for parameter in pool.parameters()) == 63_488


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"top_k": 7}, "top_k = 7 exceeds the pool's 6 experts"),
        ({"top_k": 1}, "nothing but the 1 zero experts.*at least 2"),
        ({"zero": 2, "top_k": 2}, "at least 3"),
        ({"rank": 8}, "rank 8 exceeds the width 7"),
    ],
)
def test_impossible_pools_are_refused_in_one_line(settings, words):
    with pytest.raises(ConfigError, match=words) as caught:
        ExpertPool(10, 7, **settings)
    assert "\n" not in str(caught.value)
