"""AnomalyCLIP against the slow reading of its paper and code, its settings, and what training needs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from zsad.clip.config import preset
from zsad.clip.model import CLIP
from zsad.clip.tokenizer import Tokenizer
from zsad.clip.weights import Backbone
from zsad.errors import ConfigError
from zsad.methods.anomalyclip import AnomalyCLIP, AnomalyCLIPConfig, image_logits
from zsad.methods.base import ImageFeatures
from zsad.methods.registry import build
from zsad.nn.filters import render_map


def method_on(backbone: Backbone, **settings) -> AnomalyCLIP:
    method = build("anomalyclip", settings, backbone)
    method.reset_parameters(torch.Generator().manual_seed(11))
    with torch.no_grad():
        for tokens in method.prompts.parameters():
            tokens.mul_(30)  # else both prompts look alike to a random tower
    return method


def double(method: AnomalyCLIP, features: ImageFeatures) -> ImageFeatures:
    method.double()
    return ImageFeatures(features.patches.double(), features.cls.double(), features.grid)


def slow_probabilities(method: AnomalyCLIP, features: ImageFeatures) -> tuple[Tensor, Tensor]:
    """Maps (B, L, 2, H, W) and logits (B, 2) of the global feature, both states written out."""
    text = F.normalize(method.prompts(method.clip.text), dim=-1)
    batch, layers = features.patches.shape[:2]
    similarity = F.normalize(features.patches, dim=-1) @ text.T / 0.07
    grids = similarity.softmax(-1).view(batch * layers, *features.grid, 2).permute(0, 3, 1, 2)
    size = method.config.image_size
    maps = F.interpolate(grids, size=(size, size), mode="bilinear", align_corners=False)
    return maps.view(batch, layers, 2, size, size), F.normalize(features.cls, dim=-1) @ text.T / 0.07


def slow_losses(maps: Tensor, image: Tensor, masks: Tensor, labels: Tensor) -> Tensor:
    """CE + 4 sum over layers (Focal + Dice of the abnormal + Dice of the normal channel), channel by channel."""
    total = F.cross_entropy(image, labels.long())
    for layer in range(maps.shape[1]):
        both = maps[:, layer]
        onehot = torch.stack([1 - masks, masks], dim=1).clamp(1e-5, 1 - 1e-5)
        pt = (onehot * both).sum(1) + 1e-5
        total = total + 4 * (-((1 - pt) ** 2) * pt.log()).mean()
        for channel, target in ((1, masks), (0, 1 - masks)):
            dice = 0.0
            for p, m in zip(both[:, channel], target, strict=True):
                dice += 1 - (2 * (p * m).sum() + 1) / (p.sum() + m.sum() + 1)
            total = total + 4 * dice / len(masks)
    return total


@pytest.mark.parametrize("settings", [{}, {"layers": (2, 4)}])
def test_output_and_loss_equal_the_equations(backbone, pixels, masks, labels, settings):
    method = method_on(backbone, **settings)
    features = double(method, method.features(pixels))
    maps, image = slow_probabilities(method, features)
    output = method(features)
    rendered = render_map(output.logits, method.map_spec, smooth=False)
    torch.testing.assert_close(rendered, maps[:, :, 1].mean(1), atol=1e-6, rtol=0)
    torch.testing.assert_close(output.score, image.softmax(-1)[:, 1])
    torch.testing.assert_close(output.terms["global"], output.score)
    terms = method.losses(features, masks, labels)
    assert terms.keys() == {"dice", "focal", "classify"}
    expected, found = slow_losses(maps, image, masks.double(), labels), sum(terms.values())
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    inputs = list(method.prompts.parameters())
    for pair in zip(*(torch.autograd.grad(loss, inputs) for loss in (found, expected)), strict=True):
        assert pair[1].abs().max() > 0
        torch.testing.assert_close(*pair, atol=1e-9, rtol=1e-6)


def test_features_are_of_the_value_value_branch_and_the_global_one_is_not_normed(backbone, pixels):
    method = method_on(backbone)
    assert method.config.layers == (4,) and method.config.deep_sets == 2
    visual, features = backbone.clip.visual, method.features(pixels)
    read = visual(pixels, taps=(4,), value_value_from=2, interpolation="bilinear")
    assert torch.equal(features.patches[:, 0], visual.ln_post(read.taps[0][:, 1:]) @ visual.proj)
    assert torch.equal(features.cls, read.cls @ visual.proj)


def test_prompts_are_the_papers(backbone):
    method, tokenizer = method_on(backbone), backbone.tokenizer
    learner = method.prompts
    assert learner.contexts["normal"].shape == learner.contexts["abnormal"].shape == (12, 16)
    assert learner.deep.shape == (1, 2, 4, 16)
    words = [24 + number for number in range(len(learner._words))]
    spelled = dict(zip(words, learner._words.tolist(), strict=True))
    normal, abnormal = learner._rows
    assert normal[1:13] == list(range(12)) and abnormal[1:13] == list(range(12, 24))
    rest = [tokenizer.decode([spelled[row] for row in prompt[13:]]) for prompt in (normal, abnormal)]
    assert rest == ["object .", "damaged object ."]


@pytest.mark.parametrize("score", ["global", "map_and_global", "map"])
def test_every_score_is_what_it_says_and_is_trained(backbone, pixels, masks, labels, score):
    method = method_on(backbone, score=score)
    features = double(method, method.features(pixels))
    maps, image = slow_probabilities(method, features)
    highest, probability = maps[:, :, 1].mean(1).amax((1, 2)), image.softmax(-1)[:, 1]
    expected = {"global": probability, "map": highest, "map_and_global": (highest + probability) / 2}[score]
    torch.testing.assert_close(method(features).score, expected, atol=1e-6, rtol=0)
    classify = method.losses(features, masks, labels)["classify"]
    torch.testing.assert_close(classify, F.binary_cross_entropy(expected, labels.double()), atol=1e-5, rtol=0)
    classify.backward()
    assert all(tokens.grad.any() for tokens in method.prompts.parameters())


def test_cross_entropy_teaches_even_where_the_probability_is_rounded(backbone, masks):
    method = method_on(backbone, tau_prime=1e-4)
    features = method.features(torch.randn(3, 3, 40, 40, generator=torch.Generator().manual_seed(0)))
    certain = method(features).score.detach().round()
    terms = method.losses(features, masks, 1 - certain)
    assert float(terms["classify"].detach()) > 20
    terms["classify"].backward()
    assert method.prompts.contexts["normal"].grad.any()


def test_image_logits_take_the_largest_of_several_pairs():
    cls = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    text = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.6, 0.8], [0.8, 0.6]]])
    expected = torch.tensor([0.8 - 1.0, 1.0 - 0.8]) / 0.5
    torch.testing.assert_close(image_logits(cls, text, temperature=0.5), expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"layers": (2, 3, 4)},
        {"value_value": False},
        {"deep_sets": 0},
        {"deep_sets": 1, "deep_tokens": 2},
        {"context_tokens": 5},
        {"class_word": "printed circuit board"},
        {"tau": 0.2},
        {"tau_prime": 0.01},
        {"local_weight": 1.0},
        {"map_order": "before_softmax"},
        {"cls_norm": True},
        {"train_map_size": 20},
    ],
    ids=lambda settings: "-".join(map(str, settings)),
)
def test_every_setting_runs_trains_and_changes_something(backbone, pixels, labels, settings):
    method = method_on(backbone, **settings)
    masks = torch.zeros(3, *method.train_map_size)
    masks[0, 3:12, 3:12] = 1
    features = method.features(pixels)
    terms = method.losses(features, masks, labels)
    sum(terms.values()).backward()
    for name, parameter in method.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.any())
        assert reached == (not name.startswith("clip.")), name
    default = method_on(backbone)
    plain = default.losses(default.features(pixels), F.interpolate(masks[None], (40, 40))[0], labels)
    assert any(not torch.equal(plain[name], terms[name]) for name in plain), "the setting had no effect"
    assert method(features).logits.shape == (3, len(method.config.layers), 5, 5)


def test_overfits_eight_images(backbone):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(8, 3, 40, 40, generator=generator)
    masks, labels = torch.zeros(8, 40, 40), torch.tensor([1.0, 0.0] * 4)
    for index in range(0, 8, 2):
        row, column = 8 * (index % 4), 8 * (index // 2)
        masks[index, row : row + 16, column : column + 8] = 1
        pixels[index, :, row : row + 16, column : column + 8] += 4
    method = build("anomalyclip", {"score": "map_and_global"}, backbone).train()
    method.reset_parameters(generator)
    features = method.features(pixels)
    tokens = [parameter for parameter in method.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(tokens, lr=2e-2, betas=(0.5, 0.999))
    history = []
    for _ in range(60):
        loss = torch.stack(list(method.losses(features, masks, labels).values())).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        history.append(float(loss.detach()))
    with torch.inference_mode():
        maps = render_map(method.eval()(features).logits, method.map_spec, smooth=False)
    assert history[-1] < 0.75 * history[0]
    assert maps[masks == 1].mean() > maps[masks == 0].mean() + 0.25


def test_trainable_count_of_the_paper():
    with torch.device("meta"):
        clip = CLIP(preset("ViT-L/14@336").config)
        backbone = Backbone(clip, Tokenizer(), preset("ViT-L/14@336"), "meta", "ViT-L/14@336")
        method = build("anomalyclip", None, backbone)
    assert method.config == AnomalyCLIPConfig()
    count = sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad)
    assert count == 2 * 12 * 768 + 8 * 4 * 768 == 43_008


def test_state_round_trip_is_exact(backbone, pixels):
    first, second = method_on(backbone).eval(), build("anomalyclip", {}, backbone).eval()
    features = first.features(pixels)
    with torch.inference_mode():
        assert not torch.equal(first(features).logits, second(features).logits)
        second.load_adapter({name: tensor.clone() for name, tensor in first.adapter_state().items()})
        assert torch.equal(first(features).logits, second(features).logits)


def test_images_do_not_influence_each_other_and_bfloat16_runs(backbone, pixels):
    method = method_on(backbone).eval()
    whole, alone = method(method.features(pixels)), method(method.features(pixels[1:2]))
    torch.testing.assert_close(whole.logits[1:2], alone.logits, atol=1e-4, rtol=1e-4)
    half = method.to(torch.bfloat16)
    output = half(half.features(pixels.bfloat16()))
    torch.testing.assert_close(output.logits.float(), whole.logits, atol=0.5, rtol=0.1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"deep_sets": 3}, "3 sets of deep text tokens"),
        ({"context_tokens": 75}, "does not fit the text tower's 77"),
        ({"context_tokens": 1, "deep_tokens": 5}, "would replace the end"),
        ({"layers": (1, 4)}, "value-value"),
        ({"score": "mean"}, "score = 'mean'"),
        ({"tau": 0}, "tau = 0"),
        ({"contexts": 3}, "did you mean 'context_tokens'"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(backbone, settings, words):
    with pytest.raises(ConfigError, match=words) as caught:
        build("anomalyclip", settings, backbone)
    assert "\n" not in str(caught.value)


def test_every_setting_is_described():
    assert all(field.description for field in AnomalyCLIPConfig.model_fields.values())
