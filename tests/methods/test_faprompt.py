"""FAPrompt against a reading of its paper that loops over images, prompts and patches, and what training needs."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from zsad.clip.config import preset
from zsad.clip.model import CLIP
from zsad.clip.tokenizer import Tokenizer
from zsad.clip.weights import Backbone
from zsad.errors import ConfigError
from zsad.methods.base import ImageFeatures
from zsad.methods.faprompt import FAPrompt, FAPromptConfig, pairwise_cosines
from zsad.methods.registry import METHODS, build
from zsad.nn.filters import render_map

SMALL = {"abnormal_prompts": 3, "prior_tokens": 4, "tau": 0.2}


def method_on(backbone: Backbone, **settings) -> FAPrompt:
    method = build("faprompt", {**SMALL, **settings}, backbone)
    method.reset_parameters(torch.Generator().manual_seed(11))
    with torch.no_grad():
        for prompts in method.prompts.parameters():
            prompts.mul_(30)  # else all prompts look alike to a random tower
        method.prior_out.weight.mul_(5)
    return method


def double(method: FAPrompt, features: ImageFeatures) -> tuple[FAPrompt, ImageFeatures]:
    return method.double(), ImageFeatures(features.patches.double(), features.cls.double(), features.grid)


def slow_text(method: FAPrompt, tokenizer: Tokenizer, tokens: list[torch.Tensor], words: str) -> torch.Tensor:
    """One prompt: SOS, learnable tokens, words, EOS, at full length through all blocks, deep tokens put in."""
    text = method.clip.text
    ids = tokenizer.encode(words)
    embedded = text.token_embedding(torch.tensor(ids))
    x = torch.cat([embedded[:1], *tokens, embedded[1:]])
    end = len(x) - 1
    x = F.pad(x, (0, 0, 0, 77 - len(x))) + text.position_embedding
    x = x[None]
    for index, block in enumerate(text.blocks):
        if 1 <= index <= method.config.deep_sets:
            deep = method.prompts.deep[0, index - 1]
            x = torch.cat([x[:, :1], deep[None], x[:, 1 + len(deep) :]], dim=1)
        x = block(x, causal=True)
    return text.ln_final(x[0, end]) @ text.proj


def slow_texts(method: FAPrompt, tokenizer: Tokenizer, prior: torch.Tensor | float) -> torch.Tensor:
    contexts, word = method.prompts.contexts, method.config.class_word
    rows = [slow_text(method, tokenizer, [contexts["normal"]], f"{word}.")]
    for own in contexts["abnormal"]:
        rows.append(slow_text(method, tokenizer, [contexts["normal"], own + prior], f"damaged {word}."))
    return torch.stack(rows)


def slow_probabilities(tokens: torch.Tensor, text: torch.Tensor, tau: float) -> torch.Tensor:
    pair = torch.stack([text[0], text[1:].mean(0)])
    cosine = F.cosine_similarity(tokens[..., None, :], pair, dim=-1)
    return (cosine / tau).softmax(-1)[..., 1]


def slow_parts(method: FAPrompt, features: ImageFeatures, tokenizer: Tokenizer) -> dict[str, torch.Tensor]:
    """Both versions' patch probabilities (B, N), global part (B,), abnormal text (K, D), priors (B, D_t)."""
    config = method.config
    plain = slow_texts(method, tokenizer, 0.0)
    parts: dict[str, list] = {"first": [], "second": [], "cls": [], "prior": []}
    for patches, cls in zip(features.patches[:, 0], features.cls, strict=True):
        first = slow_probabilities(patches, plain, config.tau)
        order = first.argsort(descending=True) if config.prior_patches == "selected" else range(len(first))
        taken = torch.cat([F.normalize(patches[i], dim=0) for i in order[: config.prior_tokens]])
        prior = method.prior_out(method.prior_in(taken).clamp_min(0))
        own = slow_texts(method, tokenizer, prior)
        parts["first"].append(first)
        parts["second"].append(slow_probabilities(patches, own, config.tau))
        parts["cls"].append(slow_probabilities(cls, own, config.tau))
        parts["prior"].append(prior)
    return {"abnormal": plain[1:], **{name: torch.stack(rows) for name, rows in parts.items()}}


def slow_score(parts: dict[str, torch.Tensor]) -> torch.Tensor:
    highest = (2 * parts["first"].amax(1) + parts["second"].amax(1)) / 3
    return (parts["cls"] + highest) / 2


def slow_losses(
    parts: dict[str, torch.Tensor], masks: torch.Tensor, labels: torch.Tensor, *, score_loss: str
) -> dict[str, torch.Tensor]:
    """The protocol's formulas, channel by channel."""

    def focal_of_logit(logit: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        entropy = F.binary_cross_entropy_with_logits(logit, y, reduction="none")
        return ((1 - (-entropy).exp()) ** 2 * entropy).mean()

    def focal(p: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        channels, hot = torch.stack([1 - p, p]), torch.stack([1 - m, m]).clamp(1e-5, 1 - 1e-5)
        truth = (channels * hot).sum(0) + 1e-5
        return (-((1 - truth) ** 2) * truth.log()).mean()

    def dice(p: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        both, either = 2 * (p * m).sum((1, 2)) + 1, p.sum((1, 2)) + m.sum((1, 2)) + 1
        return 1 - (both / either).mean()

    terms = {}
    for name, weight, suffix in (("first", 1.0, ""), ("second", 0.5, "_with_prior")):
        grid = parts[name].view(-1, 1, 5, 5)
        p = F.interpolate(grid, size=tuple(masks.shape[-2:]), mode="bilinear")[:, 0]
        terms["focal" + suffix] = weight * focal(p, masks)
        terms["dice" + suffix] = weight * (dice(p, masks) + dice(1 - p, 1 - masks))
    terms["cross_entropy"] = F.binary_cross_entropy(parts["cls"], labels)
    forms = {"focal": focal, "focal_of_logit": focal_of_logit}
    terms["classify"] = forms[score_loss](slow_score(parts), labels)
    text = parts["abnormal"]
    terms["apart"] = 0.1 * sum(
        F.cosine_similarity(text[k], text[m], dim=0).abs()
        for k in range(len(text))
        for m in range(k + 1, len(text))
    )
    terms["prior"] = sum(
        prior.square().mean() for prior, y in zip(parts["prior"], labels, strict=True) if y == 0
    )
    return terms


@pytest.mark.parametrize(
    "settings",
    [{}, {"recipe": "released"}, {"class_word": "metal nut", "abnormal_tokens": 1, "deep_sets": 1}],
)
def test_output_losses_and_gradients_equal_the_slow_form(backbone, pixels, masks, labels, settings):
    method = method_on(backbone, **settings)
    method, features = double(method, method.features(pixels))
    masks, labels = masks.double(), labels.double()
    output, parts = method(features), slow_parts(method, features, backbone.tokenizer)
    found = output.logits.sigmoid().flatten(2)
    torch.testing.assert_close(found[:, 0], parts["first"], atol=1e-10, rtol=0)
    torch.testing.assert_close(found[:, 1], parts["second"], atol=1e-10, rtol=0)
    torch.testing.assert_close(output.score, slow_score(parts), atol=1e-10, rtol=0)
    expected = slow_losses(parts, masks, labels, score_loss=method.config.score_loss)
    terms = method.losses(features, masks, labels)
    assert terms.keys() == expected.keys()
    for name, term in expected.items():
        torch.testing.assert_close(terms[name], term, atol=1e-8, rtol=1e-8, msg=name)
    own = [parameter for parameter in method.parameters() if parameter.requires_grad]
    fast = torch.autograd.grad(sum(terms.values()), own)
    for one, other in zip(fast, torch.autograd.grad(sum(expected.values()), own), strict=True):
        torch.testing.assert_close(one, other, atol=1e-8, rtol=1e-6)


def test_the_released_recipe_is_what_the_released_code_does():
    paper, released = FAPromptConfig(), FAPromptConfig(recipe="released")
    assert (paper.prior_patches, paper.score_loss, paper.sigma) == ("selected", "focal", 4.0)
    assert (released.prior_patches, released.score_loss, released.sigma) == ("first", "focal_of_logit", 10.0)
    # Both have two own tokens a prompt, and cross-entropy in the sum.
    assert all((config.abnormal_tokens, config.cross_entropy) == (2, 1.0) for config in (paper, released))
    assert FAPromptConfig(recipe="released", sigma=4).sigma == 4
    assert FAPromptConfig.model_validate_json(released.model_dump_json()) == released


def test_the_map_is_the_mean_of_both_versions(backbone, pixels):
    method = method_on(backbone)
    output = method(method.features(pixels))
    each = [render_map(output.logits[:, i : i + 1], method.map_spec) for i in range(2)]
    torch.testing.assert_close(render_map(output.logits, method.map_spec), sum(each) / 2)
    assert not torch.allclose(*each)


def test_without_a_prior_both_versions_are_one(backbone, pixels, masks, labels):
    method = method_on(backbone)
    torch.nn.init.zeros_(method.prior_out.weight)
    torch.nn.init.zeros_(method.prior_out.bias)
    output = method(method.features(pixels))
    torch.testing.assert_close(output.logits[:, 0], output.logits[:, 1], atol=1e-4, rtol=1e-4)
    assert method.losses(method.features(pixels), masks, labels)["prior"].detach() == 0


def test_the_prior_is_held_small_on_normal_images_alone(backbone, pixels, masks):
    method = method_on(backbone)
    features = method.features(pixels)
    terms = [
        method.losses(features, masks, torch.tensor(y))["prior"] for y in ([1.0] * 3, [0.0, 1, 1], [0.0] * 3)
    ]
    assert terms[0] == 0 < terms[1] < terms[2]


def test_selected_patches_follow_the_map_and_first_ones_do_not(backbone, pixels):
    order = torch.arange(24, -1, -1)
    for kind in ("selected", "first"):
        method = method_on(backbone, prior_patches=kind)
        features = method.features(pixels)
        turned = ImageFeatures(features.patches[:, :, order], features.cls, features.grid)
        same = torch.allclose(method(features).score, method(turned).score, atol=1e-5)
        assert same == (kind == "selected")


SWITCHES = [
    {"score": "map_and_global"},
    {"score": "map"},
    {"score": "global"},
    {"score_loss": "focal_of_logit"},
    {"second_map": 0.0},
    {"cross_entropy": 0.0},
    {"apart": 0.0},
    {"prior_weight": 0.0},
    {"prior_patches": "first"},
    {"prior_tokens": 2},
    {"normal_tokens": 6},
    {"abnormal_tokens": 3},
    {"abnormal_prompts": 5},
    {"deep_sets": 0},
    {"deep_tokens": 2},
    {"layers": (3, 4)},
    {"class_word": "printed circuit board"},
    {"value_value": False},
    {"map_order": "before_softmax"},
    {"train_map_size": 20},
]


@pytest.mark.parametrize("settings", SWITCHES, ids=lambda settings: "-".join(map(str, settings.items())))
def test_every_setting_trains_all_parameters_and_changes_something(backbone, pixels, labels, settings):
    def losses(method: FAPrompt) -> dict[str, torch.Tensor]:
        masks = torch.zeros(3, *method.train_map_size)
        masks[0, 3:12, 3:12] = 1
        return method.losses(method.features(pixels), masks, labels)

    method = method_on(backbone, **settings)
    terms = losses(method)
    torch.stack(list(terms.values())).sum().backward()
    for name, parameter in method.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert reached == (not name.startswith("clip.")), name
    output = method(method.features(pixels))
    assert output.logits.shape == (3, 2 * len(method.config.layers), 5, 5)
    assert torch.isfinite(output.logits).all() and ((output.score >= 0) & (output.score <= 1)).all()
    plain = losses(method_on(backbone))
    assert any(not torch.equal(plain[name], terms[name]) for name in plain), "the setting had no effect"


def test_the_loss_of_the_score_reaches_what_the_score_is_made_of(backbone, pixels, masks, labels):
    for kind, parts in {"map": (1, 0), "global": (0, 1), "map_and_global": (1, 1), "fused": (1, 1)}.items():
        method = method_on(backbone, score=kind)
        features = method.features(pixels)
        features.patches.requires_grad_(), features.cls.requires_grad_()
        score = method.losses(features, masks, labels)["classify"]
        gradients = torch.autograd.grad(score, [features.patches, features.cls], allow_unused=True)
        # Patches also reach the global part through the prior.
        assert [g is not None and bool(g.any()) for g in gradients] == [True, bool(parts[1])], kind


def test_images_of_a_batch_do_not_influence_each_other(backbone, pixels):
    method = method_on(backbone).eval()
    with torch.no_grad():
        whole = method(method.features(pixels))
        for index in range(3):
            alone = method(method.features(pixels[index : index + 1]))
            torch.testing.assert_close(whole.logits[index : index + 1], alone.logits, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(whole.score[index : index + 1], alone.score, atol=1e-5, rtol=1e-5)


def test_mixed_and_low_precision_stay_near_and_finite(backbone, pixels, masks, labels):
    method = method_on(backbone)
    features = method.features(pixels)
    exact, plain = method(features), method.losses(features, masks, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = method.losses(features, masks, labels)
    for name, term in plain.items():
        assert mixed[name].dtype == torch.float32
        assert float(mixed[name].detach()) == pytest.approx(float(term.detach()), rel=0.1, abs=1e-3), name
    low = method.to(torch.bfloat16)
    output = low(low.features(pixels.bfloat16()))
    assert output.logits.dtype == output.score.dtype == torch.bfloat16
    torch.testing.assert_close(output.logits.float(), exact.logits, atol=0.3, rtol=0.05)


def test_pairwise_cosines_of_known_vectors():
    text = torch.tensor([[1.0, 0.0], [0.0, 3.0], [-2.0, 0.0]])
    assert float(pairwise_cosines(text)) == pytest.approx(1.0)
    assert float(pairwise_cosines(torch.ones(4, 3))) == pytest.approx(6.0)


def test_defaults_on_vit_l_are_the_papers_and_the_prior_is_the_large_part():
    with torch.device("meta"):
        clip = CLIP(preset("ViT-L/14@336").config)
        backbone = Backbone(clip, Tokenizer(), preset("ViT-L/14@336"), "meta", "ViT-L/14@336")
        method = build("faprompt", None, backbone)
    assert method.config == FAPromptConfig()
    count = sum(tensor.numel() for tensor in method.adapter_state().values())
    prior = 7680 * 480 + 480 + 480 * 768 + 768
    assert count == prior + (5 + 10 * 2 + 8 * 4) * 768 == METHODS[method.name].parameters


def test_a_seeded_start_repeats_and_a_checkpoint_holds_no_backbone(backbone):
    states = []
    for seed in (1, 1, 2):
        method = build("faprompt", SMALL, backbone)
        method.reset_parameters(torch.Generator().manual_seed(seed))
        states.append(method.adapter_state())
    for name, tensor in states[0].items():
        assert not name.startswith("clip.") and torch.equal(tensor, states[1][name]), name
        assert not torch.equal(tensor, states[2][name]), name


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prior_tokens": 26}, "prior_tokens = 26 exceeds the 25 patches"),
        ({"deep_sets": 3}, "3 sets of deep text tokens"),
        ({"normal_tokens": 80}, "does not fit the text tower's 77"),
        ({"abnormal_prompts": 0}, "abnormal_prompts = 0"),
        ({"score": "sum"}, "score = 'sum'"),
        ({"prior_patch": "first"}, "did you mean 'prior_patches'"),
        ({"tau": 0}, "tau = 0"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(backbone, settings, words):
    with pytest.raises(ConfigError, match=words) as caught:
        build("faprompt", {**SMALL, **settings}, backbone)
    assert "\n" not in str(caught.value)


def test_every_setting_is_described_and_training_is_the_papers():
    assert all(field.description for field in FAPromptConfig.model_fields.values())
    assert (
        FAPrompt.training_defaults["betas"] == (0.5, 0.999) and FAPrompt.training_defaults["batch_size"] == 8
    )
