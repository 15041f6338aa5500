"""WinCLIP against loops over windows, patches and sentences, every setting, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from sentences_oracles import slow_text
from torch.nn import functional as F

from zsad.clip.weights import Backbone
from zsad.errors import ConfigError
from zsad.methods.base import ImageFeatures
from zsad.methods.registry import build
from zsad.methods.winclip import WinCLIP, WinCLIPConfig
from zsad.nn.filters import render_map
from zsad.nn.windows import window_table
from zsad.prompts import published_prompts

WORDS = ("bottle", "metal nut", "bottle")


def slow_windows(backbone: Backbone, pixels: torch.Tensor, size: int) -> dict[int, torch.Tensor]:
    """Embedding of one image's windows by their corner: every window alone, every block on all its tokens."""
    visual = backbone.clip.visual
    tokens, (height, width) = visual.embed(pixels[None], interpolation="bilinear")
    found = {}
    for top in range(height - size + 1):
        for left in range(width - size + 1):
            own = [(top + row) * width + left + column for row in range(size) for column in range(size)]
            x = torch.cat([tokens[:, :1], *(tokens[:, 1 + patch : 2 + patch] for patch in own)], dim=1)
            for block in visual.blocks:
                x = block(x)
            found[top * width + left] = visual.ln_post(x[0, 0]) @ visual.proj
    return found


def whole_image(backbone: Backbone, pixels: torch.Tensor) -> torch.Tensor:
    visual = backbone.clip.visual
    return visual.project(visual(pixels, interpolation="bilinear").cls)


def probability(embedding: torch.Tensor, text: torch.Tensor, tau: float) -> torch.Tensor:
    return (F.normalize(embedding, dim=-1) @ text.T / tau).softmax(-1)[1]


def slow_map(
    backbone: Backbone, pixels: torch.Tensor, text: torch.Tensor, tau: float, *, sizes=(2, 3), side: int = 5
):
    """Eqs. 1 and 3 as they are printed, for one image of side x side patches: the map, and the image's score."""
    whole = probability(whole_image(backbone, pixels[None])[0], text, tau)
    result = torch.empty(side**2)
    windows = {size: slow_windows(backbone, pixels, size) for size in sizes}
    for patch in range(side**2):
        row, column = divmod(patch, side)
        scales = [whole]
        for size, embeddings in windows.items():
            scores = [
                probability(embedding, text, tau)
                for corner, embedding in embeddings.items()
                if 0 <= row - corner // side < size and 0 <= column - corner % side < size
            ]
            scales.append(len(scores) / sum(1 / score for score in scores))
        result[patch] = len(scales) / sum(1 / score for score in scales)
    return result.view(side, side), whole


@pytest.mark.parametrize(("paper", "counts"), [("winclip", (7 * 22, 4 * 22)), ("aprilgan", (7 * 35, 5 * 35))])
def test_published_sentences_name_the_object_once_and_differ(paper, counts):
    for sentences, count in zip(published_prompts(paper, "zebra"), counts, strict=True):
        assert len(set(sentences)) == len(sentences) == count
        assert all(text.count("zebra") == 1 and "{" not in text for text in sentences)


def method_on(backbone: Backbone, **settings) -> WinCLIP:
    method = build("winclip", settings, backbone)
    assert isinstance(method, WinCLIP)
    return method


def read(method: WinCLIP, pixels: torch.Tensor, words: tuple[str, ...] | None = WORDS) -> ImageFeatures:
    features = method.features(pixels)
    features.object_names = words
    return features


def test_features_are_every_window_alone_at_its_corner(backbone, pixels):
    method = method_on(backbone, chunk=7)
    features = method.features(pixels)
    assert features.patches.shape == (3, 2, 25, 24) and features.grid == (5, 5)
    for image in range(3):
        for index, size in enumerate((2, 3)):
            expected = torch.zeros(25, 24)
            for corner, embedding in slow_windows(backbone, pixels[image], size).items():
                expected[corner] = embedding
            torch.testing.assert_close(features.patches[image, index], expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(features.cls, whole_image(backbone, pixels), atol=1e-5, rtol=0)


def test_output_equals_the_equations(backbone, pixels):
    method = method_on(backbone, tau=0.02)
    output = method(read(method, pixels))
    texts = [slow_text(backbone, word, "winclip") for word in WORDS]
    found = [slow_map(backbone, image, text, 0.02) for image, text in zip(pixels, texts, strict=True)]
    grids, scores = torch.stack([grid for grid, _ in found]), torch.stack([score for _, score in found])
    assert grids.std() > 0.02, "the comparison would be empty"
    torch.testing.assert_close(output.logits[:, 0].sigmoid(), grids, atol=1e-4, rtol=0)
    torch.testing.assert_close(output.score, scores, atol=1e-4, rtol=0)
    maps = F.interpolate(grids[:, None], size=(40, 40), mode="bilinear")[:, 0]
    torch.testing.assert_close(render_map(output.logits, method.map_spec), maps, atol=1e-4, rtol=0)


def test_sentences_may_be_averaged_as_they_are(backbone, pixels):
    method = method_on(backbone, tau=0.02, sentence_mean="raw")
    output = method(read(method, pixels))
    texts = [slow_text(backbone, word, "winclip", raw=True) for word in WORDS]
    scores = [
        probability(whole_image(backbone, image[None])[0], text, 0.02)
        for image, text in zip(pixels, texts, strict=True)
    ]
    torch.testing.assert_close(output.score, torch.stack(scores), atol=1e-4, rtol=0)
    plain = method_on(backbone, tau=0.02)
    assert not torch.allclose(output.score, plain(read(plain, pixels)).score, atol=1e-4)


def test_windows_are_shares_of_the_side(backbone):
    config = WinCLIPConfig(window_unit="share")
    assert config.sizes((15, 15)) == (2, 3) and config.sizes((15, 40)) == (2, 3)
    assert config.sizes((37, 37)) == (5, 7), "13 and 19 per cent of a side of 518 pixels"
    pixels = torch.randn(1, 3, 80, 80, generator=torch.Generator().manual_seed(2))
    method = method_on(backbone, tau=0.02, image_size=80, window_unit="share", scales=(3, 6))
    output = method(read(method, pixels, WORDS[:1]))
    text = slow_text(backbone, WORDS[0], "winclip")
    grid, score = slow_map(backbone, pixels[0], text, 0.02, sizes=(2, 4), side=10)
    torch.testing.assert_close(output.logits[0, 0].sigmoid(), grid, atol=1e-4, rtol=0)
    torch.testing.assert_close(output.score[0], score, atol=1e-4, rtol=0)


def test_chunks_change_nothing(backbone, pixels):
    expected = method_on(backbone).features(pixels)
    for chunk in (1, 16, 10_000):
        found = method_on(backbone, chunk=chunk).features(pixels)
        torch.testing.assert_close(found.patches, expected.patches, atol=1e-5, rtol=1e-5)


def test_a_window_sees_its_patches_alone(backbone, pixels):
    method = method_on(backbone)
    before = method.features(pixels[:1])
    changed = pixels[:1].clone()
    changed[..., 16:24, 24:32] += 2  # the patch of row 2, column 3
    after = method.features(changed)
    for index, size in enumerate((2, 3)):
        table = window_table((5, 5), size)
        moved = (after.patches - before.patches)[0, index].abs().amax(-1) > 1e-4
        assert {int(c) for c in moved.nonzero()} == {int(w[0]) for w in table if 13 in w}
    assert not torch.allclose(before.cls, after.cls, atol=1e-4)


def test_a_stride_takes_some_of_the_windows(backbone, pixels):
    every, some = (method_on(backbone, stride=stride) for stride in (1, 2))
    features = some.features(pixels)
    taken = features.patches.abs().amax(-1) > 0
    assert taken.sum(-1).tolist() == [[9, 4]] * 3
    expected = every.features(pixels).patches
    torch.testing.assert_close(features.patches[taken], expected[taken], atol=1e-5, rtol=1e-5)
    output = some(read(some, pixels))
    assert output.logits.shape == (3, 1, 5, 5) and torch.isfinite(output.logits).all()


def test_text_names_the_object_of_each_image_or_none(backbone, pixels):
    method = method_on(backbone)
    named = method(read(method, pixels)).score
    again = method(read(method, pixels, ("metal nut", "metal nut", "bottle"))).score
    assert named[2] == again[2] and named[0] != again[0]
    torch.testing.assert_close(named[1], again[1], atol=1e-6, rtol=1e-6)
    plain = method(read(method, pixels, None)).score
    unnamed = method_on(backbone, names="object")
    assert torch.equal(unnamed(read(unnamed, pixels)).score, plain) and not torch.equal(plain, named)


def test_scores_are_of_the_image_the_map_or_both(backbone, pixels):
    scores = {}
    for score in ("global", "map", "map_and_global"):
        method = method_on(backbone, score=score)
        output = method(read(method, pixels))
        scores[score] = output.score
    peak = render_map(output.logits, method.map_spec, smooth=False).amax((1, 2))
    torch.testing.assert_close(scores["map"], peak, atol=1e-6, rtol=0)
    torch.testing.assert_close(scores["map_and_global"], (peak + scores["global"]) / 2, atol=1e-6, rtol=0)
    torch.testing.assert_close(output.terms["map"], peak, atol=1e-6, rtol=0)
    assert torch.equal(output.terms["global"], scores["global"])


def test_images_of_a_batch_do_not_influence_each_other(backbone, pixels):
    method = method_on(backbone)
    whole = method(read(method, pixels))
    alone = method(read(method, pixels[1:2], WORDS[1:2]))
    torch.testing.assert_close(whole.logits[1:2], alone.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(whole.score[1:2], alone.score, atol=1e-5, rtol=1e-5)


def test_rectangles_have_rectangular_grids(backbone):
    method = method_on(backbone)
    features = method.features(torch.randn(2, 3, 24, 48, generator=torch.Generator().manual_seed(1)))
    assert features.grid == (3, 6) and features.patches.shape == (2, 2, 18, 24)
    assert method(features).logits.shape == (2, 1, 3, 6)
    with pytest.raises(ConfigError, match="does not fit a grid of 2 x 6"):
        method.features(torch.zeros(1, 3, 16, 48))


def test_probabilities_near_zero_stay_finite_in_half_precision(backbone, pixels):
    exact = method_on(backbone, tau=0.005)
    features = read(exact, pixels)
    half = ImageFeatures(features.patches.half(), features.cls.half(), features.grid, WORDS)
    torch.testing.assert_close(exact(half).logits, exact(features).logits, atol=0.1, rtol=0.02)
    plain = method_on(backbone)
    expected = plain(read(plain, pixels)).logits
    output = plain.to(torch.bfloat16)(read(plain.to(torch.bfloat16), pixels.bfloat16()))
    assert torch.isfinite(output.logits).all() and expected.std() > 0.1
    torch.testing.assert_close(output.logits.float(), expected, atol=0.1, rtol=0.05)


def test_has_nothing_to_train(backbone, pixels, masks, labels):
    method = method_on(backbone)
    with pytest.raises(ConfigError, match="nothing to train"):
        method.losses(method.features(pixels), masks, labels)
    assert method.adapter_state() == {} and not any(p.requires_grad for p in method.parameters())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"image_size": 16}, "window of 3 x 3 patches does not fit a grid of 2 x 2"),
        ({"scales": (2, 6)}, "window of 6 x 6 patches does not fit a grid of 5 x 5"),
        ({"scales": (3, 2)}, "must rise"),
        ({"scales": ()}, "scales"),
        ({"scales": (0, 2)}, "must rise"),
        ({"scales": (1, 3), "stride": 2}, "at least stride = 2"),
        ({"stride": 0}, "stride = 0"),
        ({"chunk": 0}, "chunk = 0"),
        ({"tau": 0}, "tau = 0"),
        ({"value_value": True}, "value_value = True is impossible"),
        ({"names": "none"}, "names = 'none'"),
        ({"scale": (2,)}, "did you mean 'scales'"),
    ],
)
def test_impossible_settings_are_refused_at_once_in_one_line(backbone, settings, words):
    with pytest.raises(ConfigError, match=words) as caught:
        build("winclip", settings, backbone)
    assert "\n" not in str(caught.value)


def test_settings_are_described_and_survive_a_round_trip():
    assert all(field.description for field in WinCLIPConfig.model_fields.values())
    config = WinCLIPConfig(scales=(2,))
    assert WinCLIPConfig.model_validate_json(config.model_dump_json()) == config
