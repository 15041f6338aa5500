"""AdaCLIP against a reading that loops over images, blocks and sentences, its settings, and what training needs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from zsad.clip.config import preset
from zsad.clip.model import CLIP
from zsad.clip.tokenizer import Tokenizer
from zsad.clip.weights import Backbone
from zsad.errors import ConfigError
from zsad.methods.adaclip import AdaCLIP, AdaCLIPConfig
from zsad.methods.base import ImageFeatures
from zsad.methods.registry import METHODS, build
from zsad.methods.sentences import SentenceBank
from zsad.nn.clusters import kmeans
from zsad.nn.filters import render_map
from zsad.prompts import published_prompts

SMALL = {"tau": 0.2, "clusters": 4, "vision_depth": 3, "prompt_tokens": 3}
WORDS = ("metal nut", "bottle", "metal nut")


def method_on(backbone: Backbone, **settings) -> AdaCLIP:
    method = build("adaclip", {**SMALL, **settings}, backbone)
    method.reset_parameters(torch.Generator().manual_seed(11))
    with torch.no_grad():
        for prompts in (method.vision_prompts, method.text_prompts):
            for tokens in () if prompts is None else prompts.parameters():
                tokens.mul_(10)  # else the towers hardly notice their prompts
    return method


def features_of(method: AdaCLIP, pixels: torch.Tensor) -> ImageFeatures:
    return replace(method.features(pixels), object_names=WORDS[: len(pixels)])


def double(method: AdaCLIP, features: ImageFeatures) -> tuple[AdaCLIP, ImageFeatures]:
    return method.double(), replace(features, patches=features.patches.double(), cls=features.cls.double())


def slow_image(
    method: AdaCLIP, x: torch.Tensor, feature: torch.Tensor
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """One image through all blocks: prompts are put behind the patches and taken away after each block."""
    visual, config, made = method.clip.visual, method.config, method.vision_prompts
    taps, prompts = [], x[:0]
    for number, block in enumerate(visual.blocks, start=1):
        if made is not None and number <= config.vision_depth:
            prompts = torch.zeros(config.prompt_tokens, x.shape[-1], dtype=x.dtype)
            if made.static is not None:
                prompts = prompts + made.static[number - 1]
            if made.dynamic is not None:
                prompts = prompts + made.dynamic(feature).view(config.prompt_tokens, -1)
        joined = block(torch.cat([x, prompts])[None])[0]
        x, prompts = joined[: len(x)], joined[len(x) :]
        if number in config.layers:
            taps.append(x[1:])
    return taps, visual.ln_post(x[0]) @ visual.proj


def slow_sentence(
    method: AdaCLIP, tokenizer: Tokenizer, sentence: str, feature: torch.Tensor
) -> torch.Tensor:
    text, made, count = method.clip.text, method.text_prompts, method.config.prompt_tokens
    ids = tokenizer.encode(sentence)
    x = text.token_embedding(torch.tensor(ids)) + text.position_embedding[: len(ids)]
    for index, block in enumerate(text.blocks):
        if made is not None and 1 <= index < method.config.text_depth:
            own = torch.zeros(count, x.shape[-1], dtype=x.dtype)
            if made.static is not None:
                own = own + made.static[index - 1]
            if made.dynamic is not None:
                own = own + made.dynamic(feature).view(count, -1)
            x = torch.cat([x[:1], own, x[1 + count :]])
        x = block(x[None], causal=True)[0]
    return F.normalize(text.ln_final(x[len(ids) - 1]) @ text.proj, dim=0)


def slow_text(method: AdaCLIP, tokenizer: Tokenizer, word: str, feature: torch.Tensor) -> torch.Tensor:
    states = published_prompts("adaclip", word, templates=method.config.templates)
    means = [
        torch.stack([slow_sentence(method, tokenizer, sentence, feature) for sentence in state]).mean(0)
        for state in states
    ]
    return F.normalize(torch.stack(means), dim=-1)


def slow_cluster(method: AdaCLIP, patches: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Of one image's patches (L, N, D) and logits (L, N); the k-means has tests of its own."""
    config, mean = method.config, patches.mean(0)
    anomaly = logits.mean(0).sigmoid()
    if config.fusion == "most_anomalous":
        labels = kmeans(mean[None], config.clusters)[0]
        groups = [labels == k for k in labels.unique()]
        return mean[max(groups, key=lambda own: float(anomaly[own].detach().mean()))].mean(0)
    chosen = anomaly.argsort(descending=True)[: 5 * config.clusters]
    labels = kmeans(torch.cat(list(patches[:, chosen]), dim=-1)[None], config.clusters)[0]
    return torch.stack([mean[chosen][labels == k].mean(0) for k in labels.unique()]).mean(0)


def slow_parts(
    method: AdaCLIP, features: ImageFeatures, tokenizer: Tokenizer
) -> tuple[torch.Tensor, torch.Tensor]:
    """Grids (B, L, N) and scores (B,), image by image."""
    config, visual = method.config, method.clip.visual
    grids, scores = [], []
    for x, cls, word in zip(features.patches[:, 0], features.cls, features.object_names, strict=True):
        feature = visual.ln_post(cls) @ visual.proj
        taps, pooled = slow_image(method, x, feature)
        text = slow_text(method, tokenizer, word if config.names == "data" else "object", feature)
        patches = torch.stack(
            [F.normalize(head(tap), dim=-1) for head, tap in zip(method.patch_heads, taps, strict=True)]
        )
        logits = (patches @ (text[1] - text[0])) / config.tau
        whole = F.normalize(method.cls_head(pooled), dim=0)
        if config.fusion != "none":
            cluster = F.normalize(slow_cluster(method, patches, logits), dim=0)
            whole = F.normalize(config.alpha * cluster + (1 - config.alpha) * whole, dim=0)
        grids.append(logits)
        scores.append((whole @ text.T / config.tau).softmax(-1)[1])
    return torch.stack(grids), torch.stack(scores)


def slow_losses(
    logits: torch.Tensor, scores: torch.Tensor, masks: torch.Tensor, labels: torch.Tensor
) -> dict[str, torch.Tensor]:
    def focal(p: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        channels, hot = torch.stack([1 - p, p]), torch.stack([1 - m, m]).clamp(1e-5, 1 - 1e-5)
        truth = (channels * hot).sum(0) + 1e-5
        return (-((1 - truth) ** 2) * truth.log()).mean()

    def dice(p: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        return 1 - ((2 * (p * m).sum((1, 2)) + 1) / (p.sum((1, 2)) + m.sum((1, 2)) + 1)).mean()

    terms = {"dice": torch.tensor(0.0), "focal": torch.tensor(0.0)}
    for layer in logits.unflatten(-1, (5, 5)).unbind(1):
        size = tuple(masks.shape[-2:])
        two = torch.stack([torch.zeros_like(layer), layer], 1)
        p = F.interpolate(two, size=size, mode="bilinear", align_corners=True).softmax(1)[:, 1]
        terms["dice"] = terms["dice"] + dice(p, masks) + dice(1 - p, 1 - masks)
        terms["focal"] = terms["focal"] + focal(p, masks)
    return {**terms, "classify": focal(scores, labels)}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"recipe": "released"},
        {"prompts": "static", "fusion": "mean_of_means", "vision_depth": 4, "templates": 2},
        {"prompts": "dynamic", "fusion": "none", "names": "object", "text_depth": 2, "prompt_tokens": 5},
        {"prompted": "vision", "layers": (1, 4)},
        {"prompted": "text"},
    ],
)
def test_output_losses_and_gradients_equal_the_slow_form(backbone, pixels, masks, labels, settings):
    method = method_on(backbone, **settings)
    method, features = double(method, features_of(method, pixels))
    masks, labels = masks.double(), labels.double()
    logits, scores = slow_parts(method, features, backbone.tokenizer)
    output = method(features)
    torch.testing.assert_close(output.logits.flatten(2), logits, atol=1e-10, rtol=0)
    torch.testing.assert_close(output.score, scores, atol=1e-10, rtol=0)
    terms, expected = method.losses(features, masks, labels), slow_losses(logits, scores, masks, labels)
    assert terms.keys() == expected.keys()
    for name, term in expected.items():
        torch.testing.assert_close(terms[name], term, atol=1e-8, rtol=1e-8, msg=name)
    own = [parameter for parameter in method.parameters() if parameter.requires_grad]
    fast = torch.autograd.grad(sum(terms.values()), own)
    for one, other in zip(fast, torch.autograd.grad(sum(expected.values()), own), strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-6)


def test_features_lead_back_to_the_plain_tower(backbone, pixels):
    method = method_on(backbone, prompted="none", activation="as_trained")
    features = method.features(pixels)
    assert features.patches.shape == (3, 1, 26, 32) and features.cls.shape == (3, 32)
    read = backbone.clip.visual(pixels, taps=method.config.layers)
    taps, pooled = method._second_pass(
        features.patches[:, 0], method.project_cls(features.cls), features.grid
    )
    for one, other in zip(taps, read.taps, strict=True):
        torch.testing.assert_close(one, other[:, 1:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features.cls, read.cls)
    torch.testing.assert_close(pooled, method.project_cls(read.cls), atol=1e-5, rtol=1e-5)


def test_without_prompts_and_with_heads_that_start_as_clip_it_is_plain_clip(backbone, pixels):
    method = method_on(backbone, prompted="none", fusion="none", head_start="clip", activation="as_trained")
    output = method(features_of(method, pixels))
    bank, read = SentenceBank(backbone), backbone.clip.visual(pixels, taps=method.config.layers)
    text = torch.stack([bank.states(*published_prompts("adaclip", word, templates=1)) for word in WORDS])
    direction = (text[:, 1] - text[:, 0]) / 0.2
    cls = F.normalize(backbone.clip.visual.project(read.cls), dim=-1)
    torch.testing.assert_close(output.score, (cls * direction).sum(-1).sigmoid(), atol=1e-5, rtol=0)
    for layer, tap in enumerate(read.taps):
        patches = F.normalize(backbone.clip.visual.project(tap[:, 1:]), dim=-1)
        expected = (patches @ direction.unsqueeze(-1)).view(3, 5, 5)
        torch.testing.assert_close(output.logits[:, layer], expected, atol=1e-3, rtol=0)


def test_the_map_is_the_softmax_of_the_layers_mean(backbone, pixels):
    method = method_on(backbone)
    output = method(features_of(method, pixels))
    mean = F.interpolate(
        output.logits.mean(1, keepdim=True), size=(40, 40), mode="bilinear", align_corners=True
    )
    rendered = render_map(output.logits, method.map_spec, smooth=False)
    torch.testing.assert_close(rendered, mean[:, 0].sigmoid(), atol=1e-5, rtol=0)
    for score, expected in (("map", rendered.amax((1, 2))), ("map_and_global", None)):
        found = method_on(backbone, score=score)(features_of(method, pixels)).score
        both = (rendered.amax((1, 2)) + output.score) / 2
        torch.testing.assert_close(found, both if expected is None else expected, atol=1e-5, rtol=0)


def test_text_is_of_the_class_and_with_dynamic_prompts_of_the_image(backbone, pixels):
    features = features_of(method_on(backbone), pixels)
    for kinds, shared in (("static", True), ("both", False)):
        method = method_on(backbone, prompts=kinds)
        plain = method.project_cls(features.cls)
        text = method._encode(plain, WORDS)
        assert not torch.allclose(text[0], text[1], atol=1e-4)
        assert torch.allclose(text[0], text[2], atol=1e-6) == shared
        assert torch.equal(method._encode(plain, None), method._encode(plain, ("object",) * 3))
        torch.testing.assert_close(method._encode(plain, ("metal-nut",) * 3)[0], text[0], atol=1e-6, rtol=0)
    method = method_on(backbone, names="object")
    assert torch.equal(method._encode(plain, WORDS), method._encode(plain, None))


def test_images_of_a_batch_do_not_influence_each_other(backbone, pixels):
    method = method_on(backbone).eval()
    features = features_of(method, pixels)
    with torch.no_grad():
        whole = method(features)
        for index, word in enumerate(WORDS):
            alone = method(replace(method.features(pixels[index : index + 1]), object_names=(word,)))
            torch.testing.assert_close(whole.logits[index : index + 1], alone.logits, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(whole.score[index : index + 1], alone.score, atol=1e-5, rtol=1e-5)


SWITCHES = [
    {"prompted": "vision"},
    {"prompted": "text"},
    {"prompted": "none"},
    {"prompts": "static"},
    {"prompts": "dynamic"},
    {"vision_depth": 1},
    {"vision_depth": 4},
    {"text_depth": 2},
    {"prompt_tokens": 5},
    {"head_start": "clip"},
    {"names": "object"},
    {"templates": 3},
    {"tau": 0.1},
    {"fusion": "mean_of_means"},
    {"fusion": "none"},
    {"clusters": 2},
    {"alpha": 0.9},
    {"score": "map"},
    {"score": "map_and_global"},
    {"layers": (4,)},
    {"value_value": True},
    {"positions": "bilinear"},
    {"activation": "quick_gelu"},
    {"align_corners": False},
    {"map_order": "after_softmax"},
    {"train_map_size": 20},
]


@pytest.mark.parametrize("settings", SWITCHES, ids=lambda settings: "-".join(map(str, settings.values())))
def test_every_setting_trains_all_parameters_and_changes_something(backbone, pixels, labels, settings):
    def losses(method: AdaCLIP) -> dict[str, torch.Tensor]:
        masks = torch.zeros(3, *method.train_map_size)
        masks[0, 3:12, 3:12] = 1
        return method.losses(features_of(method, pixels), masks, labels)

    method = method_on(backbone, **settings)
    terms = losses(method)
    torch.stack(list(terms.values())).sum().backward()
    idle = {"cls_head.weight", "cls_head.bias"} if method.config.score == "map" else set()
    for name, parameter in method.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert reached == (not name.startswith("clip.") and name not in idle), name
    output = method(features_of(method, pixels))
    assert output.logits.shape == (3, len(method.config.layers), 5, 5)
    assert torch.isfinite(output.logits).all() and ((output.score >= 0) & (output.score <= 1)).all()
    plain = losses(method_on(backbone))
    assert any(not torch.equal(plain[name], terms[name]) for name in plain), "the setting had no effect"


def test_the_released_recipe_is_the_released_fusion():
    assert AdaCLIPConfig().fusion == "most_anomalous"
    assert AdaCLIPConfig(recipe="released").fusion == "mean_of_means"
    assert AdaCLIPConfig(recipe="released", fusion="none").fusion == "none"


def test_no_weight_of_the_clusters_is_no_fusion(backbone, pixels):
    features = features_of(method_on(backbone), pixels)
    without = method_on(backbone, fusion="none")(features).score
    assert torch.equal(method_on(backbone, alpha=0)(features).score, without)
    assert not torch.allclose(method_on(backbone)(features).score, without, atol=1e-4)


def test_defaults_on_vit_l_are_the_papers(backbone):
    with torch.device("meta"):
        clip = CLIP(preset("ViT-L/14@336").config)
        large = Backbone(clip, Tokenizer(), preset("ViT-L/14@336"), "meta", "ViT-L/14@336")
        method = build("adaclip", None, large)
    assert method.config == AdaCLIPConfig()
    count = sum(tensor.numel() for tensor in method.adapter_state().values())
    static, dynamic = 4 * 5 * 1024 + 3 * 5 * 768, 5 * (769 * 1024 + 769 * 768)
    assert count == static + dynamic + 4 * 1025 * 768 + 769 * 768 == METHODS[method.name].parameters
    small = build("adaclip", None, backbone).config
    assert (small.vision_depth, small.text_depth, small.templates, small.value_value) == (4, 3, 1, False)
    assert AdaCLIPConfig().activation == "gelu" and AdaCLIPConfig().map_order == "mean_logits"


def test_a_seeded_start_repeats_and_a_checkpoint_holds_no_backbone(backbone):
    states = []
    for seed in (1, 1, 2):
        method = build("adaclip", SMALL, backbone)
        method.reset_parameters(torch.Generator().manual_seed(seed))
        states.append(method.adapter_state())
    for name, tensor in states[0].items():
        assert not name.startswith("clip.") and torch.equal(tensor, states[1][name]), name
        assert not torch.equal(tensor, states[2][name]), name


def test_mixed_and_low_precision_stay_near_and_finite(backbone, pixels, masks, labels):
    method = method_on(backbone, fusion="none")
    features = features_of(method, pixels)
    exact, plain = method(features), method.losses(features, masks, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = method.losses(features, masks, labels)
    for name, term in plain.items():
        assert mixed[name].dtype == torch.float32
        assert float(mixed[name].detach()) == pytest.approx(float(term.detach()), rel=0.1), name
    low = method.to(torch.bfloat16)
    output = low(replace(low.features(pixels.bfloat16()), object_names=WORDS))
    assert output.logits.dtype == output.score.dtype == torch.bfloat16
    torch.testing.assert_close(output.logits.float(), exact.logits, atol=0.3, rtol=0.05)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"vision_depth": 5}, "vision_depth = 5 exceeds the 4 blocks"),
        ({"text_depth": 4}, "text_depth = 4 exceeds the 3 blocks"),
        ({"prompt_tokens": 8}, "would replace the end of a sentence of 7 tokens"),
        ({"templates": 5}, "templates = 5"),
        ({"alpha": 2}, "alpha = 2"),
        ({"clusters": 0}, "clusters = 0"),
        ({"fusion": "max"}, "fusion = 'max'"),
        ({"prompt_token": 2}, "did you mean 'prompt_tokens'"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(backbone, settings, words):
    with pytest.raises(ConfigError, match=words) as caught:
        build("adaclip", {**SMALL, **settings}, backbone)
    assert "\n" not in str(caught.value)


def test_a_class_name_too_long_for_the_tower_is_refused_in_one_line(backbone, pixels):
    method = method_on(backbone)
    with pytest.raises(ConfigError, match="shorten it"):
        method(replace(method.features(pixels[:1]), object_names=("very " * 80 + "long",)))


def test_every_setting_is_described_and_training_is_the_papers():
    assert all(field.description for field in AdaCLIPConfig.model_fields.values())
    assert AdaCLIP.training_defaults["learning_rate"] == 0.01 and AdaCLIP.training_defaults["epochs"] == 5
