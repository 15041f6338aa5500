"""APRIL-GAN against its equations written out layer by layer, its settings, and what training needs."""

from __future__ import annotations

import pytest
import torch
from sentences_oracles import slow_text
from torch.nn import functional as F

from zsad.clip.config import preset
from zsad.clip.model import CLIP
from zsad.clip.tokenizer import Tokenizer
from zsad.clip.weights import Backbone
from zsad.errors import ConfigError
from zsad.methods.aprilgan import AprilGAN, AprilGANConfig
from zsad.methods.base import ImageFeatures
from zsad.methods.registry import METHODS, build
from zsad.nn.filters import render_map
from zsad.train.train_config import TrainConfig

WORDS = ("bottle", "metal nut", "bottle")


def method_on(backbone: Backbone, **settings) -> AprilGAN:
    method = build("aprilgan", {"tau": 0.05, **settings}, backbone)
    assert isinstance(method, AprilGAN)
    method.reset_parameters(torch.Generator().manual_seed(11))
    return method


def read(method: AprilGAN, pixels: torch.Tensor, words: tuple[str, ...] | None = WORDS) -> ImageFeatures:
    features = method.features(pixels)
    features.object_names = words
    return features


def slow_output(method: AprilGAN, backbone: Backbone, pixels: torch.Tensor):
    """Maps (B, L, H, W) and scores (B,), image by image and layer by layer, two channels and a softmax."""
    visual, config = method.clip.visual, method.config
    texts = {word: slow_text(backbone, word, "aprilgan") for word in set(WORDS)}
    maps, scores = [], []
    for image, word in zip(pixels, WORDS, strict=True):
        out = visual(image[None], taps=config.layers, interpolation="bicubic", antialias=True)
        cls = F.normalize(visual.ln_post(out.cls[0]) @ visual.proj, dim=-1)
        scores.append((cls @ texts[word].T / config.tau).softmax(-1)[1])
        layers = []
        for index, tap in enumerate(out.taps):
            tokens = F.normalize(tap[0, 1:] @ method.weight[index].T + method.bias[index], dim=-1)
            grid = (tokens @ texts[word].T / config.tau).T.reshape(1, 2, 5, 5)
            upsampled = F.interpolate(grid, size=(40, 40), mode="bilinear", align_corners=True)
            layers.append(upsampled.softmax(1)[0, 1])
        maps.append(torch.stack(layers))
    return torch.stack(maps), torch.stack(scores)


@pytest.fixture
def plain(backbone) -> Backbone:
    """The backbone with the activation that the published code runs."""
    return backbone.with_activation("gelu")


def test_output_equals_the_equations(backbone, plain, pixels):
    method = method_on(backbone)
    output = method(read(method, pixels))
    maps, scores = slow_output(method, plain, pixels)
    assert maps.std() > 0.02, "the comparison would be empty"
    rendered = render_map(output.logits, method.map_spec)
    torch.testing.assert_close(rendered, maps.mean(1), atol=1e-4, rtol=0)
    torch.testing.assert_close(output.score, scores, atol=1e-4, rtol=0)


def test_losses_and_gradients_equal_the_equations(backbone, plain, pixels, masks, labels):
    method = method_on(backbone)
    terms = method.losses(read(method, pixels), masks, labels)
    assert terms.keys() == {"focal", "dice"}
    torch.stack(list(terms.values())).sum().backward()
    found = [parameter.grad.clone() for parameter in (method.weight, method.bias)]
    method.zero_grad()
    maps, _ = slow_output(method, plain, pixels)
    total = torch.zeros(())
    for layer in maps.unbind(1):
        target = masks.clamp(1e-5, 1 - 1e-5)
        probability = target * layer + (1 - target) * (1 - layer) + 1e-5
        total = total - ((1 - probability) ** 2 * probability.log()).mean()
        for image, mask in zip(layer, masks, strict=True):
            dice = (2 * (image * mask).sum() + 1) / (image.sum() + mask.sum() + 1)
            total = total + (1 - dice) / len(masks)
    total.backward()
    assert float(sum(terms.values()).detach()) == pytest.approx(float(total.detach()), abs=1e-5)
    for gradient, parameter in zip(found, (method.weight, method.bias), strict=True):
        assert gradient.abs().max() > 1e-2
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-5, rtol=1e-3)


def test_tokens_are_the_stream_without_the_final_norm(backbone, pixels):
    method = method_on(backbone)
    visual = method.clip.visual
    read = visual(pixels, taps=(2, 3, 4), interpolation="bicubic", antialias=True)
    features = method.features(pixels)
    assert features.patches.shape == (3, 3, 25, 32) and features.cls.shape == (3, 32)
    for index, tap in enumerate(read.taps):
        torch.testing.assert_close(features.patches[:, index], tap[:, 1:])
    torch.testing.assert_close(features.cls, read.cls)


def test_random_start_is_that_of_linear_layers_and_reproducible(backbone):
    method = method_on(backbone)
    bound = 32**-0.5
    for parameter in (method.weight, method.bias):
        assert 0.8 * bound < parameter.abs().max() <= bound
    assert float(method.weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.05)
    assert torch.equal(method.weight, method_on(backbone).weight)


@pytest.mark.parametrize("score", ["map", "map_and_global"])
def test_a_score_with_the_map_in_it_is_trained(backbone, pixels, masks, labels, score):
    method = method_on(backbone, score=score)
    features = read(method, pixels)
    output = method(features)
    peak = render_map(output.logits, method.map_spec, smooth=False).amax((1, 2))
    whole = method_on(backbone)(features).score
    expected = peak if score == "map" else (peak + whole) / 2
    torch.testing.assert_close(output.score, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(output.terms["map"], peak, atol=1e-6, rtol=0)
    term = method.losses(features, masks, labels)["classify"]
    torch.testing.assert_close(term, F.binary_cross_entropy(expected, labels), atol=1e-5, rtol=0)
    term.backward()
    assert all(p.grad.abs().sum() > 0 for p in (method.weight, method.bias))


def test_text_names_the_object_of_each_image_or_none(backbone, pixels):
    method = method_on(backbone)
    named = method(read(method, pixels))
    again = method(read(method, pixels, ("metal nut", "metal nut", "bottle")))
    assert torch.equal(named.logits[2], again.logits[2]) and not torch.equal(named.logits[0], again.logits[0])
    torch.testing.assert_close(named.logits[1], again.logits[1], atol=1e-5, rtol=1e-5)
    plain = method(read(method, pixels, None)).logits
    unnamed = method_on(backbone, names="object")
    assert torch.equal(unnamed(read(unnamed, pixels)).logits, plain)
    assert not torch.equal(plain, named.logits)


def test_text_met_in_inference_serves_training(backbone, pixels, masks, labels):
    method = method_on(backbone, score="map_and_global")
    with torch.inference_mode():
        method(read(method, pixels))
    torch.stack(list(method.losses(read(method, pixels), masks, labels).values())).sum().backward()
    assert method.weight.grad.abs().sum() > 0


def test_gradients_reach_the_layers_alone_and_only_they_are_saved(backbone, pixels, masks, labels):
    method = method_on(backbone)
    assert set(method.adapter_state()) == {"weight", "bias"}
    torch.stack(list(method.losses(read(method, pixels), masks, labels).values())).sum().backward()
    for name, parameter in method.named_parameters():
        assert (parameter.grad is None) == name.startswith("clip."), name
    other = build("aprilgan", {"tau": 0.05}, backbone)
    other.load_adapter({name: tensor.clone() for name, tensor in method.adapter_state().items()})
    features = read(method, pixels)
    assert torch.equal(method(features).logits, other(features).logits)


def test_overfits_eight_images(backbone):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(8, 3, 40, 40, generator=generator)
    masks, labels = torch.zeros(8, 40, 40), torch.tensor([1.0, 0.0] * 4)
    for index in range(0, 8, 2):
        row, column = 8 * (index % 4), 8 * (index // 2)
        masks[index, row : row + 16, column : column + 8] = 1
        pixels[index, :, row : row + 16, column : column + 8] += 4
    method = build("aprilgan", {"score": "map"}, backbone).train()
    method.reset_parameters(generator)
    features = method.features(pixels)
    optimiser = torch.optim.Adam([method.weight, method.bias], lr=1e-2, betas=(0.5, 0.999))
    history = []
    for _ in range(60):
        loss = torch.stack(list(method.losses(features, masks, labels).values())).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        history.append(float(loss.detach()))
    with torch.no_grad():
        output = method.eval()(features)
        maps = render_map(output.logits, method.map_spec, smooth=False)
    assert history[-1] < 0.6 * history[0]
    assert output.score[labels == 1].min() > output.score[labels == 0].max()
    assert maps[masks == 1].mean() > maps[masks == 0].mean() + 0.3


def test_images_of_a_batch_do_not_influence_each_other(backbone, pixels):
    method = method_on(backbone)
    whole = method(read(method, pixels))
    alone = method(read(method, pixels[1:2], WORDS[1:2]))
    torch.testing.assert_close(whole.logits[1:2], alone.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(whole.score[1:2], alone.score, atol=1e-5, rtol=1e-5)


def test_half_precision_caches_and_bfloat16_come_close(backbone, pixels):
    method = method_on(backbone)
    features = read(method, pixels)
    expected = method(features).logits
    half = ImageFeatures(features.patches.half(), features.cls.half(), features.grid, WORDS)
    assert method(half).logits.dtype == torch.float32
    torch.testing.assert_close(method(half).logits, expected, atol=0.02, rtol=0.02)
    method = method.to(torch.bfloat16)
    output = method(read(method, pixels.bfloat16()))
    torch.testing.assert_close(output.logits.float(), expected, atol=0.2, rtol=0.05)


def test_published_size_activation_and_training():
    with torch.device("meta"):
        found = preset("ViT-L/14@336")
        method = build("aprilgan", None, Backbone(CLIP(found.config), Tokenizer(), found, "meta", found.name))
    assert method.config == AprilGANConfig() and method.clip.config.vision.activation == "gelu"
    count = sum(p.numel() for p in method.parameters() if p.requires_grad)
    assert count == 4 * (1024 * 768 + 768) == METHODS[method.name].parameters
    assert TrainConfig(**method.training_defaults).betas == (0.5, 0.999)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layers": (2, 9)}, r"layers = \(2, 9\) do not all exist"),
        ({"tau": 0}, "tau = 0"),
        ({"tokens": "normed"}, "tokens = 'normed' is no longer a setting .* always takes 'raw'"),
        ({"score": "max"}, "score = 'max'"),
        ({"name": "data"}, "did you mean 'names'"),
    ],
)
def test_impossible_settings_are_refused_at_once_in_one_line(backbone, settings, words):
    with pytest.raises(ConfigError, match=words) as caught:
        build("aprilgan", settings, backbone)
    assert "\n" not in str(caught.value)


def test_settings_are_described_and_survive_a_round_trip():
    assert all(field.description for field in AprilGANConfig.model_fields.values())
    config = AprilGANConfig(layers=(12, 24), score="map")
    assert AprilGANConfig.model_validate_json(config.model_dump_json()) == config
