"""The modules that methods name: each can be switched off and given another image's input, and nothing stays behind."""

from __future__ import annotations

from fnmatch import fnmatch

import pytest
import torch

from zsad.methods.base import Method
from zsad.methods.modules import other_image, switched
from zsad.methods.registry import METHODS, build
from zsad.studies.explain.liveness import mean_cosine, spearman

TRAINED = tuple(name for name, entry in METHODS.items() if entry.needs_training)
trained = pytest.mark.parametrize("name", TRAINED)


@pytest.fixture(scope="module")
def method_of(towers):
    """Methods by name in evaluation mode, noise on every tensor of the adapter; left as they were by every test."""
    made: dict[str, Method] = {}

    def get(name: str) -> Method:
        if name not in made:
            method = build(name, None, towers).eval()
            noise = torch.Generator().manual_seed(11)
            state = method.adapter_state().items()
            method.load_adapter({k: t + 0.3 * torch.randn(t.shape, generator=noise) for k, t in state})
            made[name] = method
        return made[name]

    return get


@trained
def test_every_module_that_is_switched_off_changes_the_output_and_comes_back_to_the_bit(
    method_of, pixels, name
):
    method = method_of(name)
    with torch.no_grad():
        features = method.features(pixels)
        before = method(features)
        assert method.paper_modules(), "a trained method names its modules"
        for module_name, module in method.paper_modules().items():
            with switched(method, module.off):
                off = method(features)
            changed = (off.logits - before.logits).abs().max() + (off.score - before.score).abs().max()
            assert changed > 1e-6, module_name
            after = method(features)
            assert torch.equal(after.logits, before.logits), module_name
            assert torch.equal(after.score, before.score), module_name


@trained
def test_every_parameter_that_a_module_names_is_there(method_of, name):
    method = method_of(name)
    parameters = [key for key, _ in method.named_parameters() if not key.startswith("clip.")]
    claimed = [own for module in method.paper_modules().values() for own in module.parameters]
    for own in claimed:
        assert any(fnmatch(key, own) for key in parameters), own


@trained
def test_another_image_s_input_is_that_of_the_image_before(method_of, pixels, name):
    """A batch of one image twice has no other image; of two images each gets what the other one has."""
    method = method_of(name)
    for module_name, module in method.paper_modules().items():
        if not module.by_image:
            continue
        with torch.no_grad():
            twice = method.features(pixels[:1].repeat(2, 1, 1, 1))
            with other_image(method, module.by_image):
                torch.testing.assert_close(method(twice).score, method(twice).score)
            features = method.features(pixels[:2])
            with other_image(method, module.by_image):
                other = method(features)
            back = method(features)
        moved = (other.logits - back.logits).abs().max() + (other.score - back.score).abs().max()
        assert moved > 1e-6, module_name


@trained
def test_internals_have_the_shapes_that_a_comparison_needs(method_of, pixels, name):
    method = method_of(name)
    with torch.no_grad():
        features = method.features(pixels)
        internals, routing = method.internals(features), method(features).routing or {}
    assert internals.text is not None and internals.text.shape[0] in (1, 3)
    torch.testing.assert_close(internals.text.norm(dim=-1), torch.ones(internals.text.shape[:-1]))
    for pool, gram in internals.outputs.items():
        assert gram.shape[-1] == gram.shape[-2] and gram.shape[0] in (
            1,
            *(w.shape[1] for w in routing.values()),
        )
        torch.testing.assert_close(gram, gram.mT, rtol=1e-3, atol=1e-3), pool


def test_a_path_that_leads_nowhere_is_an_error(method_of):
    method = method_of("anomalyclip")
    with pytest.raises(AttributeError, match="nothing"), switched(method, {"prompts.nothing": 0.0}):
        pass


def toy_task(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise (32, 3, 40, 40) on grounds of any colour; every second picture has a patch of one of three colours."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(32, 3, 40, 40, generator=generator) / 2 + torch.randn(
        32, 3, 1, 1, generator=generator
    )
    labels, masks = torch.arange(32) % 2, torch.zeros(32, 40, 40)
    colours = torch.tensor([[3.0, -3, 0], [0, 3, -3], [-3, 0, 3]])
    for index in labels.nonzero().flatten().tolist():
        row, column, colour = torch.randint(0, 3, (3,), generator=generator).tolist()
        place = (slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8))
        masks[index][place] = 1
        pixels[index][:, place[0], place[1]] += colours[colour][:, None, None]
    return pixels, masks, labels


def trained_on_toy_task(method: Method, *, steps: int) -> Method:
    method.reset_parameters(torch.Generator().manual_seed(0))
    pixels, masks, labels = toy_task(0)
    features = method.train().features(pixels)
    for stage in method.stages:
        method.begin_stage(stage.name)
        learned = [
            p for key, p in method.named_parameters() if not key.startswith("clip.") and p.requires_grad
        ]
        optimiser = torch.optim.Adam(learned, lr=0.01)
        for _ in range(steps):
            optimiser.zero_grad()
            terms = method.losses(features, masks, labels)
            torch.stack([term for key, term in terms.items() if not key.startswith("raw_")]).sum().backward()
            optimiser.step()
    method.load_adapter(method.adapter_state())  # all parts are in use again
    return method.eval()


@torch.no_grad()
def test_what_the_bundled_backbone_does_not_show_lives_on_a_random_tower_and_a_toy_task(towers) -> None:
    """MPAMA's experts differ, all are used, zero experts change maps; AdaCLIP's semantic fusion changes the order."""
    for name in ("mpama", "adaclip"):
        with torch.enable_grad():
            method = trained_on_toy_task(build(name, None, towers), steps=50)
        features = method.features(toy_task(1)[0])
        before, modules = method(features), method.paper_modules()
        if name == "mpama":
            internals, weights = method.internals(features), method.token_routing(features)["experts"]
            assert float(mean_cosine(internals.outputs["experts"])) < 0.9
            assert (weights > 0).float().flatten(0, 2).mean(dim=0).min() > 0.02
            with switched(method, modules["zero experts"].off):
                change = method(features).logits - before.logits
            assert change.norm() / before.logits.norm() > 0.05
        else:
            with switched(method, modules["semantic fusion"].off):
                after = method(features).score
            assert spearman(before.score.double().numpy(), after.double().numpy()) < 0.97
