"""PromptMoE against the slow reading of its paper, every setting, and what training needs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from promptmoe_oracles import slow_losses, slow_output, slow_texts

from zsad.clip.config import preset
from zsad.clip.model import CLIP
from zsad.clip.tokenizer import Tokenizer
from zsad.clip.weights import Backbone
from zsad.errors import CheckpointError, ConfigError
from zsad.methods.base import ImageFeatures
from zsad.methods.promptmoe import PromptMoE, PromptMoEConfig
from zsad.methods.registry import build
from zsad.nn.filters import render_map

SMALL = {"experts": 4, "top_k": 2, "queries": 3, "heads": 2, "router_hidden": 8, "tau": 0.2, "tau_prime": 0.1}


def method_on(backbone: Backbone, **settings) -> PromptMoE:
    method = build("promptmoe", {**SMALL, **settings}, backbone)
    method.reset_parameters(torch.Generator().manual_seed(11))
    with torch.no_grad():
        for prompts in (*method.pools, method.context):
            prompts.mul_(30)  # else all prompts look alike to a random tower
    return method


def double(method: PromptMoE, features: ImageFeatures) -> tuple[PromptMoE, ImageFeatures]:
    patches, cls = features.patches.double(), features.cls.double()
    return method.double(), ImageFeatures(patches, cls, features.grid, ("metal nut", "pill", "metal nut"))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"class_word": "metal nut"},
        {"names": "data"},
        {"sharing": "pool"},
        {"sharing": "attention"},
        {"sharing": "both", "value_value": False, "top_k": 4},
    ],
)
def test_texts_equal_separate_full_length_passes(backbone, pixels, settings):
    method, features = double(*(lambda m: (m, m.features(pixels)))(method_on(backbone, **settings)))
    text, routing = slow_texts(method, features, backbone.tokenizer)
    found, logits = method._text(features)
    torch.testing.assert_close(logits, routing, atol=1e-12, rtol=0)
    torch.testing.assert_close(found, text, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "settings", [{}, {"names": "data"}, {"segmentation": "per_layer", "dice": "both"}], ids=len
)
def test_output_and_losses_equal_the_equations(backbone, pixels, masks, labels, settings):
    method = method_on(backbone, **settings)
    method, features = double(method, method.features(pixels))
    output = method(features)
    maps, scores, _ = slow_output(method, features, backbone.tokenizer)
    torch.testing.assert_close(output.score, scores, atol=1e-6, rtol=0)
    rendered = render_map(output.logits, method.map_spec, smooth=False)
    torch.testing.assert_close(rendered, maps.mean(1), atol=1e-6, rtol=0)
    expected = slow_losses(method, features, backbone.tokenizer, masks.double(), labels)
    terms = method.losses(features, masks, labels)
    assert terms.keys() == expected.keys()
    for name, term in terms.items():
        assert float(term.detach()) == pytest.approx(expected[name], abs=1e-6), name


def test_routing_is_of_every_layer_and_state_with_k_weights(backbone, pixels):
    output = method_on(backbone)(method_on(backbone).features(pixels))
    assert output.routing is not None and output.routing.keys() == {"normal", "abnormal"}
    for weights in output.routing.values():
        assert weights.shape == (3, 3, 4) and ((weights > 0).sum(-1) == 2).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 3))
    assert not torch.equal(output.routing["normal"], output.routing["abnormal"])


SWITCHES = [
    {"prompting": "static"},
    {"prompting": "static", "prompt_layers": (2, 3, 4)},
    {"prompting": "static_ensemble"},
    {"layers": (4,), "alpha": 0, "beta": 0},
    {"prompt_layers": (4,), "alpha": 0, "beta": 0},
    {"layers": (2, 4)},
    {"prompt_layers": (3, 4)},
    {"sharing": "pool"},
    {"sharing": "attention"},
    {"sharing": "both"},
    {"experts": 4, "top_k": 4},
    {"experts": 8, "top_k": 1},
    {"value_value": False},
    {"cls_norm": True},
    {"segmentation": "per_layer"},
    {"dice": "both"},
    {"map_order": "after_softmax"},
    {"align_corners": True},
    {"class_word": "printed circuit board"},
    {"positions": "bicubic"},
    {"train_map_size": 20},
]


@pytest.mark.parametrize("settings", SWITCHES, ids=lambda settings: "-".join(map(str, settings.values())))
def test_every_setting_runs_trains_and_changes_something(backbone, pixels, settings):
    method = method_on(backbone, **settings)
    masks = torch.zeros(3, *method.train_map_size)
    masks[0, 3:12, 3:12] = 1
    labels = torch.tensor([1.0, 0.0, 0.0])
    features = method.features(pixels)
    terms = method.losses(features, masks, labels)
    torch.stack(list(terms.values())).sum().backward()
    for name, parameter in method.named_parameters():
        if name.startswith("clip."):
            assert parameter.grad is None and not parameter.requires_grad, name
        else:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    output = method(features)
    assert output.logits.shape == (3, len(method.config.layers), 5, 5)
    assert torch.isfinite(output.logits).all() and ((output.score >= 0) & (output.score <= 1)).all()
    assert (output.routing is None) == (method.config.prompting != "moe")
    default = method_on(backbone)
    plain = default.losses(
        default.features(pixels), torch.nn.functional.interpolate(masks[None], (40, 40))[0], labels
    )
    changed = {name for name in plain if not torch.equal(plain[name], terms.get(name, torch.tensor(-1.0)))}
    assert changed, "the setting had no effect"


@pytest.mark.parametrize("prompting", ["moe", "static_ensemble"])
def test_prompts_name_the_object_of_each_image(backbone, pixels, prompting):
    method = method_on(backbone, prompting=prompting, names="data").eval()
    features = method.features(pixels)
    state = method.adapter_state()
    texts = {}
    for word in ("object", "metal nut", "pill"):
        other = method_on(backbone, prompting=prompting, class_word=word).eval()
        other.load_adapter(state)
        texts[word] = other(features)
    words = ("metal nut", "pill", "metal nut")
    output = method(replace(features, object_names=words))
    for image, word in enumerate(words):
        torch.testing.assert_close(output.logits[image], texts[word].logits[image], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(output.logits, texts["object"].logits, atol=1e-3)
    assert torch.equal(method(features).logits, texts["object"].logits)
    with pytest.raises(ConfigError, match="shorten 'very very"):
        method(replace(features, object_names=("pill", "pill", "very " * 70)))


def test_text_of_static_prompts_is_cached_for_each_name(backbone, pixels, monkeypatch):
    method = method_on(backbone, prompting="static", names="data").eval()
    features = replace(method.features(pixels), object_names=("nut", "pill", "nut"))
    calls = []
    encode = PromptMoE.encode
    monkeypatch.setattr(
        PromptMoE, "encode", lambda *args, name: calls.append(name) or encode(*args, name=name)
    )
    with torch.no_grad():
        first = method(features).logits
        assert torch.equal(method(features).logits, first) and calls == ["nut", "pill"]


def test_gradients_reach_every_trainable_tensor_and_no_frozen_one(backbone, pixels, masks, labels):
    method = method_on(backbone)
    trainable = {name for name, parameter in method.named_parameters() if parameter.requires_grad}
    assert trainable == set(method.adapter_state())
    torch.stack(list(method.losses(method.features(pixels), masks, labels).values())).sum().backward()
    for name, parameter in method.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert reached == (name in trainable), name


def test_shared_attention_and_pool_have_one_copy(backbone):
    counts = {}
    for sharing in ("none", "pool", "attention", "both"):
        method = method_on(backbone, sharing=sharing)
        counts[sharing] = (method.attention.key.shape[0], len(method.pools))
    assert counts == {"none": (2, 2), "pool": (2, 1), "attention": (1, 2), "both": (1, 1)}


def test_overfits_eight_images(backbone):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(8, 3, 40, 40, generator=generator)
    masks, labels = torch.zeros(8, 40, 40), torch.tensor([1.0, 0.0] * 4)
    for index in range(0, 8, 2):
        row, column = 8 * (index % 4), 8 * (index // 2)
        masks[index, row : row + 16, column : column + 8] = 1
        pixels[index, :, row : row + 16, column : column + 8] += 4
    method = build("promptmoe", {**SMALL, "tau": 0.07}, backbone).train()
    method.reset_parameters(generator)
    features = method.features(pixels)
    optimiser = torch.optim.Adam(
        [parameter for parameter in method.parameters() if parameter.requires_grad],
        lr=1e-2,
        betas=(0.6, 0.999),
    )
    history = []
    for _ in range(40):
        loss = torch.stack(list(method.losses(features, masks, labels).values())).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        history.append(float(loss.detach()))
    with torch.no_grad():
        output = method.eval()(features)
        maps = render_map(output.logits, method.map_spec, smooth=False)
    assert history[-1] < 0.65 * history[0]
    assert output.score[labels == 1].min() > output.score[labels == 0].max()
    assert maps[masks == 1].mean() > maps[masks == 0].mean() + 0.3


def test_trainable_count_of_the_paper_is_11_35_million():
    with torch.device("meta"):
        clip = CLIP(preset("ViT-L/14@336").config)
        backbone = Backbone(clip, Tokenizer(), preset("ViT-L/14@336"), "meta", "ViT-L/14@336")
        method = build("promptmoe", None, backbone)
    assert method.config == PromptMoEConfig()
    count = sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad)
    per_copy = 8 * 768 + 2 * 768 * 768 + (768 * 256 + 256 + 256 * 8 + 8)
    assert count == 4 * (2 * per_copy + 8 * (5 + 6) * 768) + 8 * 768 == 11_354_176


def test_state_round_trip_is_exact_and_leaves_the_backbone_out(backbone, pixels):
    first, second = method_on(backbone), build("promptmoe", SMALL, backbone)
    features = first.features(pixels)
    assert not torch.equal(first(features).logits, second(features).logits)
    state = {name: tensor.clone() for name, tensor in first.adapter_state().items()}
    assert not any(name.startswith(("clip", "_")) for name in state)
    second.load_adapter(state)
    assert torch.equal(first(features).logits, second(features).logits)
    for change, word in (
        ({"context": None}, "lacks"),
        ({"other": torch.zeros(1)}, "unknown"),
        ({"context": torch.zeros(2)}, "shape"),
    ):
        broken = {**state, **change}
        with pytest.raises(CheckpointError, match=word):
            second.load_adapter({name: tensor for name, tensor in broken.items() if tensor is not None})


def test_features_may_come_from_a_half_precision_cache(backbone, pixels):
    method = method_on(backbone)
    features = method.features(pixels)
    half = ImageFeatures(features.patches.half(), features.cls.half(), features.grid)
    torch.testing.assert_close(method(half).logits, method(features).logits, atol=0.02, rtol=0.02)
    assert method(half).logits.dtype == torch.float32


def test_runs_in_bfloat16(backbone, pixels):
    exact = method_on(backbone)
    expected = exact(exact.features(pixels)).logits
    method = exact.to(torch.bfloat16)
    output = method(method.features(pixels.bfloat16()))
    assert output.logits.dtype == output.score.dtype == torch.bfloat16
    torch.testing.assert_close(output.logits.float(), expected, atol=0.2, rtol=0.05)


def test_images_of_a_batch_do_not_influence_each_other(backbone, pixels):
    method = method_on(backbone).eval()
    whole = method(method.features(pixels))
    alone = method(method.features(pixels[1:2]))
    torch.testing.assert_close(whole.logits[1:2], alone.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(whole.score[1:2], alone.score, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"top_k": 5}, "top_k = 5 exceeds the 4 experts"),
        ({"layers": (2, 9)}, r"layers = \(2, 9\) do not all exist"),
        ({"layers": (4, 2)}, "must rise"),
        ({"layers": (1, 4)}, "value-value"),
        ({"layers": ()}, "layers"),
        ({"heads": 3}, "heads = 3 do not divide the text width 16"),
        ({"normal_tokens": 40, "abnormal_tokens": 30}, "does not fit the text tower's 77"),
        ({"context_tokens": 0}, "context_tokens = 0"),
        ({"prompt_layers": (2,)}, "include the last"),
        ({"prompt_layers": (1, 4)}, "prompt_layers"),
        ({"tau": 0}, "tau = 0"),
        ({"alpha": -0.1}, "alpha = -0.1"),
        ({"sharing": "all"}, "sharing = 'all'"),
        ({"top_kk": 2}, "did you mean 'top_k'"),
    ],
)
def test_impossible_settings_are_refused_at_once_in_one_line(backbone, settings, words):
    with pytest.raises(ConfigError, match=words) as caught:
        build("promptmoe", {**SMALL, **settings}, backbone)
    assert "\n" not in str(caught.value)


def test_every_setting_is_described():
    assert all(field.description for field in PromptMoEConfig.model_fields.values())
    again = PromptMoEConfig.model_validate_json(PromptMoEConfig(layers=(12, 24)).model_dump_json())
    assert again.layers == (12, 24) and again.prompted == (12, 24)


@pytest.mark.parametrize("settings", [{}, {"prompting": "static_ensemble"}])
def test_mixed_precision_ends_with_the_text(backbone, pixels, masks, labels, settings, monkeypatch):
    """With the prompts and their text held fixed, bf16 changes no bit of the losses; with all of it, little."""
    method = method_on(backbone, **settings)
    features = method.features(pixels)
    plain = method.losses(features, masks, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = method.losses(features, masks, labels)
    for name, term in plain.items():
        assert mixed[name].dtype == torch.float32
        assert float(mixed[name].detach()) == pytest.approx(float(term.detach()), rel=0.05), name
    text = method._text(features)
    monkeypatch.setattr(method, "_text", lambda _: text)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fixed = method.losses(features, masks, labels)
    for name, term in plain.items():
        assert torch.equal(fixed[name], term), name
