"""WMoE-CLIP against a slow reading of its ten equations, its identities at the start, every setting, its cost."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from zsad.clip.config import preset
from zsad.clip.model import CLIP
from zsad.clip.tokenizer import Tokenizer
from zsad.clip.weights import Backbone
from zsad.errors import ConfigError
from zsad.methods.base import ImageFeatures
from zsad.methods.registry import build, find
from zsad.methods.wmoeclip import WMoECLIP, WMoECLIPConfig
from zsad.nn.filters import render_map
from zsad.nn.losses import dice_loss, focal_loss

SMALL = {"context_tokens": 5, "tau": 0.2}


def method_on(backbone: Backbone, *, moved: bool = True, **settings) -> WMoECLIP:
    """With `moved`, every module has left its start, where it changes nothing."""
    method = build("wmoeclip", {**SMALL, **settings}, backbone)
    assert isinstance(method, WMoECLIP)
    generator = torch.Generator().manual_seed(11)
    method.reset_parameters(generator)
    with torch.no_grad():
        for name, parameter in sorted(method.named_parameters()):
            if name.startswith("prompts."):
                parameter.mul_(30)  # else all prompts look alike to a random tower
            elif moved and not name.startswith("clip."):
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise * (0.1 if name.startswith("vae") else 0.3))
    return method


def double(method: WMoECLIP, features: ImageFeatures) -> tuple[WMoECLIP, ImageFeatures]:
    return method.double(), ImageFeatures(features.patches.double(), features.cls.double(), features.grid)


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def slow_text(method: WMoECLIP, shift: torch.Tensor, tokenizer: Tokenizer) -> torch.Tensor:
    """Eq. 3 for one b (D_t,): the sentences written out, one at a time through the tower."""
    prompts, tower, rows = method.prompts, method.clip.text, []
    deep = None if prompts.deep is None else prompts.deep[0]
    word = tower.embed(torch.tensor(tokenizer.encode("damaged")[1:-1]))
    stop = tower.embed(torch.tensor(tokenizer.encode(".")[1:-1]))
    sos, eos = tower.embed(torch.tensor([[tokenizer.sos], [tokenizer.eos]]))
    every = method.config.shifted == "all"
    shared, normal, abnormal = (
        prompts.contexts[slot] + shift * (every or slot == "shared")
        for slot in ("shared", "normal", "abnormal")
    )
    for middle in ([normal], [abnormal, word]):
        sentence = torch.cat([sos, *middle, shared, stop, eos])
        end = torch.tensor([len(sentence) - 1])
        rows.append(tower(sentence[None], eos=end, deep_tokens=deep)[0])
    return torch.stack(rows)


def slow_reading(method: WMoECLIP, features: ImageFeatures, zs: torch.Tensor, tokenizer: Tokenizer):
    """Eqs. 1 to 8 image by image and layer by layer: logits (B, L, N), (B,), b (B, R, D_t), p and w (B, E)."""
    config, clip, outs = method.config, method.clip, []
    for image, cls in enumerate(features.cls):
        f = unit(clip.visual.ln_post(cls) @ clip.visual.proj)
        shifts = [method.vae.decode_out(F.relu(method.vae.decode_hidden(z))) for z in zs[image]]  # (2), (3)
        text = unit(torch.stack([slow_text(method, shift, tokenizer) for shift in shifts]).mean(0))
        grids, bands, refined = [], [], []
        for layer, tokens in enumerate(features.patches[image]):
            patches = unit(tokens @ method.projection[layer])
            side = features.grid[0]
            square = patches.view(side, side, -1).permute(2, 0, 1)
            a, b, c, d = (
                F.unfold(F.pad(square[None], (0, side % 2, 0, side % 2), mode="replicate"), 2, stride=2)
                .view(square.shape[0], 4, -1)
                .unbind(1)
            )
            low, lh, hl, hh = a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d  # (4)
            high = (lh + hl + hh) / 2  # (5)
            low = low / 2
            if config.bands == "normalised":
                low, high = ((x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt() for x in (low, high))
            band = high * method.refine.fusion.weight[layer, :, 0] + low  # (6)
            band = ((band - band.mean(0)) / (band.var(0, correction=0) + 1e-5).sqrt()).T
            attention = method.refine.attention
            q, k, v = text @ attention.query, band @ attention.key, band @ attention.value
            heads = [x.view(len(x), config.heads, -1).transpose(0, 1) for x in (q, k, v)]
            read = F.scaled_dot_product_attention(*heads).transpose(0, 1).reshape(2, -1) @ attention.output
            refined.append(unit(text + method.refine.gamma[layer] * read))  # (7)
            grids.append(patches @ (refined[-1][1] - refined[-1][0]) / config.tau)
            bands.append(patches)
        final = refined[-1]
        scores = method.enrich.router(torch.cat([f, final[1] - final[0]])).softmax(-1)
        weights = torch.zeros_like(scores)
        for expert in scores.topk(config.top_k).indices:
            weights[expert] = scores[expert]
        weights = weights / weights.sum()
        one_hot = torch.eye(config.experts, dtype=f.dtype)
        g = f + sum(
            weights[e] * method.enrich.pool(bands[-1][None], one_hot[e : e + 1])[0]
            for e in range(config.experts)
        )  # (8)
        image_logit = unit(g) @ (final[1] - final[0]) / config.image_tau
        outs.append((torch.stack(grids), image_logit, torch.stack(shifts), scores, weights))
    return [torch.stack(part) for part in zip(*outs, strict=True)]


def posterior(method: WMoECLIP, features: ImageFeatures) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    f = method.clip.visual.project(features.cls)
    hidden = F.relu(method.vae.hidden(f))
    return f, method.vae.mean(hidden), method.vae.log_variance(hidden)


@pytest.mark.parametrize("settings", [{}, {"shifted": "class", "bands": "published", "image_tau": 0.07}])
def test_output_equals_the_equations(backbone, pixels, settings):
    method = method_on(backbone, **settings)
    method, features = double(method, method.features(pixels))
    _, mean, _ = posterior(method, features)
    logits, image, _, _, weights = slow_reading(method, features, mean[:, None], backbone.tokenizer)
    output = method(features)
    torch.testing.assert_close(output.logits.flatten(2), logits, atol=1e-9, rtol=0)
    torch.testing.assert_close(output.routing["semantic"][:, 0], weights, atol=1e-12, rtol=0)
    maps = render_map(output.logits, method.map_spec).flatten(1)  # (9)
    top = maps.sort(dim=1, descending=True).values[:, : 40 * 40 // 100].mean(1)
    torch.testing.assert_close(output.score, (image.sigmoid() + top) / 2, atol=1e-6, rtol=0)


def test_losses_equal_the_equations(backbone, pixels, masks, labels):
    method = method_on(backbone)
    method, features = double(method, method.features(pixels))
    torch.manual_seed(3)
    terms = method.losses(features, masks, labels)
    torch.manual_seed(3)
    f, mean, log_variance = posterior(method, features)
    z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
    logits, image, shift, chances, weights = slow_reading(method, features, z[:, None], backbone.tokenizer)
    maps = F.interpolate(logits.sigmoid().view(3, 3, 5, 5), (40, 40), mode="bilinear")
    expected = {"dice": 0.0, "focal": 0.0}
    for layer in range(3):
        expected["focal"] += 4 / 3 * focal_loss(maps[:, layer], masks)
        for channel, mask in ((maps[:, layer], masks), (1 - maps[:, layer], 1 - masks)):
            expected["dice"] += 4 / 3 * dice_loss(channel, mask).mean()
    expected["classify"] = F.cross_entropy(torch.stack([0 * image, image], 1), labels.long())
    restored = shift[:, 0] @ method.clip.text.proj  # the toy's text tower is of another width
    expected["reconstruct"] = 4 * (unit(f) - restored).square().sum(1).mean()
    expected["kl"] = 0.01 * -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1).mean()
    shares = (weights > 0).double().mean(0) / 2
    expected["balance"] = 0.1 * 4 * (shares * chances.mean(0)).sum()
    assert terms.keys() == expected.keys()
    for name, term in terms.items():
        assert float(term.detach()) == pytest.approx(float(expected[name].detach()), abs=1e-6), name
    named = {name: own for name, own in method.named_parameters() if own.requires_grad}
    gradients = (
        torch.autograd.grad(sum(part.values()), list(named.values()), allow_unused=True)
        for part in (terms, expected)
    )
    for name, ours, theirs in zip(named, *gradients, strict=True):
        assert theirs is not None and theirs.abs().max() > 0, name
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("module", ["use_ctds", "use_wcma"])
def test_shift_and_refinement_start_as_the_identity(backbone, pixels, masks, labels, module):
    """Order of implementation: prompts and projections, then CTDS and WCMA."""
    before = {"use_ctds": module == "use_wcma", "use_wcma": False, "use_samoe": False}
    without = method_on(backbone, moved=False, **before)
    within = method_on(backbone, moved=False, **{**before, module: True})
    features = without.features(pixels)
    expected, output = without(features), within(features)
    torch.testing.assert_close(output.logits, expected.logits, atol=2e-5, rtol=0)
    torch.testing.assert_close(output.score, expected.score, atol=2e-6, rtol=0)
    terms, added = without.losses(features, masks, labels), within.losses(features, masks, labels)
    for name, term in terms.items():
        assert float(added[name].detach()) == pytest.approx(float(term.detach()), abs=2e-5), name
    assert (within.adapter_state().keys() - without.adapter_state().keys()) != set()


def test_learned_projections_start_as_clip_s_own(backbone, pixels):
    method = method_on(backbone, moved=False)
    features = method.features(pixels)
    assert all(torch.equal(matrix, backbone.clip.visual.proj) for matrix in method.projection)
    text = F.normalize(method.prompts(backbone.clip.text), dim=-1)
    tokens = F.normalize(features.patches @ backbone.clip.visual.proj, dim=-1)
    expected = tokens @ (text[1] - text[0]) / method.config.tau
    torch.testing.assert_close(method(features).logits.flatten(2), expected, atol=1e-4, rtol=0)


def test_a_trained_detector_is_deterministic_and_its_text_follows_the_image(backbone, pixels):
    method = method_on(backbone, use_wcma=False)
    features = method.features(pixels)
    torch.manual_seed(0)
    first, state = method(features), torch.get_rng_state()
    torch.manual_seed(1)
    again, other = method(features), method_on(backbone, use_wcma=False)(features)
    assert torch.equal(first.logits, again.logits) and torch.equal(first.score, again.score)
    torch.testing.assert_close(first.logits, other.logits, atol=1e-6, rtol=0)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        text = method._text(method.project_cls(features.cls), sampled=False)[0]
    assert text.shape == (3, 2, 24) and (text[0] - text[1]).abs().max() > 1e-4


def test_text_of_no_image_is_encoded_once_until_something_changes(backbone, pixels, monkeypatch):
    method = method_on(backbone, use_ctds=False)
    features, calls = method.features(pixels), []
    encode = method.prompts.encode
    monkeypatch.setattr(
        method.prompts, "encode", lambda *args, **named: calls.append(1) or encode(*args, **named)
    )
    with torch.inference_mode():
        first = method(features)
        assert torch.equal(method(features).logits, first.logits)
    assert len(calls) == 1
    with torch.no_grad():
        method.get_parameter("prompts.contexts.normal").add_(0.5)
        assert not torch.allclose(method(features).logits, first.logits)
    assert len(calls) == 2


def test_training_draws_from_the_global_generator_alone(backbone, pixels, masks, labels):
    method = method_on(backbone)
    features, found = method.features(pixels), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(method.losses(features, masks, labels)["focal"].detach())
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


SWITCHES = [
    {"value_value": True},
    {"map_order": "before_softmax"},
    {"map_order": "mean_logits"},
    {"class_tokens": 1},
    {"deep_sets": 0},
    {"deep_tokens": 2},
    {"use_ctds": False},
    {"use_wcma": False},
    {"use_samoe": False},
    {"use_ctds": False, "use_wcma": False, "use_samoe": False},
    {"heads": 2},
    {"experts": 3, "top_k": 3},
    {"top_k": 1},
    {"score": "map"},
    {"shifted": "class"},
    {"reconstruct_weight": 1.0},
    {"bands": "published"},
    {"image_tau": 0.1},
    {"kl_weight": 1.0},
    {"cls_norm": False},
    {"train_map_size": 20},
]


@pytest.mark.parametrize("settings", SWITCHES, ids=lambda settings: "-".join(map(str, settings.values())))
def test_every_setting_runs_trains_and_changes_something(backbone, pixels, masks, labels, settings):
    method, default = method_on(backbone, **settings), method_on(backbone)
    features = method.features(pixels)
    size = method.train_map_size
    small = F.interpolate(masks[None], size)[0]
    torch.manual_seed(0)
    terms = method.losses(features, small, labels)
    torch.stack(list(terms.values())).sum().backward()
    for name, parameter in method.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert reached == (not name.startswith("clip.")), name
    output = method(features)
    assert output.logits.shape == (3, len(method.config.layers), 5, 5)
    assert torch.isfinite(output.logits).all() and ((output.score >= 0) & (output.score <= 1)).all()
    torch.manual_seed(0)
    plain = default.losses(default.features(pixels), masks, labels)
    assert any(name not in terms or not torch.equal(plain[name], terms[name]) for name in plain)


@pytest.mark.parametrize(
    "settings",
    [
        {"top_share": 0.2},
        {"score": "global"},
        {"score": "map_and_global"},
        {"sigma": 1.0},
        {"smooth": "grid"},
    ],
)
def test_settings_of_the_score_change_it_and_nothing_else(backbone, pixels, settings):
    default, method = method_on(backbone), method_on(backbone, **settings)
    features = default.features(pixels)
    expected, output = default(features), method(features)
    assert torch.equal(expected.logits, output.logits)
    assert (expected.score - output.score).abs().min() > 1e-6
    torch.testing.assert_close(output.score, torch.stack(list(output.terms.values())).mean(0))


def test_the_global_probability_is_trained_and_the_score_where_it_has_no_part(
    backbone, pixels, masks, labels
):
    for score, part in (("map", "map"), ("map_and_global", "global"), ("top_and_global", "global")):
        method = method_on(backbone, score=score, use_ctds=False)
        features = method.features(pixels)
        wanted = F.binary_cross_entropy(method(features).terms[part], labels)
        torch.testing.assert_close(method.losses(features, masks, labels)["classify"], wanted)


def test_routing_is_the_image_s_with_two_weights_that_sum_to_one(backbone, pixels):
    output = method_on(backbone)(method_on(backbone).features(pixels))
    weights = output.routing["semantic"]
    assert weights.shape == (3, 1, 4) and ((weights > 0).sum(-1) == 2).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 1))
    method = method_on(backbone)
    assert method.expert_embeddings()["semantic"].shape == (1, 4, 24)
    assert method.token_routing(method.features(pixels)) == {}
    assert method_on(backbone, use_samoe=False)(method.features(pixels)).routing is None


def test_images_of_a_batch_do_not_influence_each_other(backbone, pixels):
    method = method_on(backbone)
    whole, alone = method(method.features(pixels)), method(method.features(pixels[1:2]))
    torch.testing.assert_close(whole.logits[1:2], alone.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(whole.score[1:2], alone.score, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def trained(towers) -> tuple[WMoECLIP, ImageFeatures, torch.Tensor, list[float]]:
    """After sixty steps on eight images: method, features, masks, the losses of all steps."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(8, 3, 40, 40, generator=generator)
    masks, labels = torch.zeros(8, 40, 40), torch.tensor([1.0, 0.0] * 4)
    for index in range(0, 8, 2):
        row, column = 8 * (index % 4), 8 * (index // 2)
        masks[index, row : row + 16, column : column + 8] = 1
        pixels[index, :, row : row + 16, column : column + 8] += 4
    method = build("wmoeclip", SMALL | {"tau": 0.07}, towers)
    method.train().reset_parameters(generator)
    # To the random tower all images look alike.
    features = replace(method.features(pixels), cls=torch.randn(8, 32, generator=generator))
    groups = [
        {"params": [parameter], "lr": 1e-2 * method.rate_of(name)}
        for name, parameter in method.named_parameters()
        if parameter.requires_grad
    ]
    optimiser, history = torch.optim.Adam(groups, betas=(0.5, 0.999)), []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(60):
            loss = torch.stack(list(method.losses(features, masks, labels).values())).sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            history.append(float(loss.detach()))
    return method.eval(), features, masks, history


@torch.no_grad()
def test_overfits_eight_images(trained):
    method, features, masks, history = trained
    output, anomalous = method(features), masks.amax(dim=(1, 2)) == 1
    maps = render_map(output.logits, method.map_spec, smooth=False)
    assert history[-1] < 0.65 * history[0]
    assert output.score[anomalous].min() > output.score[~anomalous].max()
    assert maps[masks == 1].mean() > maps[masks == 0].mean() + 0.3


@torch.no_grad()
def test_text_learns_to_follow_the_image(trained):
    """A mean over dimensions in the reconstruction ends with a divergence of 0 and the same text for all."""
    method, features, _, _ = trained
    text, posterior, shift = method._text(method.project_cls(features.cls), sampled=False)
    assert posterior.kl() > 1
    text = F.normalize(text, dim=-1)
    assert F.cosine_similarity(text, text.roll(1, dims=0), dim=-1).mean() < 0.99
    assert shift.var(dim=0).sum() > 0.05 * shift.square().sum(dim=1).mean()


@torch.no_grad()
def test_high_bands_and_experts_learn_to_count(trained):
    method, features, _, _ = trained
    expected = method._compare(features, sampled=False)
    low = deepcopy(method)
    low.refine.fusion.weight.zero_()
    without = low._compare(features, sampled=False)
    assert (without.logits - expected.logits).norm() > 0.05 * expected.logits.norm()
    tokens = F.normalize(features.patches[:, -1] @ method.projection[-1], dim=-1)
    said = torch.stack([method.enrich.pool(tokens, gates.expand(8, -1)) for gates in torch.eye(4)])
    alike = F.cosine_similarity(said[:, None], said[None], dim=-1).mean(dim=-1)
    assert alike[~torch.eye(4, dtype=torch.bool)].max() < 0.9
    low.enrich = None
    assert (low._compare(features, sampled=False).image - without.image).norm() > 0.05 * without.image.norm()


def large(device: str = "meta", **settings) -> WMoECLIP:
    with torch.device(device):
        own = preset("ViT-L/14@336")
        return build(
            "wmoeclip", settings or None, Backbone(CLIP(own.config), Tokenizer(), own, "meta", own.name)
        )


def test_trainable_count_of_the_design_is_9_7_million():
    method = large()
    assert method.config == WMoECLIPConfig()
    count = sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad)
    projections, autoencoder, text = (
        4 * 1024 * 768,
        5 * (768 * 768 + 768),
        2 * 12 * 768 + 2 * 768 + 8 * 4 * 768,
    )
    refinement = 4 * 768 * 768 + 4 * 768 + 4
    expert = 768 + 768 * 192 + 192 + 192 * 768 + 768
    assert count == projections + autoencoder + refinement + 4 * expert + 1536 * 4 + 4 + text == 9_698_312
    assert count == find("wmoeclip").parameters


def test_everything_behind_the_towers_costs_a_twentieth_of_the_image_tower_at_most(monkeypatch):
    method = large()
    text = torch.zeros(1, 2, 768, device="meta")
    monkeypatch.setattr(method, "_text", lambda *_, **__: (text, None, None))
    pixels = torch.zeros(1, 3, 518, 518, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as tower:
        features = method.features(pixels)
    with torch.no_grad(), FlopCounterMode(display=False) as rest:
        read = method._compare(features, sampled=False)
    assert read.logits.shape == (1, 4, 37, 37)
    assert tower.get_total_flops() > 9e11
    assert rest.get_total_flops() < 0.012 * tower.get_total_flops()


def test_rates_are_those_of_the_three_groups():
    method = large()
    rates = {
        name: method.rate_of(name) for name, _ in method.named_parameters() if not name.startswith("clip.")
    }
    slow = {".".join(name.split(".")[:2]) for name, rate in rates.items() if rate == 0.1}
    assert slow == {"projection", "refine.attention", "enrich.pool"}
    fast = {name.split(".")[0] for name, rate in rates.items() if rate == 1.0}
    assert fast == {"prompts", "vae", "refine", "enrich"}
    assert rates["refine.gamma"] == rates["refine.fusion.weight"] == rates["enrich.router.weight"] == 1.0
    assert large(linear_rate=0.5).rate_of("projection") == 0.5


def test_settings_of_cards_that_name_the_reconstruction_mean_what_they_did(backbone):
    then = {"shifted": "class", "bands": "published", "image_tau": 0.07}
    for form in ("mean", "sum"):
        method = build("wmoeclip", {**SMALL, "reconstruct_over": form, "ctds_test": "mean"}, backbone)
        assert method.config == build("wmoeclip", {**SMALL, **then}, backbone).config
    with pytest.raises(ConfigError, match="unknown setting 'reconstruct_over'"):
        build("wmoeclip", {"reconstruct_over": "median"}, backbone)


def test_state_round_trip_is_exact_and_leaves_noise_and_backbone_out(backbone, pixels):
    first, second = (method_on(backbone, moved=moved) for moved in (True, False))
    features = first.features(pixels)
    assert not torch.equal(first(features).logits, second(features).logits)
    state = {name: tensor.clone() for name, tensor in first.adapter_state().items()}
    assert not any(name.startswith(("clip", "_")) for name in state)
    second.load_adapter(state)
    assert torch.equal(first(features).logits, second(features).logits)


def test_runs_in_bfloat16_and_from_a_half_precision_cache(backbone, pixels):
    method = method_on(backbone)
    features = method.features(pixels)
    expected = method(features).logits
    half = ImageFeatures(features.patches.half(), features.cls.half(), features.grid)
    torch.testing.assert_close(method(half).logits, expected, atol=0.05, rtol=0.05)
    assert method(half).logits.dtype == torch.float32
    method = method.to(torch.bfloat16)
    output = method(method.features(pixels.bfloat16()))
    assert output.logits.dtype == output.score.dtype == torch.bfloat16
    assert (output.logits.float() - expected).abs().mean() < 0.1 * expected.abs().mean()


def test_mixed_precision_ends_with_projections_and_text(backbone, pixels, masks, labels):
    method = method_on(backbone)
    features = method.features(pixels)
    torch.manual_seed(0)
    plain = method.losses(features, masks, labels)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = method.losses(features, masks, labels)
    for name, term in plain.items():
        assert mixed[name].dtype == torch.float32
        assert float(mixed[name].detach()) == pytest.approx(float(term.detach()), rel=0.1, abs=1e-3), name


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"top_k": 5}, "top_k = 5 exceeds the 4 experts"),
        ({"heads": 5}, "heads = 5 do not divide the width 24"),
        ({"deep_tokens": 6}, "deep_tokens = 6 would replace class tokens"),
        ({"deep_sets": 3}, "3 sets of deep text tokens"),
        ({"context_tokens": 80}, "does not fit the text tower's 77"),
        ({"top_share": 0}, "top_share = 0"),
        ({"ctds_test": "mode"}, "ctds_test = 'mode' is no longer a setting .* always takes 'mean'"),
        ({"use_ctd": True}, "did you mean 'use_ctds'"),
    ],
)
def test_impossible_settings_are_refused_at_once_in_one_line(backbone, settings, words):
    with pytest.raises(ConfigError, match=words) as caught:
        build("wmoeclip", {**SMALL, **settings}, backbone)
    assert "\n" not in str(caught.value)


def test_says_that_it_is_re_designed_and_describes_every_setting():
    assert all(field.description for field in WMoECLIPConfig.model_fields.values())
    assert find("wmoeclip").provenance == "re-designed from the abstract"
    assert WMoECLIPConfig.model_validate_json(WMoECLIPConfig().model_dump_json()) == WMoECLIPConfig()
