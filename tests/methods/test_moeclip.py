"""MoECLIP against a slow reading of its paper, every setting, and what training needs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from zsad.clip.config import preset
from zsad.clip.model import CLIP
from zsad.clip.tokenizer import Tokenizer
from zsad.clip.weights import Backbone
from zsad.datasets.catalog import bundled
from zsad.errors import CheckpointError, ConfigError
from zsad.methods.base import ImageFeatures
from zsad.methods.moeclip import DOMAINS, MoECLIP, MoECLIPConfig
from zsad.methods.registry import METHODS, build
from zsad.nn.filters import render_map
from zsad.prompts import _class_names, class_name, published_prompts
from zsad.types import Sample

SMALL = {"rank": 3, "windows": (1, 3), "norm_floor": 1e-3}
WORDS = ("bottle", "metal nut", "bottle")


def method_on(backbone: Backbone, **settings) -> MoECLIP:
    """An adapter in evaluation mode whose experts and routers are not 0."""
    method = build("moeclip", {**SMALL, **settings}, backbone).eval()
    generator = torch.Generator().manual_seed(11)
    method.reset_parameters(generator)
    with torch.no_grad():
        for mixture in method.experts:
            mixture.up.normal_(generator=generator)
            mixture.router.normal_(generator=generator)
    return method


def seen_by(method: MoECLIP, pixels: torch.Tensor, words: tuple[str, ...] | None = WORDS) -> ImageFeatures:
    features = method.features(pixels)
    features.object_names = words
    return features


def slow_layer(mixture, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One image's tokens (1 + N, D_x), token by token and expert by expert, and their weights (1 + N, E)."""
    rows, gates = [], []
    for token in x:
        probabilities = (mixture.router @ token).softmax(0)
        top, chosen = probabilities.topk(mixture.top_k)
        y = sum(
            weight * mixture.scale * mixture.up[n].T @ (mixture.down[n] @ token)
            for weight, n in zip(top / top.sum(), chosen.tolist(), strict=True)
        )
        rows.append(0.1 * y * token.norm() / (y.norm() + mixture.norm_floor) + 0.9 * token)
        gates.append(torch.zeros_like(probabilities).scatter(0, chosen, top / top.sum()))
    return torch.stack(rows), torch.stack(gates)


def slow_stream(method: MoECLIP, pixels: torch.Tensor):
    """Adapted streams (B, 1 + N, D_x) of the tapped layers, the experts' weights (B, 1 + N, E), and the grid."""
    visual, layers = method.clip.visual, method.config.layers
    x, grid = visual.embed(pixels, interpolation="bicubic", antialias=True)
    taps, gates = [], []
    for number, block in enumerate(visual.blocks, start=1):
        x = block(x)
        if number in layers:
            mixture = method.experts[layers.index(number)]
            x, weights = map(torch.stack, zip(*(slow_layer(mixture, image) for image in x), strict=True))
            taps.append(x)
            gates.append(weights)
    return taps, gates, grid


def slow_text(method: MoECLIP, backbone: Backbone, word: str) -> torch.Tensor:
    """(2, D), sentence by sentence, at full length."""
    normal = [f"{lead}{word}." for lead in ("", "a ", "the ")]
    abnormal = [f"a damaged {word}.", f"a broken {word}."]
    abnormal += [f"a {word} with {what}." for what in ("flaw", "defect", "damage")]
    tower, tokenizer, states = method.clip.text, backbone.tokenizer, []
    for phrases in (normal, abnormal):
        features = []
        for sentence in (*phrases, *(f"a photo of {phrase}" for phrase in phrases)):
            ids = torch.tensor([tokenizer.encode(sentence)])
            raw = tower.encode(ids, eos=tokenizer.eos, project=False)[0]
            features.append(F.normalize(F.leaky_relu(method.text_adapter @ raw), dim=0))
        states.append(F.normalize(torch.stack(features).mean(0), dim=0))
    return torch.stack(states)


def slow_pass(method: MoECLIP, backbone: Backbone, pixels: torch.Tensor, words):
    """Cosines (B, 2, maps, h, w) of patches and (B, 2) of the image feature, block by block."""
    visual = method.clip.visual
    streams, _, (h, w) = slow_stream(method, pixels)
    taps = [stream[:, 1:] for stream in streams]
    text = torch.stack([slow_text(method, backbone, word) for word in words])
    maps = []
    for index, tap in enumerate(taps):
        image = tap.transpose(1, 2).unflatten(-1, (h, w))
        for size in method.config.windows:
            pooled = F.unfold(image, size, padding=size // 2).unflatten(1, (-1, size * size)).mean(2)
            tokens = visual.ln_post(pooled.transpose(1, 2)) @ method.projectors[index, 0].T
            maps.append(torch.einsum("bnd,bsd->bsn", F.normalize(tokens, dim=-1), text).unflatten(-1, (h, w)))
    head = method.head
    normed = head.norm(visual.ln_post(taps[-1])).transpose(1, 2)
    mixed = F.conv1d(normed, head.mix[:, :, 0], padding="same", groups=normed.shape[1])
    tokens = F.normalize(F.gelu(mixed).transpose(1, 2) @ head.project.T, dim=-1)
    return torch.stack(maps, dim=2), torch.einsum("bd,bsd->bs", tokens.mean(1), text)


def test_output_equals_the_slow_reading(backbone, pixels):
    method, pixels = method_on(backbone).double(), pixels.double()
    output = method(seen_by(method, pixels))
    maps, cosines = slow_pass(method, backbone, pixels, WORDS)
    torch.testing.assert_close(output.logits, (maps[:, 1] - maps[:, 0]) / 0.25, atol=1e-8, rtol=0)
    torch.testing.assert_close(output.terms["global"], (cosines[:, 1] + 1) / 2, atol=1e-9, rtol=0)
    highest = render_map(output.logits, method.map_spec).amax((1, 2))
    torch.testing.assert_close(output.terms["map"], highest)
    torch.testing.assert_close(output.score, (highest + (cosines[:, 1] + 1) / 2) / 2, atol=1e-9, rtol=0)


def test_pixels_are_ranked_as_the_papers_sum_ranks_them(backbone, pixels):
    method, pixels = method_on(backbone).double(), pixels.double()
    output = method(seen_by(method, pixels))
    maps, _ = slow_pass(method, backbone, pixels, WORDS)
    paper = ((100 * maps[:, 1] + 1 - 100 * maps[:, 0]) / 2).sum(1)
    paper = F.interpolate(paper[:, None], size=(40, 40), mode="bilinear", align_corners=True)[:, 0]
    ours = render_map(output.logits, method.map_spec, smooth=False)
    # A sigmoid of a straight line of the sum.
    rows = torch.stack([paper.flatten(), torch.ones(paper.numel())])
    fit = torch.linalg.lstsq(rows.T, torch.logit(ours).flatten()[:, None]).solution
    torch.testing.assert_close((rows.T @ fit)[:, 0], torch.logit(ours).flatten(), atol=1e-5, rtol=0)
    assert fit[0] > 0


@pytest.mark.parametrize("domain", ["industrial", "medical"])
def test_released_recipe_equals_the_released_arithmetic_to_the_blurred_map(backbone, pixels, domain):
    """Kernels of 7 x 7 and 9 x 9 patches over every map, mirrored at the border without its sample."""
    method, pixels = method_on(backbone, recipe="released", domain=domain).double(), pixels.double()
    features = seen_by(method, pixels)
    streams, routed = method._adapt(features)
    slow, gates, _ = slow_stream(method, pixels)
    for own, weights, stream, gate in zip(streams, routed, slow, gates, strict=True):
        torch.testing.assert_close(own, stream, atol=1e-5, rtol=0)
        torch.testing.assert_close(weights.weights.view_as(gate), gate, atol=1e-5, rtol=0)
    maps, cosines = slow_pass(method, backbone, pixels, WORDS)
    paper = (100 * maps[:, 1] + 1 - 100 * maps[:, 0]) / 2
    sigma, side = (1.0, 7) if domain == "industrial" else (1.5, 9)
    line = torch.exp(-0.5 * ((torch.arange(side, dtype=torch.float64) - side // 2) / sigma) ** 2)
    kernel = (line / line.sum())[:, None] * (line / line.sum())
    padded = F.pad(paper.flatten(0, 1)[:, None], (side // 2,) * 4, mode="reflect")
    blurred = F.conv2d(padded, kernel[None, None])
    whole = F.interpolate(blurred, size=(40, 40), mode="bilinear", align_corners=True)[:, 0]
    whole = whole.unflatten(0, paper.shape[:2]).sum(1)
    output = method(features)
    ours = torch.logit(render_map(output.logits, method.map_spec)) * method.config.map_temperature
    torch.testing.assert_close(paper.shape[1] * (50 * ours + 0.5), whole, atol=1e-5, rtol=0)
    assert (method.config.score, output.terms.keys()) == (
        DOMAINS[domain]["score"],
        {"map", "global", "map_low"},
    )
    expected = {
        "industrial": (output.terms["map"] + (cosines[:, 1] + 1) / 2) / 2,
        "medical": output.terms["map"],
    }
    torch.testing.assert_close(output.score, expected[domain], atol=1e-9, rtol=0)


def test_losses_equal_the_paper(backbone, pixels, masks, labels):
    method, pixels = method_on(backbone).double(), pixels.double()
    terms = method.losses(seen_by(method, pixels), masks.double(), labels.double())
    maps, cosines = slow_pass(method, backbone, pixels, WORDS)
    dice = focal = 0.0
    for index in range(maps.shape[2]):
        up = F.interpolate(100 * maps[:, :, index], size=(40, 40), mode="bilinear", align_corners=True)
        normal, abnormal = up.softmax(1).unbind(1)
        for probability, mask in ((normal, 1 - masks), (abnormal, masks)):
            both = (probability * mask).sum((1, 2))
            dice += (1 - (2 * both + 1) / (probability.sum((1, 2)) + mask.sum((1, 2)) + 1)).mean()
        onehot = torch.stack([1 - masks, masks], 1).double().clamp(1e-5, 1 - 1e-5)
        hit = (onehot * torch.stack([normal, abnormal], 1)).sum(1) + 1e-5
        focal += (-((1 - hit) ** 2) * hit.log()).mean()
    assert float(terms["dice"].detach()) == pytest.approx(float(dice.detach()), abs=1e-5)
    assert float(terms["focal"].detach()) == pytest.approx(float(focal.detach()), abs=1e-5)
    expected = -cosines.log_softmax(1)[range(3), labels.long()].mean()
    assert float(terms["classify"].detach()) == pytest.approx(float(expected.detach()), abs=1e-9)
    assert terms.keys() == {"dice", "focal", "classify", "etf", "balance"}
    named = {name: own for name, own in method.named_parameters() if own.requires_grad}
    found = sum(terms[name] for name in ("dice", "focal", "classify"))
    gradients = (torch.autograd.grad(loss, list(named.values())) for loss in (found, dice + focal + expected))
    for name, ours, theirs in zip(named, *gradients, strict=True):
        assert theirs.abs().max() > 0, name
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4, msg=name)


def test_auxiliary_losses_are_summed_over_layers(backbone, pixels, masks, labels):
    method = build("moeclip", {**SMALL, "gate_init": "zero"}, backbone).eval()
    terms = method.losses(seen_by(method, pixels), masks, labels)
    # Untrained experts put out nothing: 1 / (E - 1) a layer; routers that say nothing are balanced.
    assert float(terms["etf"].detach()) == pytest.approx(0.01 * 3 / 3)
    assert float(terms["balance"].detach()) == pytest.approx(0, abs=1e-9)
    with torch.no_grad():
        for mixture in method.experts:
            mixture.router[0] = 1e4 * torch.sign(torch.randn(32))
    one_of_four = method.losses(seen_by(method, pixels), masks, labels)["balance"]
    assert 0 < float(one_of_four.detach()) <= 0.01 * 3 * 4


SWITCHES = [
    {"fofs": False},
    {"etf_weight": 0.0},
    {"balance_weight": 0.0},
    {"recipe": "released"},
    {"domain": "medical", "score": "map_and_global"},
    {"head": "linear"},
    {"windows": (1,)},
    {"windows": (3, 5)},
    {"top_k": 1},
    {"experts": 2, "rank": 5},
    {"norm_floor": 1.0},
    {"smooth": "grid_reflect", "score": "map_and_global"},
    {"blend": 0.5},
    {"alpha": 1.0},
    {"names": "object"},
    {"layers": (4,)},
    {"layers": (1, 3)},
    {"score": "map_and_global"},
    {"score": "global"},
    {"map_order": "after_softmax"},
    {"smooth": "map", "score": "map_and_global"},
    {"align_corners": False},
    {"positions": "bilinear"},
    {"train_map_size": 20},
    {"dropout": 0.5},
]


@pytest.mark.parametrize("settings", SWITCHES, ids=lambda settings: "-".join(map(str, settings.values())))
def test_every_setting_runs_trains_and_changes_something(backbone, pixels, settings):
    method = method_on(backbone, **settings).train()
    assert not method.clip.training
    masks = torch.zeros(3, *method.train_map_size)
    masks[0, 3:12, 3:12] = 1
    labels = torch.tensor([1.0, 0.0, 0.0])
    torch.manual_seed(0)
    terms = method.losses(seen_by(method, pixels), masks, labels)
    torch.stack([term for name, term in terms.items() if "raw" not in name]).sum().backward()
    for name, parameter in method.named_parameters():
        if name.startswith("clip."):
            assert parameter.grad is None and not parameter.requires_grad, name
        elif "router" not in name or settings.get("top_k") != 1 or method.config.balance_weight:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    output = method.eval()(seen_by(method, pixels))
    count = len(method.config.layers) * len(method.config.windows)
    assert output.logits.shape == (3, count, 5, 5)
    assert torch.isfinite(output.logits).all() and ((output.score >= 0) & (output.score <= 1)).all()
    default = method_on(backbone).train()
    torch.manual_seed(0)
    large = F.interpolate(masks[None], (40, 40))[0]
    plain = default.losses(seen_by(default, pixels), large, labels)
    assert any(not torch.equal(plain[name], terms[name]) for name in plain), "the setting had no effect"


def test_no_adapter_gradient_is_lost_behind_the_frozen_blocks(backbone, pixels, masks, labels):
    """The first layer's experts act through all later ones: a finite difference must see what autograd sees."""
    method, pixels = method_on(backbone, layers=(2, 4)).double(), pixels.double()
    features = seen_by(method, pixels)
    up = method.experts[0].up

    def loss() -> torch.Tensor:
        terms = method.losses(features, masks.double(), labels.double())
        return torch.stack(list(terms.values())).sum()

    [gradient] = torch.autograd.grad(loss(), [up])
    step = torch.randn(up.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.no_grad():
        size = 1e-6
        up.add_(size * step)
        above = loss()
        up.sub_(2 * size * step)
        below = loss()
    assert float((above - below) / (2 * size)) == pytest.approx(float((gradient * step).sum()), rel=1e-3)


def test_image_feature_is_of_the_last_layers_own_patches_whatever_the_windows(backbone, pixels):
    outputs = []
    for windows in ((1, 3, 5), (5,)):
        method = method_on(backbone, windows=windows)
        outputs.append(method(seen_by(method, pixels)).terms["global"])
    assert torch.equal(*outputs)


def test_features_are_the_stream_behind_the_first_adapter_and_may_come_in_half_precision(backbone, pixels):
    method = method_on(backbone)
    features = seen_by(method, pixels)
    assert features.patches.shape == (3, 1, 26, 32) and features.cls.shape == (3, 32)
    assert torch.equal(features.patches[:, 0, 0], features.cls) and not features.patches.requires_grad
    half = ImageFeatures(features.patches.half(), features.cls.half(), features.grid, features.object_names)
    torch.testing.assert_close(method(half).logits, method(features).logits, atol=0.02, rtol=0.02)
    assert method(half).logits.dtype == torch.float32


def test_routing_is_of_patches_with_k_weights_and_its_mean_is_in_the_output(backbone, pixels):
    method = method_on(backbone)
    features = seen_by(method, pixels)
    [(name, weights)] = method.token_routing(features).items()
    assert name == "experts" and weights.shape == (3, 3, 25, 4)
    assert ((weights > 0).sum(-1) == 2).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 3, 25))
    torch.testing.assert_close(method(features).routing["experts"], weights.mean(2))
    assert method.expert_embeddings()["experts"].shape == (3, 4, 3 * 32)


def test_text_is_of_each_images_class(backbone, pixels):
    method = method_on(backbone)
    text = method.encode(WORDS, batch=3)
    assert torch.equal(text[0], text[2]) and not torch.equal(text[0], text[1])
    nobody = method.encode(None, batch=2)
    torch.testing.assert_close(nobody[0], slow_text(method, backbone, "object"), atol=1e-5, rtol=0)
    assert torch.equal(method_on(backbone, names="object").encode(WORDS, batch=3)[1], nobody[0])
    with pytest.raises(ConfigError, match="77"):
        method.encode(("very " * 80,), batch=1)


def test_images_of_a_batch_do_not_influence_each_other(backbone, pixels):
    method = method_on(backbone)
    whole, alone = method(seen_by(method, pixels)), method(seen_by(method, pixels[1:2], WORDS[1:2]))
    torch.testing.assert_close(whole.logits[1:2], alone.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(whole.score[1:2], alone.score, atol=1e-5, rtol=1e-5)


def test_recipes_and_domains_fill_in_what_is_not_given(backbone):
    paper, released = MoECLIPConfig(), MoECLIPConfig(recipe="released", dropout=0.1)
    assert (paper.etf_weight, paper.balance_weight, paper.dropout) == (0.01, 0.01, 0.05)
    assert (released.etf_weight, released.balance_weight, released.dropout) == (0.0, 0.0, 0.1)
    assert (released.gate_init, released.norm_floor, released.smooth) == ("zero", 1e-6, "grid_reflect")
    medical = MoECLIPConfig(domain="medical")
    assert (paper.sigma, paper.score, medical.sigma, medical.score) == (1.0, "map_and_cosine", 1.5, "map")
    assert MoECLIPConfig.model_validate_json(released.model_dump_json()) == released
    assert MoECLIPConfig(**medical.model_dump(mode="json")) == medical
    rates = [
        build("moeclip", {"recipe": name, **SMALL}, backbone).rate_of("x") for name in ("paper", "released")
    ]
    assert rates == [1.0, 0.1]
    assert build("moeclip", SMALL, backbone).config.activation == "as_trained"
    assert MoECLIPConfig.for_backbone(preset("ViT-L/14@336")) == paper and paper.activation == "gelu"


def test_a_domain_changes_sigma_and_score_where_they_are_the_other_domains(backbone, pixels):
    method = method_on(backbone)
    medical, features = method.for_domain("medical"), seen_by(method, pixels)
    fresh = method_on(backbone, domain="medical")
    assert medical.config == fresh.config and medical.map_spec.sigma == 1.5
    assert torch.equal(medical(features).score, fresh(features).score)
    assert medical.for_domain("industrial").config == method.config
    assert method.config.domain == "industrial" and medical.experts is method.experts
    kept = method_on(backbone, score="map_and_global", sigma=3.0).for_domain("medical").config
    assert (kept.score, kept.sigma, kept.domain) == ("map_and_global", 3.0, "medical")


def test_every_expert_learns_from_the_first_step_but_in_the_released_recipe(backbone, pixels, masks, labels):
    """Ties send all tokens to the same two experts, whose first gradient Adam remembers."""
    moved = {}
    for recipe in ("paper", "released"):
        method = build("moeclip", {"rank": 3, "windows": (1, 3), "recipe": recipe}, backbone).train()
        method.reset_parameters(torch.Generator().manual_seed(0))
        features = seen_by(method, pixels)
        optimiser = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=5e-4)
        norms = []
        for _ in range(6):
            terms = method.losses(features, masks, labels)
            optimiser.zero_grad()
            sum(term for name, term in terms.items() if "raw" not in name).backward()
            optimiser.step()
            norms.append(torch.stack([mixture.up.detach().norm(dim=(1, 2)) for mixture in method.experts]))
        moved[recipe] = norms
    first, *_, before, last = moved["paper"]
    assert (first > 0).all() and ((last - before) > first / 3).all() and last.max() < 2 * last.min()
    first, *_, before, last = moved["released"]
    assert ((first > 0).sum(1) == 2).all()
    assert ((last - before)[first > 0] < 0.35 * first.max()).all()


def test_auxiliary_losses_of_weight_zero_are_still_told(backbone, pixels, masks, labels):
    method = method_on(backbone, recipe="released")
    terms = method.losses(seen_by(method, pixels), masks, labels)
    assert float(terms["etf"].detach()) == 0 == float(terms["balance"].detach())
    assert float(terms["raw_etf"]) > 0 < float(terms["raw_balance"])
    assert not terms["raw_etf"].requires_grad


def test_trainable_count_of_the_published_model():
    with torch.device("meta"):
        clip = CLIP(preset("ViT-L/14@336").config)
        backbone = Backbone(clip, Tokenizer(), preset("ViT-L/14@336"), "meta", "ViT-L/14@336")
        method = build("moeclip", None, backbone)
    assert method.config == MoECLIPConfig()
    counts = {"router": 0, "up": 0, "projectors": 0, "head": 0, "text_adapter": 0}
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            counts[next(key for key in counts if key in name.split("."))] += parameter.numel()
    assert list(counts.values()) == [16_384, 131_072, 3_145_728, 791_552, 589_824]
    assert sum(counts.values()) == METHODS[method.name].parameters == 4_674_560


def test_overfits_eight_images(backbone):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(8, 3, 40, 40, generator=generator)
    masks, labels = torch.zeros(8, 40, 40), torch.tensor([1.0, 0.0] * 4)
    for index in range(0, 8, 2):
        row, column = 8 * (index % 4), 8 * (index // 2)
        masks[index, row : row + 16, column : column + 8] = 1
        pixels[index, :, row : row + 16, column : column + 8] += 4
    settings = {**SMALL, "norm_floor": 1.0, "score": "map_and_global", "map_temperature": 0.05}
    method = build("moeclip", settings, backbone).train()
    method.reset_parameters(generator)
    features = method.features(pixels)
    optimiser = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], lr=1e-2)
    torch.manual_seed(0)
    for _ in range(25):
        loss = torch.stack(list(method.losses(features, masks, labels).values())).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        output = method.eval()(features)
        maps = render_map(output.logits, method.map_spec, smooth=False)
    assert output.score[labels == 1].min() > output.score[labels == 0].max()
    assert maps[masks == 1].mean() > maps[masks == 0].mean() + 0.15
    assert all((mixture.router != 0).any() and (mixture.up != 0).any() for mixture in method.experts)


def test_state_round_trip_is_exact_and_holds_the_frozen_maps(backbone, pixels):
    first, second = method_on(backbone), build("moeclip", SMALL, backbone).eval()
    features = seen_by(first, pixels)
    assert not torch.equal(first(features).logits, second(features).logits)
    state = {name: tensor.clone() for name, tensor in first.adapter_state().items()}
    assert not any(name.startswith(("clip", "_")) for name in state) and "experts.0.down" in state
    second.load_adapter(state)
    assert torch.equal(first(features).logits, second(features).logits)
    with pytest.raises(CheckpointError, match="lacks"):
        second.load_adapter({name: tensor for name, tensor in state.items() if name != "projectors"})


def test_runs_in_bfloat16_and_under_mixed_precision(backbone, pixels, masks, labels):
    method = method_on(backbone)
    features = seen_by(method, pixels)
    expected, plain = method(features).logits, method.losses(features, masks, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = method.losses(features, masks, labels)
    for name, term in plain.items():
        assert mixed[name].dtype == torch.float32
        assert float(mixed[name].detach()) == pytest.approx(float(term.detach()), rel=0.1, abs=0.01), name
    output = method.to(torch.bfloat16)(seen_by(method, pixels.bfloat16()))
    assert output.logits.dtype == output.score.dtype == torch.bfloat16
    torch.testing.assert_close(output.logits.float(), expected, atol=0.2, rtol=0.1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"top_k": 5}, "top_k = 5 exceeds the 4 experts"),
        ({"rank": 9}, "rank = 9 exceeds the 8 features"),
        ({"rank": 33, "fofs": False}, "rank = 33 exceeds the width 32"),
        ({"experts": 1, "top_k": 1}, "experts = 1"),
        ({"value_value": True}, "ordinary path"),
        ({"windows": (1, 4)}, "odd"),
        ({"windows": (3, 1)}, "must rise"),
        ({"windows": ()}, "windows"),
        ({"recipe": "mine"}, "recipe = 'mine'"),
        ({"domain": "food"}, "domain = 'food'"),
        ({"dropout": 1.0}, "dropout = 1.0"),
        ({"layers": (2, 9)}, r"layers = \(2, 9\) do not all exist"),
        ({"expert": 2}, "did you mean 'experts'"),
    ],
)
def test_impossible_settings_are_refused_at_once_in_one_line(backbone, settings, words):
    with pytest.raises(ConfigError, match=words) as caught:
        build("moeclip", {**SMALL, **settings}, backbone)
    assert "\n" not in str(caught.value)


def test_class_names_are_the_published_ones_or_the_classes_own():
    book = bundled()
    for name in ("MVTec", "VisA", "MPDD", "BTAD", "DTD-Synthetic"):
        listed = next(
            own
            for (_, method), own in _class_names().items()
            if method == "moeclip" and book.find(own["sets"][0]) is book.find(name)
        )
        assert listed["classes"].keys() == {row.name for row in book.find(name).classes}, name
    assert class_name("mvtec_ad", "bottle", method="moeclip") == "dark bottle"
    assert class_name("MVTec", "bottle") == class_name("MVTec", "bottle", method="winclip") == "bottle"
    assert class_name("BTAD", "02", method="moeclip").startswith("vertical fabric lines")
    assert class_name("CVC-ColonDB", "colon") == "colon endoscopy image" == class_name("Kvasir", "x")
    assert (
        class_name("BrainMRI", "brain", method="moeclip") == "scan" and class_name("RSDD", "Dent") == "metal"
    )
    assert class_name("", "left_shoe") == "left shoe" and class_name("Endo", "any") == "polyp"
    for dataset in ("mvtec_anomaly_detection", "MVTec AD"):
        sample = Sample(Path("1.png"), "metal_nut", dataset=dataset)
        assert sample.word_for("moeclip") == "metal nut which has four notched edges"
        assert sample.word_for("adaclip") == "metal nut"
    assert Sample(Path("1.png"), "left_shoe", dataset="mine").word_for("moeclip") == "left shoe"


def test_every_published_name_fits_the_text_tower_in_every_sentence():
    tokenizer = Tokenizer()
    for (_, method), entry in _class_names().items():
        for words in entry.get("classes", {}).values() if method == "moeclip" else ():
            for sentences in published_prompts("moeclip", words):
                assert all(len(tokenizer.encode(sentence)) <= 77 for sentence in sentences), words
