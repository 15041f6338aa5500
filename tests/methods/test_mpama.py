"""MPA and MPAMA against slow readings of their equations, against AnomalyCLIP, and through both stages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from zsad.card import BackboneReference
from zsad.clip.config import preset
from zsad.clip.model import CLIP
from zsad.clip.tokenizer import Tokenizer
from zsad.clip.weights import Backbone
from zsad.datasets.manifest import DataSet
from zsad.errors import ConfigError
from zsad.images.picture import Preprocess
from zsad.methods import mpama
from zsad.methods.anomalyclip import AnomalyCLIPConfig
from zsad.methods.base import ImageFeatures
from zsad.methods.mpama import MPA, MPAMA, MPAConfig, MPAMAConfig
from zsad.methods.registry import build, find
from zsad.nn.filters import render_map
from zsad.train.checkpoint import read_card
from zsad.train.loop import Progress, train
from zsad.train.train_config import TrainConfig
from zsad.train.training_card import CardParts
from zsad.types import Sample


def method_on(backbone: Backbone, name: str = "mpa", *, learned: bool = False, **settings) -> MPA:
    """The method with prompts that differ; `learned`: with updates of its experts, too."""
    method = build(name, settings, backbone)
    generator = torch.Generator().manual_seed(11)
    method.reset_parameters(generator)
    with torch.no_grad():
        for tokens in method.prompts.parameters():
            tokens.mul_(30)
        if learned:
            method.pool.up.normal_(generator=generator)
            method.pool.router.mul_(10)
    return method


def double(method: MPA, features: ImageFeatures) -> ImageFeatures:
    method.double()
    return ImageFeatures(features.patches.double(), features.cls.double(), features.grid)


def losses_of(method: MPA, pixels: Tensor, masks: Tensor, labels: Tensor) -> dict[str, Tensor]:
    return method.losses(method.features(pixels), masks, labels)


def slow_neighbourhood(tokens: Tensor, grid: tuple[int, int], size: int) -> Tensor:
    """Means over the patches of a size x size window that exist, place by place, of tokens (N, D)."""
    rows, columns = grid
    square = tokens.view(rows, columns, -1)
    reach = size // 2
    return torch.stack(
        [
            square[max(0, i - reach) : i + reach + 1, max(0, j - reach) : j + reach + 1].mean((0, 1))
            for i in range(rows)
            for j in range(columns)
        ]
    )


def test_the_maps_of_one_level_are_anomalyclip_s(backbone, pixels, masks, labels):
    for layers in ((4,), (3, 4)):
        reference = build("anomalyclip", {"layers": layers}, backbone)
        method = build("mpa", {"levels": (1,), "layers": layers}, backbone)
        for one in (reference, method):
            one.reset_parameters(torch.Generator().manual_seed(4))
        with torch.no_grad():
            for name, tokens in method.prompts.contexts.items():
                tokens[0] = reference.prompts.contexts[name]
            method.prompts.deep.copy_(reference.prompts.deep)
        features = reference.features(pixels)
        torch.testing.assert_close(method(features).logits, reference(features).logits, atol=1e-5, rtol=0)
        terms, again = reference.losses(features, masks, labels), method.losses(features, masks, labels)
        for name in ("dice", "focal"):
            assert float(terms[name].detach()) == pytest.approx(float(again[name].detach()), abs=1e-6)


def test_levels_equal_the_neighbourhoods_written_out(backbone, pixels):
    method = method_on(backbone, layers=(2, 4))
    features = double(method, method.features(pixels))
    text = F.normalize(method.prompts(method.clip.text), dim=-1).view(4, 2, -1)
    grids = []
    for image in features.patches:
        for tokens in image:
            for pair, size in zip(text[:3], (1, 3, 5), strict=True):
                pooled = F.normalize(slow_neighbourhood(tokens, features.grid, size), dim=-1)
                grids.append((pooled @ pair.T / 0.07).softmax(-1)[:, 1].view(features.grid))
    expected = torch.stack(grids).view(3, 6, *features.grid)
    torch.testing.assert_close(method(features).logits.sigmoid(), expected, atol=1e-10, rtol=0)


def test_the_global_feature_meets_the_maximum_of_all_prompts(backbone, pixels):
    method = method_on(backbone)
    features = double(method, method.features(pixels))
    text = F.normalize(method.prompts.encode(method.clip.text), dim=-1).view(-1, 2, 24)
    assert len(text) == 4
    highest = F.normalize(torch.stack(list(text)).max(dim=0).values, dim=-1)
    logits = F.normalize(features.cls, dim=-1) @ highest.T
    output, probability = method(features), (logits / 0.07).softmax(-1)[:, 1]
    torch.testing.assert_close(output.terms["global"], probability)
    highest_pixel = render_map(output.logits, method.map_spec, smooth=False).amax((1, 2))
    torch.testing.assert_close(output.score, (probability + highest_pixel) / 2)
    torch.testing.assert_close(method.text()[0], text[:3])
    expected = F.cosine_similarity(*torch.cat([text[:3], highest[None]]).unbind(1), dim=-1)
    torch.testing.assert_close(method.state_cosines(), expected)


def test_loss_keeps_the_balance_of_one_map(backbone, pixels, masks, labels):
    method = method_on(backbone)
    features = method.features(pixels)
    terms = method.losses(features, masks, labels)
    grids, score = method(features).logits, method(features).score
    maps = F.interpolate(grids.sigmoid(), (40, 40), mode="bilinear")
    focal = dice = 0.0
    for level in range(3):
        p, m = maps[:, level], masks.clamp(1e-5, 1 - 1e-5)
        pt = m * p + (1 - m) * (1 - p) + 1e-5
        focal += 4 / 3 * (-((1 - pt) ** 2) * pt.log()).mean()
        for a, b in ((p, masks), (1 - p, 1 - masks)):
            dice += 4 / 3 * (1 - (2 * (a * b).sum((1, 2)) + 1) / (a.sum((1, 2)) + b.sum((1, 2)) + 1)).mean()
    torch.testing.assert_close(terms["focal"], focal, atol=1e-5, rtol=0)
    torch.testing.assert_close(terms["dice"], dice, atol=1e-5, rtol=0)
    torch.testing.assert_close(terms["classify"], F.binary_cross_entropy(score, labels), atol=1e-5, rtol=0)


def test_permuting_levels_permutes_grids_and_keeps_the_map(backbone, pixels):
    first, second = method_on(backbone), method_on(backbone, levels=(5, 1, 3))
    order = [2, 0, 1]
    with torch.no_grad():
        for name, tokens in second.prompts.contexts.items():
            tokens.copy_(first.prompts.contexts[name][[*order, 3]])
    features = first.features(pixels)
    one, other = first(features), second(features)
    torch.testing.assert_close(other.logits, one.logits[:, order])
    maps = [render_map(output.logits, first.map_spec) for output in (one, other)]
    torch.testing.assert_close(*maps)
    torch.testing.assert_close(one.score, other.score)


def test_constant_tokens_look_alike_everywhere_borders_included(backbone):
    method = method_on(backbone)
    token = torch.randn(24, generator=torch.Generator().manual_seed(0))
    grids = method(ImageFeatures(token.expand(1, 1, 25, 24), token[None], (5, 5))).logits
    torch.testing.assert_close(grids, grids[..., :1, :1].expand_as(grids), atol=1e-4, rtol=0)


STARTS = [
    {},
    {"frozen_experts": 0, "layers": (2, 4)},
    {"zero_experts": 2, "top_k": 4, "layers": (2, 4), "score": "global"},
    {"token_length": "weighted", "levels": (1,)},
    {"token_length": "weighted", "zero_experts": 0, "top_k": 1},
]


@pytest.mark.parametrize("settings", STARTS, ids=str)
def test_stage_two_starts_with_the_output_of_stage_one_for_any_router(backbone, pixels, settings):
    stage_one = {name: settings[name] for name in settings.keys() & MPAConfig.model_fields.keys()}
    mpa, method = method_on(backbone, **stage_one), method_on(backbone, "mpama", **settings)
    expected = mpa(mpa.features(pixels))
    features = method.features(pixels)
    method.begin_stage("prompts")
    first = method(features)
    assert first.routing is None and method.token_routing(features) == {}
    torch.testing.assert_close(first.logits, expected.logits, atol=1e-5, rtol=0)
    method.begin_stage("experts")
    for seed in range(3):
        with torch.no_grad():
            method.pool.router.normal_(std=3, generator=torch.Generator().manual_seed(seed))
        second = method(features)
        torch.testing.assert_close(second.logits, expected.logits, atol=1e-5, rtol=0)
        torch.testing.assert_close(second.score, expected.score, atol=1e-5, rtol=0)


def test_zero_experts_only_change_how_much_a_token_counts_among_its_neighbours(backbone, pixels):
    method = method_on(backbone, "mpama", token_length="weighted")
    features = double(method, method.features(pixels))
    gates = method.token_routing(features)["experts"]
    assert gates[..., -1].any() and not gates[..., -1].all()
    weight = (1 - gates[..., -1]).unsqueeze(-1)
    tokens = features.patches @ method.clip.visual.proj
    plain = method_on(backbone).double()
    expected = plain(ImageFeatures(tokens * weight, method.project_cls(features.cls), features.grid))
    torch.testing.assert_close(method(features).logits, expected.logits)


def slow_tokens(method: MPAMA, x: Tensor) -> Tensor:
    """Eqs. 4 and 5 expert by expert, of x (B, L, N, D_x)."""
    pool, frozen = method.pool, x @ method.clip.visual.proj
    experts = [frozen]
    for down, up in zip(pool.down, pool.up, strict=True):
        experts.append(frozen + (x @ down.T * 16 / 8) @ up)
    experts.append(torch.zeros_like(frozen))
    pi = torch.stack([(x * row).sum(-1) for row in pool.router[0]], -1).softmax(-1)
    least = pi.sort(descending=True).values[..., 1:2]
    w = torch.where(pi >= least, pi, 0.0)
    w = w / w.sum(-1, keepdim=True)
    mixed = (torch.stack(experts, -1) * w.unsqueeze(-2)).sum(-1)
    return mixed / (1 - w[..., -1:] if method.config.token_length == "kept" else 1)


@pytest.mark.parametrize("length", ["kept", "weighted"])
def test_experts_equal_their_definition(backbone, pixels, length):
    method = method_on(backbone, "mpama", learned=True, token_length=length)
    features = double(method, method.features(pixels))
    tokens, cls, _ = method._joint(features)
    torch.testing.assert_close(tokens, slow_tokens(method, features.patches), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(cls, features.cls @ method.clip.visual.proj)
    gates = method.token_routing(features)["experts"]
    assert gates.shape == (3, 1, 25, 6) and ((gates > 0).sum(-1) == 2).all()
    output = method(features)
    torch.testing.assert_close(output.routing["experts"], gates.mean(2))
    assert method.expert_labels()["experts"][::5] == ("frozen", "zero")
    assert method.expert_embeddings()["experts"].shape[:2] == (1, 6)


def test_stages_teach_one_half_each_and_text_is_encoded_once(backbone, pixels, masks, labels, monkeypatch):
    method = method_on(backbone, "mpama", learned=True).train()
    calls = []
    encode = method.prompts.encode
    monkeypatch.setattr(
        method.prompts, "encode", lambda *args, **more: (calls.append(1), encode(*args, **more))[1]
    )
    assert [(stage.name, stage.share, stage.learning_rate) for stage in method.stages] == [
        ("prompts", 0.75, 1.0),
        ("experts", 0.25, 0.5),
    ]
    assert [
        (stage.share, stage.learning_rate)
        for stage in build("mpama", {"experts_share": 0.4, "experts_rate": 2.0}, backbone).stages
    ] == [(0.6, 1.0), (0.4, 2.0)]
    assert method.config.score == "map_and_global"
    common = {"dice", "focal", "classify"}
    for stage, half, terms in (
        ("prompts", "prompts.", common),
        ("experts", "pool.", common | {"balance"}),
    ):
        method.begin_stage(stage)
        method.zero_grad()
        calls.clear()
        for _ in range(2):
            losses = losses_of(method, pixels, masks, labels)
            sum(losses.values()).backward()
        assert losses.keys() == terms and len(calls) == (2 if stage == "prompts" else 1)
        for name, parameter in method.named_parameters():
            reached = parameter.grad is not None and bool(parameter.grad.any())
            assert reached == name.startswith(half) == parameter.requires_grad, name


def test_experts_change_the_image_score_unless_it_is_the_global_feature_alone(backbone, pixels):
    for score in ("map_and_global", "map", "global"):
        method = method_on(backbone, "mpama", learned=True, score=score)
        features = method.features(pixels)
        with_experts = method(features).score
        method.begin_stage("prompts")
        assert torch.allclose(with_experts, method(features).score, atol=1e-3) == (score == "global")


def test_a_score_without_the_map_teaches_the_experts_nothing_and_is_left_out(backbone, pixels, masks, labels):
    method = method_on(backbone, "mpama", learned=True, score="global")
    method.begin_stage("experts")
    assert losses_of(method, pixels, masks, labels).keys() == {"dice", "focal", "balance"}


def test_a_score_of_the_map_keeps_its_loss_and_balance_adds_one(backbone, pixels, masks, labels):
    method = method_on(backbone, "mpama", learned=True, balance=0.5)
    method.begin_stage("experts")
    terms = losses_of(method, pixels, masks, labels)
    assert terms.keys() == {"dice", "focal", "classify", "balance"}
    assert terms["classify"].requires_grad
    features = method.features(pixels)
    gates = method.token_routing(features)["experts"].flatten(0, 2)
    pi = method.pool.route(features.patches).flatten(0, 2).softmax(-1)
    expected = 0.5 * 6 * ((gates > 0).float().mean(0) / 2 * pi.mean(0)).sum()
    torch.testing.assert_close(terms["balance"], expected)


def test_a_loaded_model_uses_its_pool_whatever_stage_came_before(backbone, pixels):
    trained, other = method_on(backbone, "mpama", learned=True), build("mpama", {}, backbone)
    other.begin_stage("prompts")
    other.load_adapter({name: tensor.clone() for name, tensor in trained.adapter_state().items()})
    features = trained.features(pixels)
    with torch.inference_mode():
        assert torch.equal(trained.eval()(features).logits, other.eval()(features).logits)
    assert not any(name.startswith("clip") for name in trained.adapter_state())


MPA_SWITCHES = [
    {"levels": (1,)},
    {"levels": (1, 5)},
    {"deep_sets": 0},
    {"layers": (2, 4)},
    {"value_value": False},
    {"score": "map"},
    {"score": "global"},
    {"class_word": "metal nut"},
]
MA_SWITCHES = [
    {"zero_experts": 0},
    {"frozen_experts": 0},
    {"learnable_experts": 2},
    {"top_k": 3},
    {"token_length": "weighted"},
    {"rank": 4},
    {"alpha": 4.0},
    {"balance": 0.1},
    {"cls_norm": True},
]


@pytest.mark.parametrize(
    ("name", "settings"),
    [*(("mpa", settings) for settings in MPA_SWITCHES), *(("mpama", settings) for settings in MA_SWITCHES)],
    ids=str,
)
def test_every_setting_runs_trains_and_changes_something(backbone, pixels, masks, labels, name, settings):
    method = method_on(backbone, name, learned=name == "mpama", **settings)
    terms = losses_of(method, pixels, masks, labels)
    sum(terms.values()).backward()
    for parameter_name, parameter in method.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.any())
        assert reached == (not parameter_name.startswith("clip.")), parameter_name
    plain = losses_of(method_on(backbone, name, learned=name == "mpama"), pixels, masks, labels)
    assert (
        any(not torch.equal(plain.get(key, term), term) for key, term in terms.items())
        or terms.keys() != plain.keys()
    )
    output = method(method.features(pixels))
    count = len(method.config.layers) * len(method.config.levels)
    assert output.logits.shape == (3, count, 5, 5) and output.logits.isfinite().all()


def marked_images(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Noise of two kinds side by side; every second image with a bright rectangle, which its mask marks."""
    pixels = torch.randn(count, 3, 40, 40, generator=generator)
    pixels[..., 20:] *= 0.3
    masks = torch.zeros(count, 40, 40)
    masks[0::4, 8:24, 8:16] = masks[2::4, 24:40, 16:32] = 1
    return pixels + 4 * masks[:, None], masks, masks.amax((1, 2))


def trained_briefly(backbone: Backbone, *, alike: bool = False, **settings) -> tuple[MPAMA, list[float]]:
    """The method after 15 steps of each stage, and the losses; `alike`: at first all patches choose alike."""
    generator = torch.Generator().manual_seed(0)
    pixels, masks, labels = marked_images(4, generator)
    method = build("mpama", settings, backbone).train()
    method.reset_parameters(generator)
    features = method.features(pixels)
    if alike:
        with torch.no_grad():
            method.pool.router[0, :2] += features.patches.mean((0, 1, 2))
    history: list[float] = []
    for stage in method.stages:
        method.begin_stage(stage.name)
        learning = [parameter for parameter in method.parameters() if parameter.requires_grad]
        optimiser = torch.optim.Adam(learning, lr=3e-2, betas=(0.5, 0.999))
        for _ in range(15):
            loss = torch.stack(list(method.losses(features, masks, labels).values())).sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            history.append(float(loss.detach()))
    return method.eval(), history


def test_stage_two_learns_what_stage_one_left(backbone):
    history = trained_briefly(backbone, balance=0.0)[1]
    assert history[14] < 0.9 * history[0] and history[29] < 0.8 * history[15]


@torch.no_grad()
def use_of_experts(method: MPAMA) -> tuple[Tensor, Tensor, Tensor]:
    """Of patches of new images: shares in which each expert is chosen and is the only one that speaks, speakers."""
    features = method.features(marked_images(16, torch.Generator().manual_seed(1))[0])
    gates = method.token_routing(features)["experts"].flatten(0, 2)
    speaks = gates[:, : -method.config.zero_experts] > 0
    alone = speaks & (speaks.sum(1, keepdim=True) == 1)
    return (gates > 0).float().mean(0), alone.float().mean(0), speaks.float().sum(1)


def test_after_a_short_training_no_expert_is_dead_or_alone(backbone):
    chosen, alone, speakers = use_of_experts(trained_briefly(backbone)[0])
    assert chosen.min() >= 0.02 and alone.max() <= 0.7
    assert (speakers > 1).float().mean() > 0.5


def test_the_balance_term_brings_back_experts_that_nobody_chose(backbone):
    rarest = [
        float(use_of_experts(trained_briefly(backbone, alike=True, balance=balance)[0])[0].min())
        for balance in (1.0, 0.0)
    ]
    assert rarest[0] > 0.05 and rarest[0] > 2 * rarest[1]


def small_set(root: Path) -> DataSet:
    """Six images of noise, every second one with a bright square that its mask marks."""
    root.mkdir()
    samples = []
    for index in range(6):
        pixels = np.random.default_rng(index).integers(60, 120, (40, 40, 3), dtype=np.uint8)
        marked = np.zeros((40, 40), np.uint8)
        marked[8 : 8 + 3 * index, 10:24] = 255 * (index % 2)
        pixels[marked > 0] = 250
        image, mask = root / f"{index}.png", root / f"{index}_mask.png"
        Image.fromarray(pixels).save(image)
        Image.fromarray(marked).save(mask)
        samples.append(Sample(image, "tile", index % 2, mask if index % 2 else None))
    return DataSet(samples, "folders", root, "noise")


def test_a_run_stopped_in_its_second_stage_goes_on_with_the_same_bits(backbone, tmp_path):
    data, preprocess = small_set(tmp_path / "data"), Preprocess(image_size=(40, 40))
    parts = CardParts(backbone=BackboneReference(name="toy", sha256="ab" * 32), preprocess=preprocess)
    settings = {
        "batch_size": 3,
        "warmup_epochs": 0,
        "learning_rate": 0.01,
        "betas": (0.5, 0.999),
        "amp": "off",
    }

    def run(out: Path, stop: int | None) -> dict[str, Tensor]:
        method = build("mpama", {"levels": (1, 3)}, backbone)

        def progress(now: Progress) -> None:
            if now.stage == "train" and now.done == stop:
                raise KeyboardInterrupt

        config = TrainConfig(epochs=4, **settings)
        train(method, data, config=config, out=out, card_parts=parts, progress=progress)
        return {name: tensor.clone() for name, tensor in method.adapter_state().items()}

    whole = run(tmp_path / "whole", None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", 7)
    resumed = run(tmp_path / "stopped", None)
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert read_card(tmp_path / "stopped" / "model.safetensors").provenance == "re-designed from the abstract"
    log = [json.loads(line) for line in (tmp_path / "stopped" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["lr"] == pytest.approx(0.005)


def test_trainable_counts_on_the_large_backbone():
    with torch.device("meta"):
        clip = CLIP(preset("ViT-L/14@336").config)
        backbone = Backbone(clip, Tokenizer(), preset("ViT-L/14@336"), "meta", "ViT-L/14@336")
        methods = {name: build(name, None, backbone) for name in ("mpa", "mpama")}
    counts = {
        name: sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad)
        for name, method in methods.items()
    }
    assert methods["mpa"].config == MPAConfig() and methods["mpama"].config == MPAMAConfig()
    assert counts["mpa"] == 8 * 12 * 768 + 8 * 4 * 768 == 98_304
    assert counts["mpama"] - counts["mpa"] == 4 * 8 * (1024 + 768) + 6 * 1024 == 63_488
    assert all(find(method.name).parameters == counts[name] for name, method in methods.items())


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("mpa", {"levels": (1, 2)}, r"levels = \(1, 2\) must be odd"),
        ("mpa", {"levels": (3, 3)}, "do not repeat"),
        ("mpa", {"levels": ()}, "levels"),
        ("mpa", {"bridge": "max"}, "bridge = 'max' is no longer a setting .* always takes 'embedding'"),
        ("mpa", {"experts": 2}, "unknown setting 'experts'"),
        ("mpama", {"top_k": 7}, "top_k = 7 exceeds the pool's 6 experts"),
        ("mpama", {"top_k": 1}, "use at least 2"),
        ("mpama", {"rank": 25}, "rank 25 exceeds the width 24"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(backbone, name, settings, words):
    with pytest.raises(ConfigError, match=words) as caught:
        build(name, settings, backbone)
    assert "\n" not in str(caught.value)


def test_every_setting_is_described_and_what_is_inferred_says_so():
    assert all(field.description for field in MPAMAConfig.model_fields.values())
    own = MPAMAConfig.model_fields.keys() - AnomalyCLIPConfig.model_fields.keys()
    assert all("(inferred)" in MPAMAConfig.model_fields[name].description for name in own)
    for name in ("mpa", "mpama"):
        text = find(name).provenance
        assert text == "re-designed from the abstract"
        assert text in (find(name).load().__doc__ or "") and text in (mpama.__doc__ or "")
    again = MPAMAConfig.model_validate_json(MPAMAConfig(levels=(1, 7)).model_dump_json())
    assert again.levels == (1, 7)
