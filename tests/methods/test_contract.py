"""What every method promises to the trainer, the cache, the checkpoint, the detector and `zsad explain`."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from zsad.card import BackboneReference, Card
from zsad.clip.model import CLIP, TextTower
from zsad.errors import CheckpointError, ConfigError
from zsad.images.picture import Preprocess
from zsad.methods.base import ImageFeatures, Method
from zsad.methods.registry import METHODS, build
from zsad.nn.filters import render_map
from zsad.train.checkpoint import build_method, load_checkpoint, save_checkpoint
from zsad.train.feature_cache import FeatureCache
from zsad.train.features import feature_settings
from zsad.train.schedule import Schedule
from zsad.train.train_config import TrainConfig

NAMES = tuple(METHODS)
TRAINED = tuple(name for name, entry in METHODS.items() if entry.needs_training)
ROUTED = tuple(name for name, entry in METHODS.items() if entry.routes)
NAMED = ("winclip", "moeclip", "aprilgan", "adaclip")  # their text names the object by default
OF_AN_IMAGE = {"promptmoe": 4, "wmoeclip": 2}  # experts that an image uses
OF_A_PATCH = {"mpama": 2, "moeclip": 2}  # experts that a patch uses

every = pytest.mark.parametrize("name", NAMES)
trained = pytest.mark.parametrize("name", TRAINED)
routed = pytest.mark.parametrize("name", ROUTED)


@pytest.fixture(scope="module")
def method_of(towers):
    """Methods by name in evaluation mode, with an adapter far from its start: nothing is zero. Not to be changed."""
    made: dict[str, Method] = {}

    def get(name: str) -> Method:
        if name not in made:
            made[name] = moved(build(name, None, towers)).eval()
        return made[name]

    return get


def moved(method: Method) -> Method:
    """The method with noise on all tensors of its adapter, so that no part of it is switched off by a zero."""
    noise = torch.Generator().manual_seed(11)
    method.reset_parameters(torch.Generator().manual_seed(12))
    method.load_adapter(
        {
            key: tensor + 0.05 * torch.randn(tensor.shape, generator=noise)
            for key, tensor in method.adapter_state().items()
        }
    )
    return method


def near(found: Tensor, expected: Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


def part(features: ImageFeatures, row: int) -> ImageFeatures:
    own = slice(row, row + 1)
    return replace(features, patches=features.patches[own], cls=features.cls[own])


def total_of(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack([term for name, term in losses.items() if not name.startswith("raw_")]).sum()


@every
def test_features_have_the_shapes_that_a_cache_holds_and_no_gradients(method_of, pixels, name):
    method = method_of(name)
    features = method.features(pixels)
    batch, layers, tokens, width = features.patches.shape
    assert batch == 3 and layers >= 1 and features.grid == (5, 5) and tokens in (25, 26)
    assert features.cls.shape == (3, width)
    assert not features.patches.requires_grad and not features.cls.requires_grad
    assert features.object_names is None and torch.isfinite(features.patches).all()


@every
def test_output_is_finite_and_in_range_and_a_map_is_rendered(method_of, pixels, name):
    method = method_of(name)
    output = method(method.features(pixels))
    assert output.logits.shape[0] == 3 and output.logits.shape[2:] == (5, 5)
    assert output.score.shape == (3,) and output.score.dtype == torch.float32
    assert torch.isfinite(output.logits).all() and output.logits.std() > 1e-3 and output.score.std() > 0
    assert ((output.score >= 0) & (output.score <= 1)).all()
    for term in (output.terms or {}).values():
        assert term.shape == (3,) and ((term >= 0) & (term <= 1)).all()
    maps = render_map(output.logits, method.map_spec)
    assert maps.shape == (3, 40, 40) and maps.min() >= 0 and maps.max() <= 1


@every
def test_images_of_a_batch_do_not_influence_each_other(method_of, pixels, name):
    method = method_of(name)
    whole = method(method.features(pixels))
    for row in range(3):
        alone = method(method.features(pixels[row : row + 1]))
        near(alone.score[0], whole.score[row])
        near(alone.logits[0], whole.logits[row])


@every
def test_an_image_without_any_structure_has_a_finite_output(method_of, name):
    method = method_of(name)
    output = method(method.features(torch.zeros(1, 3, 40, 40)))
    assert torch.isfinite(output.logits).all() and 0 <= float(output.score.detach()) <= 1


@every
def test_features_survive_the_cache(method_of, pixels, tmp_path, name):
    method = method_of(name)
    fresh = method.features(pixels)
    cache = FeatureCache(tmp_path, key_parts=feature_settings(method))
    cache.add(["a", "b", "c"], fresh)
    kept = cache.read(["a", "b", "c"])
    assert kept.patches.shape == fresh.patches.shape and kept.grid == fresh.grid
    expected, found = method(fresh), method(kept)
    near(found.score, expected.score, atol=3e-3)
    near(found.logits.sigmoid(), expected.logits.sigmoid(), atol=3e-3)


@every
def test_features_depend_on_nothing_that_the_key_of_a_cache_lacks(method_of, pixels, name):
    method, tried = method_of(name), 0
    expected = method.features(pixels[:1])
    for field, info in type(method.config).model_fields.items():
        if field in method.feature_fields:
            continue
        for value in others(getattr(method.config, field), info.annotation):
            try:
                config = type(method.config)(**{**method.config.model_dump(), field: value})
            except ConfigError:
                continue
            changed = copy.copy(method)
            changed.config = config
            found = changed.features(pixels[:1])
            assert torch.equal(found.patches, expected.patches), field
            assert torch.equal(found.cls, expected.cls), field
            tried += 1
    assert tried >= 8


def others(value: Any, annotation: Any) -> list[Any]:
    """Some values that a setting does not have now."""
    choices = [choice for choice in get_args(annotation) if not isinstance(choice, type)]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, str):
        return [choice for choice in choices if choice != value] or ["brain scan"]
    if isinstance(value, int | float):
        return [value + 1, value / 2]
    if isinstance(value, tuple):
        return [value[1:], (*value, value[-1] + 2)]
    return [True, False, 8] if value is None else []


def test_methods_that_share_a_cache_have_the_same_features(method_of, pixels):
    groups: dict[str, list[str]] = {}
    for name in NAMES:
        method = method_of(name)
        groups.setdefault(repr((method.feature_kind, feature_settings(method))), []).append(name)
    shared = [names for names in groups.values() if len(names) > 1]
    assert any({"mpa", "anomalyclip"} <= set(names) for names in shared)
    for first, *rest in shared:
        expected = method_of(first).features(pixels)
        for name in rest:
            found = method_of(name).features(pixels)
            assert torch.equal(found.patches, expected.patches) and torch.equal(found.cls, expected.cls)


@every
def test_words_reach_the_text_of_methods_that_name_the_object_and_of_no_other(method_of, pixels, name):
    method = method_of(name)
    plain = method.features(pixels)
    mixed = replace(plain, object_names=("metal nut", "brain", "metal nut"))
    output, unnamed = method(mixed), method(plain)
    assert (getattr(method.config, "names", "object") == "data") == (name in NAMED)
    if name not in NAMED:
        assert torch.equal(output.logits, unnamed.logits) and torch.equal(output.score, unnamed.score)
        return
    assert torch.equal(method(replace(plain, object_names=("object",) * 3)).logits, unnamed.logits)
    for row, word in enumerate(mixed.object_names):
        own = method(replace(part(plain, row), object_names=(word,)))
        near(own.logits[0], output.logits[row])
        near(own.score[0], output.score[row])
        assert not torch.allclose(output.logits[row], unnamed.logits[row], atol=1e-4)


OF_THE_IMAGE = {
    # Methods and settings whose text an image changes: how many sequences of text an image then costs.
    ("promptmoe", ()): 3,
    ("wmoeclip", ()): 2,
    ("faprompt", ()): 1,
    ("adaclip", ()): 12,
}
CONSTANT = [
    ("promptmoe", (("prompting", "static"),)),
    ("wmoeclip", (("use_ctds", False),)),
    ("adaclip", (("prompts", "static"),)),
    ("adaclip", (("prompted", "vision"),)),
]


@pytest.mark.parametrize(
    ("name", "settings"),
    [*((name, ()) for name in NAMES), *CONSTANT],
    ids=lambda own: own if isinstance(own, str) else "-".join(str(value) for _, value in own),
)
def test_text_that_no_image_changes_is_encoded_once(towers, pixels, monkeypatch, name, settings):
    sequences: list[int] = []
    run = TextTower._run

    def counted(tower: TextTower, x: Tensor, *args: Any, **more: Any) -> Tensor:
        sequences.append(len(x))
        return run(tower, x, *args, **more)

    monkeypatch.setattr(TextTower, "_run", counted)
    method = moved(build(name, dict(settings), towers)).eval()
    features = replace(method.features(pixels), object_names=("metal nut", "brain", "metal nut"))
    with torch.inference_mode():
        first = method(features)
    assert sequences, "every method meets text"
    sequences.clear()
    with torch.no_grad():
        again = method(features)
        # Another batch, in another order, of classes that have been seen.
        for row in (2, 0):
            method(replace(part(features, row), object_names=(features.object_names[row],)))
    near(again.logits, first.logits, atol=1e-5)
    assert sum(sequences) == 5 * OF_THE_IMAGE.get((name, settings), 0)


@every
def test_routing_is_what_the_registry_says_and_explain_reads(method_of, pixels, name):
    method = method_of(name)
    features = method.features(pixels)
    routing, tokens = method(features).routing or {}, method.token_routing(features)
    assert bool(routing) == (name in ROUTED) and set(tokens) <= set(routing)
    assert bool(tokens) == (name in OF_A_PATCH)
    for pool, weights in routing.items():
        assert weights.dim() == 3 and len(weights) == 3 and not (weights < 0).any()
        near(weights.sum(dim=-1), torch.ones(weights.shape[:2]), atol=1e-5)
        if name in OF_AN_IMAGE:
            assert ((weights > 0).sum(dim=-1) == OF_AN_IMAGE[name]).all()
        else:
            own = tokens[pool]
            assert own.shape == (3, weights.shape[1], 25, weights.shape[2])
            assert ((own > 0).sum(dim=-1) == OF_A_PATCH[name]).all()
            near(own.sum(dim=-1), torch.ones(own.shape[:3]), atol=1e-5)
            near(own.mean(dim=2), weights, atol=1e-5)
    for pool, labels in method.expert_labels().items():
        assert len(labels) == routing[pool].shape[2] == len(set(labels))
    for pool, vectors in method.expert_embeddings().items():
        assert vectors.shape[:2] == routing[pool].shape[1:] and not vectors.requires_grad
    assert set(method.expert_embeddings()) == set(routing)


@trained
def test_losses_teach_all_that_a_stage_trains_and_nothing_of_the_backbone(
    towers, pixels, masks, labels, name
):
    method = moved(build(name, None, towers)).train()
    names = {key for key, _ in method.named_parameters() if not key.startswith("clip.")}
    learned = set()
    for stage in method.stages:
        method.begin_stage(stage.name)
        torch.manual_seed(3)
        losses = method.losses(method.features(pixels), masks, labels)
        assert all(key.isidentifier() and term.dim() == 0 for key, term in losses.items())
        assert all(math.isfinite(float(term.detach())) for term in losses.values()), losses
        assert {"dice", "focal"} <= losses.keys()
        method.zero_grad(set_to_none=True)
        total_of(losses).backward()
        for key, parameter in method.named_parameters():
            if not parameter.requires_grad:
                assert parameter.grad is None, key
                continue
            assert key in names and parameter.grad is not None, key
            assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().sum() > 0, key
            learned.add(key)
    assert learned == names and all(method.rate_of(key) > 0 for key in names)
    terms = method.term_weights
    assert set(terms.values()) <= set(type(method.config).model_fields) and set(terms) <= losses.keys()


@trained
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_a_last_batch_of_one_image_trains(towers, masks, name, label):
    method = build(name, None, towers).train()
    method.begin_stage(method.stages[-1].name)
    # Without structure at that: all patches are alike, and no mask is set on a normal image.
    features = method.features(torch.zeros(1, 3, 40, 40))
    total = total_of(method.losses(features, masks[:1] * label, torch.tensor([label])))
    total.backward()
    gradients = [parameter.grad for parameter in method.parameters() if parameter.grad is not None]
    assert math.isfinite(float(total.detach())) and gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@every
def test_the_backbone_stays_frozen_and_in_evaluation_mode(method_of, towers, name):
    method = copy.copy(method_of(name))
    for mode in (True, False):
        assert method.train(mode) is method and method.training is mode
        assert not any(module.training for module in method.clip.modules())
    assert method.clip.training is False and not any(p.requires_grad for p in method.clip.parameters())
    assert not any(key.startswith("clip.") for key in method.adapter_state())


@trained
def test_training_settings_of_the_paper_are_possible(method_of, name):
    method = method_of(name)
    config = TrainConfig(**method.training_defaults)
    schedule = Schedule.of(method.stages, config, steps_per_epoch=2)
    assert schedule.ends[-1] == config.epochs
    assert method.train_map_size == (40, 40)


def card_of(method: Method, **changes: Any) -> Card:
    size = (method.config.image_size,) * 2
    values = {
        "method": method.name,
        "config": method.config.model_dump(mode="json"),
        "backbone": BackboneReference(name="toy", sha256="toy"),
        "preprocess": Preprocess(image_size=size).to_dict(),
        "map_spec": method.map_spec,
    }
    return Card(**{**values, **changes})


@every
def test_a_checkpoint_gives_the_same_method_back_and_no_other_takes_it(
    method_of, towers, pixels, tmp_path, name
):
    method = method_of(name)
    expected = method(method.features(pixels))
    path = save_checkpoint(tmp_path / "whole", method, card_of(method))
    restored, _ = build_method(path, backbone=towers)
    assert type(restored) is type(method) and restored.config == method.config and not restored.training
    found = restored(restored.features(pixels))
    assert torch.equal(found.logits, expected.logits) and torch.equal(found.score, expected.score)
    small = save_checkpoint(tmp_path / "half", method, card_of(method), half=True)
    halved = build_method(small, backbone=towers)[0]
    near(halved(halved.features(pixels)).score, expected.score, atol=5e-3)
    other = method_of(NAMES[NAMES.index(name) - 1])
    with pytest.raises(CheckpointError, match=f"holds a model of method '{name}'"):
        load_checkpoint(path, other)
    if method.adapter_state():
        with pytest.raises(CheckpointError, match="is it of another method") as caught:
            copy.copy(other).load_adapter(method.adapter_state())
        assert "\n" not in str(caught.value)


@every
def test_a_start_is_of_the_generator_alone(towers, name):
    methods = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        methods.append(build(name, None, towers))
    moved(methods[1])  # what was there before must not matter
    before, states = torch.get_rng_state(), []
    for method, seed in ((methods[0], 7), (methods[1], 7), (methods[0], 8)):
        method.reset_parameters(torch.Generator().manual_seed(seed))
        states.append({key: tensor.clone() for key, tensor in method.adapter_state().items()})
    assert torch.equal(torch.get_rng_state(), before)
    first, again, other = states
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not first or any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        *[(name, {"layers": (9,)}, r"layers = \(9,\) do not all exist") for name in NAMES],
        *[(name, {"imagesize": 40}, "did you mean 'image_size'") for name in NAMES],
        *[(name, {"image_size": 7}, "image_size = 7") for name in NAMES],
        ("promptmoe", {"top_k": 9}, "top_k = 9 exceeds the 8 experts; lower it or add experts"),
        ("wmoeclip", {"top_k": 5}, "top_k = 5 exceeds the 4 experts; lower it or add experts"),
        ("moeclip", {"top_k": 5}, "top_k = 5 exceeds the 4 experts; lower it or add experts"),
        ("mpama", {"top_k": 7}, "top_k = 7 exceeds the pool's 6 experts; lower it or add experts"),
        ("mpama", {"zero_experts": 2}, "nothing but the 2 zero experts.*use at least 3"),
        ("mpama", {"rank": 25}, "rank 25 exceeds the width 24 of the experts; lower it"),
        ("moeclip", {"rank": 9}, "rank = 9 exceeds the 8 features.*lower the rank"),
        ("moeclip", {"rank": 33, "fofs": False}, "rank = 33 exceeds the width 32.*lower the rank"),
        ("promptmoe", {"heads": 3}, "heads = 3 do not divide the text width 16; use a divisor"),
        ("wmoeclip", {"heads": 7}, "heads = 7 do not divide the width 24; use a divisor"),
        ("winclip", {"scales": (6,)}, "6 x 6 patches does not fit a grid of 5 x 5; use smaller windows"),
        ("moeclip", {"windows": (1, 7)}, "7 x 7 patches does not fit a grid of 5 x 5; use smaller windows"),
        ("mpa", {"levels": (1, 7)}, "7 x 7 patches does not fit a grid of 5 x 5; use smaller windows"),
        ("mpama", {"levels": (1, 7)}, "7 x 7 patches does not fit a grid of 5 x 5; use smaller windows"),
    ],
)
def test_impossible_settings_are_refused_at_construction(towers, name, settings, words):
    with pytest.raises(ConfigError, match=words) as caught:
        build(name, settings, towers)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1500


@every
def test_images_smaller_than_a_patch_are_refused_at_construction(towers, name):
    vision = towers.clip.config.vision.model_copy(update={"image_size": 64, "patch_size": 16})
    config = towers.clip.config.model_copy(update={"vision": vision})
    preset = towers.preset.model_copy(update={"config": config})
    coarse = replace(towers, clip=CLIP(config), preset=preset)
    with pytest.raises(
        ConfigError, match=r"image_size = 9 is smaller than one 16-pixel patch.*default is 40"
    ):
        build(name, {"image_size": 9}, coarse)


@every
@pytest.mark.parametrize("size", [8, 24])
def test_very_small_images_work_or_are_refused_at_once(towers, name, size):
    """Grids of 1 x 1 and 3 x 3 patches."""
    try:
        method = build(name, {"image_size": size}, towers)
    except ConfigError as error:
        assert "\n" not in str(error)
        return
    features = method.features(torch.ones(2, 3, size, size))
    output = method(features)
    assert torch.isfinite(output.logits).all() and torch.isfinite(output.score).all()
    assert torch.isfinite(render_map(output.logits, method.map_spec)).all()
    if name in TRAINED:
        losses = method.losses(features, torch.ones(2, size, size), torch.ones(2))
        assert math.isfinite(float(total_of(losses).detach()))


@every
def test_a_retired_setting_loads_at_its_value_and_is_refused_at_another(towers, name):
    config_class = METHODS[name].load().config_class
    now = config_class.for_backbone(towers.preset)
    then = {**now.model_dump(mode="json"), **config_class.retired}
    assert config_class.model_validate(then) == now and build(name, then, towers).config == now
    assert not config_class.retired.keys() & config_class.model_fields.keys()
    for setting, value in config_class.retired.items():
        with pytest.raises(ConfigError, match=f"'other' is no longer a setting .*{value!r}") as caught:
            build(name, {setting: "other"}, towers)
        assert setting in str(caught.value) and "\n" not in str(caught.value)


def test_a_checkpoint_of_a_retired_alternative_says_so(towers, tmp_path):
    method = build("promptmoe", None, towers)
    card = Card(
        method="promptmoe",
        config={**method.config.model_dump(mode="json"), "context": "per_layer"},
        backbone=BackboneReference(name="toy", sha256="toy"),
        preprocess={},
        map_spec=method.map_spec,
    )
    path = save_checkpoint(tmp_path / "model", method, card)
    with pytest.raises(CheckpointError, match="context = 'per_layer' is no longer a setting"):
        build_method(path, backbone=towers)
    path = save_checkpoint(
        tmp_path / "same", method, card.model_copy(update={"config": {**card.config, "context": "shared"}})
    )
    loaded, read = build_method(path, backbone=towers)
    assert loaded.config == method.config and read.config["context"] == "shared"
