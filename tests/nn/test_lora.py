"""The mixture of low-rank experts in rank space against its published dense form, and what its losses must give."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from zsad.errors import ConfigError
from zsad.nn import lora
from zsad.nn.lora import LoRAMixture, etf_loss, expert_gram, imbalance_loss, orthonormal_blocks


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(*, width: int = 12, start: float = 0.5, **settings) -> LoRAMixture:
    """A mixture in float64 whose router and B are not 0."""
    layer = LoRAMixture(width, **{"experts": 3, "rank": 2, "dropout": 0.0, **settings}).double()
    layer.reset_parameters(torch.Generator().manual_seed(1))
    with torch.no_grad():
        layer.up.copy_(start * randn(*layer.up.shape, seed=2))
        layer.router.copy_(randn(*layer.router.shape, seed=3))
    return layer


def slow_mixture(layer: LoRAMixture, x: torch.Tensor, *, keep: torch.Tensor | None = None):
    """Every expert's output in full width, one after the other: (tokens, stacked outputs (T, E, D), probabilities)."""
    probabilities = (x @ layer.router.T).softmax(-1)
    top, chosen = probabilities.topk(layer.top_k, dim=-1)
    weights = top / top.sum(-1, keepdim=True)
    read = x if keep is None else x * keep / (1 - layer.dropout)
    outputs = torch.stack(
        [layer.scale * ((read @ a.T) @ b) for a, b in zip(layer.down, layer.up, strict=True)], 1
    )
    picked = outputs.gather(1, chosen.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
    y = (weights.unsqueeze(-1) * picked).sum(1)
    y = y * x.norm(dim=-1, keepdim=True) / (y.norm(dim=-1, keepdim=True) + layer.norm_floor)
    return layer.blend * y + (1 - layer.blend) * x, outputs, probabilities


def slow_etf(outputs: torch.Tensor) -> torch.Tensor:
    unit = F.normalize(outputs, dim=-1, eps=1e-6)
    experts = unit.shape[1]
    target = torch.full((experts, experts), -1 / (experts - 1), dtype=unit.dtype)
    target[range(experts), range(experts)] = 1
    return (unit @ unit.transpose(1, 2) - target).square().mean()


def slow_imbalance(probabilities: torch.Tensor) -> torch.Tensor:
    mass = probabilities.sum(0)
    return (mass.std(unbiased=True) / mass.mean()) ** 2


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"orthogonal": False},
        {"experts": 5, "top_k": 3, "width": 13},
        {"top_k": 3, "blend": 1.0, "alpha": 3.0},
        {"experts": 2, "top_k": 1, "norm_floor": 1.0},
        {"dropout": 0.3},
        {"dropout": 0.3, "orthogonal": False},
    ],
)
def test_equals_the_dense_form_in_value_and_gradient(settings, monkeypatch):
    layer = build(**settings).train()
    width = layer.up.shape[-1]
    x = randn(2, 7, width, seed=4).requires_grad_()
    keep = None
    if layer.dropout:
        keep = torch.rand(14, width, generator=torch.Generator().manual_seed(5)) > layer.dropout
        places = (~keep).flatten().nonzero().flatten()
        monkeypatch.setattr(lora, "_dropped", lambda *_: places)
    routed = layer(x)
    tokens, outputs, probabilities = slow_mixture(layer, x.flatten(0, 1), keep=keep)
    torch.testing.assert_close(routed.tokens.flatten(0, 1), tokens, atol=1e-12, rtol=0)
    torch.testing.assert_close(routed.gram, outputs @ outputs.transpose(1, 2), atol=1e-11, rtol=0)
    probe = randn(*tokens.shape, seed=6)
    fast = (routed.tokens.flatten(0, 1) * probe).sum() + 3 * etf_loss(routed.gram)
    slow = (tokens * probe).sum() + 3 * slow_etf(outputs)
    fast, slow = fast + 2 * imbalance_loss(routed.logits), slow + 2 * slow_imbalance(probabilities)
    torch.testing.assert_close(fast, slow, atol=1e-11, rtol=0)
    inputs = [x, *layer.parameters()]
    ours, theirs = (torch.autograd.grad(form, inputs, retain_graph=True) for form in (fast, slow))
    for our, their in zip(ours, theirs, strict=True):
        assert their.abs().max() > 0
        torch.testing.assert_close(our, their, atol=1e-10, rtol=1e-10)


def test_first_layers_take_tokens_without_gradient():
    layer = build().train()
    x = randn(5, 12, seed=4)
    grads = []
    for tokens in (layer(x).tokens, slow_mixture(layer, x)[0]):
        grads.append(torch.autograd.grad((tokens * randn(5, 12, seed=6)).sum(), list(layer.parameters())))
    for our, their in zip(*grads, strict=True):
        torch.testing.assert_close(our, their, atol=1e-12, rtol=0)


def test_single_precision_keeps_the_length_of_outputs_that_nearly_cancel():
    """||y||^2 comes from the Gram matrix: where experts oppose each other, it is a small difference."""
    layer = build(width=64, experts=2, rank=4, norm_floor=1e-6)
    with torch.no_grad():
        layer.router.zero_()
        layer.down[1] = layer.down[0]
        layer.up[1] = -0.99 * layer.up[0]
    x = randn(20, 64, seed=4)
    exact = slow_mixture(layer, x)[0]
    torch.testing.assert_close(layer.float()(x.float()).tokens.double(), exact, atol=2e-3, rtol=1e-3)


def test_untrained_experts_only_scale_the_stream_by_one_minus_lambda():
    x = randn(6, 16).float()
    for settings in ({}, {"router_std": 0.5}, {"orthogonal": False, "dropout": 0.5}):
        layer = LoRAMixture(16, rank=2, **settings).train()
        torch.testing.assert_close(layer(x).tokens, 0.9 * x)


def test_gradient_at_the_start_is_that_of_the_norm_match_and_the_floor_tames_it():
    x = randn(6, 16)
    sizes = []
    for floor in (1e-6, 1.0):
        layer = LoRAMixture(16, rank=2, norm_floor=floor, dropout=0.0).double()
        layer.reset_parameters(torch.Generator().manual_seed(0))
        layer(x).tokens.square().sum().backward()
        assert torch.isfinite(layer.up.grad).all() and (layer.router.grad == 0).all()
        sizes.append(float(layer.up.grad.norm()))
    assert sizes[0] == pytest.approx(1e6 * sizes[1])


def test_exactly_k_experts_have_weight_and_the_others_rows_no_gradient():
    layer = build(experts=4, top_k=2)
    # One direction decides: the first two experts win for every token.
    with torch.no_grad():
        layer.router.zero_()
        layer.router[:, 0] = torch.tensor([4.0, 3.0, -1.0, -2.0])
    x = randn(9, 12).abs()
    gates = layer(x).weights
    assert ((gates != 0).sum(-1) == 2).all() and (gates[:, 2:] == 0).all()
    torch.testing.assert_close(gates.sum(-1), torch.ones(9, dtype=torch.float64))
    layer(x).tokens.square().sum().backward()
    assert (layer.router.grad[2:] == 0).all() and (layer.router.grad[:2] != 0).any()
    assert (layer.up.grad[2:] == 0).all() and (layer.up.grad[:2] != 0).any()
    layer(x).gram.sum().backward()
    assert (layer.up.grad[2:] != 0).any()  # the auxiliary loss sees all


@pytest.mark.parametrize(("experts", "rank", "width"), [(4, 8, 64), (3, 4, 17), (5, 3, 19), (1, 2, 6)])
def test_frozen_maps_are_orthonormal_each_on_features_of_its_own(experts, rank, width):
    maps = orthonormal_blocks(experts, rank, width, generator=torch.Generator().manual_seed(0)).double()
    gram = torch.einsum("nrd,msd->nmrs", maps, maps)
    expected = torch.einsum("nm,rs->nmrs", torch.eye(experts), torch.eye(rank)).double()
    torch.testing.assert_close(gram, expected, atol=1e-6, rtol=0)
    used = (maps != 0).any(1)
    assert (used.sum(0) == 1).all()
    assert used.sum(1).tolist() == [width // experts + (own < width % experts) for own in range(experts)]
    assert all(row.nonzero().flatten().diff().eq(1).all() for row in used)


def test_every_layer_draws_its_own_frozen_map_and_it_is_part_of_the_state():
    first, second = LoRAMixture(32), LoRAMixture(32)
    assert not torch.equal(first.down, second.down)
    assert {"down", "up", "router"} == set(first.state_dict())
    assert {name for name, _ in first.named_parameters()} == {"up", "router"}
    assert {name for name, _ in LoRAMixture(32, orthogonal=False).named_parameters()} == {
        "up",
        "router",
        "down",
    }
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.down, second.down)


@pytest.mark.parametrize("experts", [2, 3, 4, 7])
def test_etf_loss_of_nothing_of_equals_and_of_a_simplex(experts):
    assert float(etf_loss(torch.zeros(5, experts, experts))) == pytest.approx(1 / (experts - 1))
    equal = torch.full((5, experts, experts), 9.0)
    assert float(etf_loss(equal)) == pytest.approx(experts / (experts - 1))
    simplex = torch.eye(experts) - 1 / experts
    assert float(etf_loss((simplex @ simplex.T).expand(3, -1, -1))) == pytest.approx(0, abs=1e-12)


def test_etf_loss_at_the_start_has_a_finite_gradient():
    up = torch.zeros(4, 2, 8, requires_grad=True)
    etf_loss(expert_gram(randn(5, 4, 2).float(), up)).backward()
    assert (up.grad == 0).all()


def test_imbalance_is_the_squared_coefficient_of_variation():
    logits = randn(50, 4)
    expected = slow_imbalance(logits.softmax(-1))
    torch.testing.assert_close(imbalance_loss(logits), expected)
    ties = torch.zeros(50, 4, requires_grad=True)
    loss = imbalance_loss(ties)
    loss.backward()
    assert float(loss.detach()) == 0 and (ties.grad == 0).all()
    one_alone = torch.tensor([1e4, 0, 0, 0]).expand(50, -1)
    assert float(imbalance_loss(one_alone)) == pytest.approx(4)
    assert float(imbalance_loss(torch.zeros(3, 1))) == 0


def test_dropout_drops_its_share_anew_each_time_and_only_in_training():
    torch.manual_seed(0)
    places = [lora._dropped(400_000, 0.05, torch.device("cpu")) for _ in range(2)]
    for drawn in places:
        assert len(drawn) / 400_000 == pytest.approx(0.05, rel=0.03)
        assert (drawn.diff() > 0).all() and drawn[0] >= 0 and drawn[-1] < 400_000
        # Neighbours are dropped together no more often than by chance.
        assert (drawn.diff() == 1).double().mean() == pytest.approx(0.05, rel=0.1)
    assert not torch.equal(*(drawn[:100] for drawn in places))
    assert len(lora._dropped(7, 1.0, torch.device("cpu"))) == 7
    layer, x = build(dropout=0.5, width=30), randn(8, 30)
    assert torch.equal(layer.eval()(x).tokens, layer(x).tokens)
    assert not torch.equal(layer.train()(x).tokens, layer(x).tokens)


def test_dropout_keeps_the_mean_of_what_experts_give():
    layer, x = build(dropout=0.3, width=30, experts=2, rank=4).train(), randn(1, 30)
    torch.manual_seed(1)
    mean = layer(x.expand(40_000, -1)).gram
    exact = layer.eval()(x).gram
    # First moments through the inner product of different experts: their masks do not meet.
    torch.testing.assert_close(mean[:, 0, 1].mean(), exact[0, 0, 1], atol=0.05, rtol=0.05)


def test_mixed_precision_is_left_and_half_precision_comes_back():
    layer, x = build().float(), randn(5, 12).float()
    expected = layer(x).tokens
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x).tokens, expected)
    half = layer(x.bfloat16()).tokens
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=0.05, rtol=0.05)


def test_values_are_the_same_without_gradients():
    layer, x = build(), randn(5, 12)
    with torch.inference_mode():
        inferred = layer(x).tokens
    assert torch.equal(inferred, layer(x).tokens)


def test_a_seeded_generator_makes_the_same_start():
    layers = [LoRAMixture(16, rank=2, router_std=0.02, orthogonal=False) for _ in range(2)]
    for layer in layers:
        layer.reset_parameters(torch.Generator().manual_seed(3))
    assert torch.equal(layers[0].down, layers[1].down) and torch.equal(layers[0].router, layers[1].router)
    assert layers[0].down.abs().max() <= 16**-0.5 < 1.2 * layers[0].down.abs().max()
    assert 0.01 < layers[0].router.std() < 0.03


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"top_k": 5}, "top_k = 5 exceeds the 4 experts; lower it"),
        ({"rank": 65, "orthogonal": False}, "rank = 65 exceeds the width 64"),
        ({"rank": 17}, "rank = 17 exceeds the 16 features"),
    ],
)
def test_impossible_shapes_are_refused_at_once(settings, words):
    with pytest.raises(ConfigError, match=words):
        LoRAMixture(64, **settings)
