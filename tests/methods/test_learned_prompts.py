"""Learnable prompts against prompts encoded one by one, at full length, with tokens replaced by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zsad.clip.model import TextTower
from zsad.clip.weights import Backbone
from zsad.errors import ConfigError
from zsad.methods.learned_prompts import DeepPromptConfig, PromptLearner

TEMPLATES = ("{n} object.", "{n} {a.1} damaged metal nut.", "flawless {a.0}.")


def learner_on(backbone: Backbone, **settings) -> PromptLearner:
    settings = {"contexts": {"n": 5, "a": (2, 4)}, "deep": 2, "deep_tokens": 3, **settings}
    learner = PromptLearner(backbone, TEMPLATES, **settings)
    learner.reset_parameters(torch.Generator().manual_seed(2))
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.mul_(30)  # else all prompts look alike to a random tower
    return learner.double()


def slow(backbone: Backbone, pieces: list[str | Tensor], deep: Tensor | None) -> Tensor:
    """One prompt at the tower's full length of 77, blocks applied one after the other."""
    tower, tokenizer = backbone.clip.text, backbone.tokenizer
    rows = [tower.embed(torch.tensor([tokenizer.sos]))]
    for piece in pieces:
        if isinstance(piece, str):
            piece = tower.embed(torch.tensor(tokenizer.encode(piece)[1:-1]))
        rows.append(piece)
    rows.append(tower.embed(torch.tensor([tokenizer.eos])))
    x = torch.cat(rows)
    end = len(x) - 1
    padding = tower.embed(torch.zeros(77 - len(x), dtype=torch.long))
    x = (torch.cat([x, padding]) + tower.position_embedding)[None]
    mask = torch.ones(77, 77, dtype=torch.bool).tril()
    for number, block in enumerate(tower.blocks):
        if deep is not None and 1 <= number <= len(deep):
            x = torch.cat([x[:, :1], deep[number - 1][None], x[:, 1 + deep.shape[1] :]], dim=1)
        x = block(x, mask=mask)
    return tower.ln_final(x)[0, end] @ tower.proj


@pytest.mark.parametrize("deep", [0, 1, 2])
def test_all_prompts_in_one_pass_equal_each_alone(backbone, deep):
    learner, clip = learner_on(backbone, deep=deep), backbone.clip.double()
    n, a = learner.contexts["n"], learner.contexts["a"]
    assert (learner.deep is None) == (deep == 0)
    deep_tokens = None if learner.deep is None else learner.deep[0]
    expected = [
        slow(backbone, [n, "object."], deep_tokens),
        slow(backbone, [n, a[1], "damaged metal nut."], deep_tokens),
        slow(backbone, ["flawless", a[0], "."], deep_tokens),
    ]
    forms = learner(clip.text), torch.stack(expected)
    torch.testing.assert_close(*forms, atol=1e-12, rtol=0)
    probe = torch.randn(forms[0].shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    inputs = list(learner.parameters())
    for pair in zip(*(torch.autograd.grad((form * probe).sum(), inputs) for form in forms), strict=True):
        assert pair[1].abs().max() > 0
        torch.testing.assert_close(*pair, atol=1e-12, rtol=1e-9)


ALIKE = ("{n} object.", *(f"{{n}} {{a.{k}}} damaged metal nut." for k in range(4)))


@pytest.mark.parametrize(("deep", "replaced"), [(0, 1), (2, 3), (2, 5), (2, 6)])
@pytest.mark.parametrize("chosen", [None, range(1, 5), (3, 1)])
def test_prompts_that_begin_alike_are_packed_and_equal_each_alone(backbone, deep, replaced, chosen, packings):
    learner = PromptLearner(backbone, ALIKE, contexts={"n": 5, "a": (4, 3)}, deep=deep, deep_tokens=replaced)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.mul_(30)
    learner, clip = learner.double(), backbone.clip.double()
    draw = torch.Generator().manual_seed(3)
    batch = torch.randn(2, 4, 3, 16, dtype=torch.float64, generator=draw).requires_grad_()
    text = learner.encode(clip.text, contexts={"a": batch}, prompts=chosen)
    # Deep tokens that reach beyond what the prompts share keep them apart; two long prompts share half.
    assert bool(packings) == (replaced <= 5 and (chosen is None or len(chosen) > 2))
    numbers = range(5) if chosen is None else chosen
    own = None if learner.deep is None else learner.deep[0]

    def alone(row: Tensor, number: int) -> Tensor:
        n = learner.contexts["n"]
        pieces = [n, row[number - 1], "damaged metal nut."] if number else [n, "object."]
        return slow(backbone, pieces, own)

    expected = torch.stack([torch.stack([alone(row, number) for number in numbers]) for row in batch])
    torch.testing.assert_close(text, expected, atol=1e-12, rtol=0)
    probe = torch.randn(text.shape, generator=draw, dtype=torch.float64)
    inputs = [learner.contexts["n"], batch, *([] if learner.deep is None else [learner.deep])]
    for pair in zip(
        *(torch.autograd.grad((form * probe).sum(), inputs) for form in (text, expected)), strict=True
    ):
        torch.testing.assert_close(*pair, atol=1e-12, rtol=1e-9)


@pytest.fixture
def packings(monkeypatch) -> list[int]:
    """Tokens of every packed sequence that the text tower sees."""
    seen: list[int] = []
    plain = TextTower.forward_packed

    def counted(tower: TextTower, embeddings: Tensor, **more) -> Tensor:
        seen.append(embeddings.shape[1])
        return plain(tower, embeddings, **more)

    monkeypatch.setattr(TextTower, "forward_packed", counted)
    return seen


def test_packing_spares_half_of_faprompts_tokens(backbone, packings):
    learner = PromptLearner(
        backbone,
        ["{n} object.", *(f"{{n}} {{a.{k}}} damaged object." for k in range(10))],
        contexts={"n": 5, "a": (10, 2)},
        deep=2,
    )
    with torch.no_grad():
        learner.encode(backbone.clip.text, prompts=range(1, 11))
        assert packings == [6 + 10 * 6]  # of 10 * 12
        learner(backbone.clip.text)
        assert packings[1:] == [6 + 3 + 10 * 6]


def test_given_contexts_take_the_place_of_learned_ones(backbone):
    learner, tower = learner_on(backbone), backbone.clip.double().text
    batch = torch.randn(4, 2, 4, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    text = learner.encode(tower, contexts={"a": batch})
    assert text.shape == (4, 3, 24)
    for row, own in zip(text, batch, strict=True):
        torch.testing.assert_close(row, learner.encode(tower, contexts={"a": own}), atol=1e-12, rtol=0)
    torch.testing.assert_close(text[:, 0], learner(tower)[0].expand(4, -1), atol=1e-12, rtol=0)
    assert not torch.allclose(text[0, 1], text[1, 1])
    with pytest.raises(KeyError):
        learner.encode(tower, contexts={"b": batch})


def test_every_learned_token_gets_a_gradient(backbone):
    learner, tower = learner_on(backbone), backbone.clip.double().text
    (learner(tower) * torch.randn(24, dtype=torch.float64)).sum().backward()
    # Deep tokens take the place of the first ones only behind the first block.
    assert all(parameter.grad.abs().amin() > 0 for parameter in learner.parameters())


def test_text_is_encoded_once_until_something_changes(backbone, monkeypatch):
    learner, tower = learner_on(backbone).float(), backbone.clip.text
    calls = []
    encode = learner.encode
    monkeypatch.setattr(learner, "encode", lambda *args, **more: (calls.append(1), encode(*args, **more))[1])
    learner(tower), learner(tower)
    assert len(calls) == 2, "with gradients every pass is its own"
    with torch.inference_mode():
        first = learner(tower)
        assert learner(tower) is first and len(calls) == 3
    with torch.no_grad():
        assert learner(tower) is first
        learner.deep.add_(0.5)
        changed = learner(tower)
        assert len(calls) == 4 and not torch.equal(changed, first)
        learner.reset_parameters()
        assert not torch.equal(learner(tower), changed) and len(calls) == 5
        learner.double(), tower.double()
        assert learner(tower).dtype == torch.float64 and len(calls) == 6
    learner.requires_grad_(False).train()
    kept = learner(tower)
    assert learner(tower) is kept and len(calls) == 6, "frozen prompts are encoded once in training, too"
    weight = torch.ones(24, dtype=torch.float64, requires_grad=True)
    (kept @ weight).sum().backward()  # what was kept can meet autograd
    assert weight.grad.any()


def test_checkpoints_hold_the_tokens_alone_in_a_fixed_order(backbone):
    assert list(learner_on(backbone).state_dict()) == ["deep", "contexts.n", "contexts.a"]
    assert list(learner_on(backbone, deep=0).state_dict()) == ["contexts.n", "contexts.a"]
    again = PromptLearner(backbone, TEMPLATES, contexts={"n": 5, "a": (2, 4)})
    again.reset_parameters(torch.Generator().manual_seed(2))
    expected = torch.empty(5, 16).normal_(std=0.02, generator=torch.Generator().manual_seed(2))
    assert torch.equal(again.contexts["n"], expected)


def test_deep_sets_fit_the_tower(backbone):
    assert DeepPromptConfig.for_backbone(backbone.preset).deep_sets == 2
    assert DeepPromptConfig.for_backbone(backbone.preset, deep_sets=1).deep_sets == 1


@pytest.mark.parametrize(
    ("templates", "settings", "words"),
    [
        (["{n} object."], {"deep": 3}, "3 sets.*at most 2"),
        (["{n} object."], {"contexts": {"n": 80}}, "does not fit the text tower's 77"),
        (
            ["{n}."],
            {"deep": 1, "deep_tokens": 4},
            "4 deep text tokens would replace the end of a prompt of 5",
        ),
        (["{m} object."], {}, "unknown slot {m}; known are n"),
        (["{n.0} object."], {}, "unknown slot {n.0}"),
        (["{n} object."], {"contexts": {"n": (2, 3)}}, "unknown slot {n}; known are n.0, n.1"),
        (["{n.2} object."], {"contexts": {"n": (2, 3)}}, "unknown slot {n.2}"),
    ],
)
def test_impossible_prompts_are_refused_in_one_line(backbone, templates, settings, words):
    with pytest.raises(ConfigError, match=words) as caught:
        PromptLearner(backbone, templates, **{"contexts": {"n": 2}, **settings})
    assert "\n" not in str(caught.value)
