"""Learnable prompts with deep text tokens on the frozen text tower: AnomalyCLIP's learner for any P prompts.

A prompt is written as a template: words stay fixed, a slot `{name}` stands for learnable tokens ("context"):

    PromptLearner(backbone, ["{normal} object.", "{abnormal} damaged object."],
                  contexts={"normal": 12, "abnormal": 12}, deep=8)

`contexts` gives each slot's number of tokens M, or (S, M) for a stack of S contexts of which `{name.0}` .. name
one each; several prompts may use the same slot. All P prompts are one batch of one pass:

    text = learner(tower)                                    (P, D), encoded once as long as nothing changes
    text = learner.encode(tower, contexts={"abnormal": x})   (P, D), x in place of the learned context
    text = learner.encode(tower, contexts={"abnormal": x})   (B, P, D), where x has a leading axis B
    text = learner.encode(tower, contexts={"abnormal": x}, prompts=range(1, P))   all but the first

Prompts that begin alike are packed into one sequence, so that what they share is computed once.

Embeddings are not normalised. The tower is an argument, not a submodule: a checkpoint holds the prompts alone.
`learner.contexts[name]` are the parameters (M, D_t) or (S, M, D_t), `learner.deep` those of the deep tokens
(1, J, M, D_t), or None.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from zsad.clip.config import Preset
from zsad.clip.model import TextTower, tree_layout
from zsad.clip.tokenizer import Tokenizer
from zsad.clip.weights import Backbone
from zsad.errors import ConfigError
from zsad.methods.settings import MethodConfig
from zsad.methods.similarity import TextCache

_SLOT = re.compile(r"\{(\w+)(?:\.(\d+))?\}")
_WORTH_PACKING = 0.75
"""Prompts are packed if that leaves at most this share of their tokens: a mask costs a little, too."""


class DeepPromptConfig(MethodConfig):
    """The fields of methods whose prompts have deep tokens."""

    deep_sets: int = Field(
        default=8, ge=0, description="Text blocks, from the second on, that get deep tokens of their own."
    )
    deep_tokens: int = Field(default=4, ge=1, description="Deep tokens of a text block.")

    @classmethod
    def _defaults_on(cls, preset: Preset) -> dict[str, Any]:
        """Return those of every method, and as many sets as the text tower takes, at most AnomalyCLIP's 8."""
        sets = max(0, min(8, preset.config.text.layers - 1))
        return {**super()._defaults_on(preset), "deep_sets": sets}


class PromptLearner(nn.Module):
    """P prompts with learnable tokens; see the module's text for templates and use.

    Args:
        backbone: its tokenizer reads the templates, its text tower gives the width D_t; neither is kept.
        templates: of the P prompts.
        contexts: for each slot its tokens M, or contexts and tokens (S, M).
        deep: sets J of deep tokens: the j-th replaces positions 1 .. M at the input of text block j + 1, so
            that a tower of T blocks takes T - 1; 0 for none.
        deep_tokens: tokens M of a set.

    Raises:
        ConfigError: an unknown slot, a prompt too long for the tower or too short for its deep tokens, more
            sets than the tower takes.
    """

    deep: nn.Parameter | None
    _words: Tensor

    def __init__(
        self,
        backbone: Backbone,
        templates: Sequence[str],
        *,
        contexts: Mapping[str, int | tuple[int, int]],
        deep: int = 0,
        deep_tokens: int = 4,
    ) -> None:
        super().__init__()
        width = backbone.clip.config.text.width
        self._shapes = {
            name: (shape,) if isinstance(shape, int) else shape for name, shape in contexts.items()
        }
        self.contexts = nn.ParameterDict(
            [(name, nn.Parameter(torch.empty(*shape, width))) for name, shape in self._shapes.items()]
        )
        words, self._rows = _layout(templates, self._shapes, backbone.tokenizer)
        _check(backbone, lengths=[len(row) for row in self._rows], deep=deep, deep_tokens=deep_tokens)
        self.register_buffer("_words", torch.tensor(words), persistent=False)
        self.register_parameter(
            "deep", nn.Parameter(torch.empty(1, deep, deep_tokens, width)) if deep else None
        )
        self._text_cache = TextCache()
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw contexts, in the order given, then deep tokens: normal with deviation 0.02."""
        tokens = [*self.contexts.values(), *([] if self.deep is None else [self.deep])]
        for parameter in tokens:
            nn.init.normal_(parameter, std=0.02, generator=generator)

    def forward(self, tower: TextTower) -> Tensor:
        """Embeddings (P, D) of the prompts as learned, not normalised.

        They are cached as long as no gradient is slot for and neither prompts nor tower change: in evaluation,
        and in training once the prompts are frozen.
        """
        sources = (*self.parameters(), tower.proj)
        return self._text_cache.get(lambda: self.encode(tower), sources=sources)

    def encode(
        self,
        tower: TextTower,
        *,
        contexts: Mapping[str, Tensor] | None = None,
        prompts: Sequence[int] | None = None,
    ) -> Tensor:
        """Embeddings (P, D), or (B, P, D) where a given context has a batch axis; not normalised.

        Args:
            tower: of the backbone that the learner was built for.
            contexts: what stands in place of learned contexts: of their shape, or with a leading axis B.
            prompts: which of the prompts are encoded, by number; default: all.
        """
        tokens: dict[str, Tensor] = {**self.contexts, **(contexts or {})}
        # Every context as (B or 1, its tokens, D_t), the axes of a stack joined.
        flat = [x.reshape(-1, math.prod(self._shapes[name]), x.shape[-1]) for name, x in tokens.items()]
        batches = [x.shape[0] for name, x in tokens.items() if x.dim() > len(self._shapes[name]) + 1]
        batch, words = batches[0] if batches else 1, tower.embed(self._words)
        table = torch.cat([x.to(words.dtype).expand(batch, -1, -1) for x in (*flat, words[None])], dim=1)
        chosen = tuple(range(len(self._rows)) if prompts is None else prompts)
        text = self._run(tower, table, chosen).to(flat[0].dtype)
        return text if batches else text[0]

    def _run(self, tower: TextTower, table: Tensor, chosen: tuple[int, ...]) -> Tensor:
        """Chosen prompts (B, Q, D) of a table (B, F, D_t) of all tokens, packed where that spares enough."""
        rows = [self._rows[number] for number in chosen]
        prefix, batch, device = self._shared(rows), table.shape[0], table.device
        deep = None if self.deep is None else self.deep[0]
        if prefix:
            layout = tree_layout(prefix, tuple(len(row) - prefix for row in rows)).to(device)
            index = torch.tensor(
                [*rows[0][:prefix], *(i for row in rows for i in row[prefix:])], device=device
            )
            return tower.forward_packed(
                table[:, index],
                positions=layout.positions,
                mask=layout.mask,
                eos=layout.ends,
                deep_tokens=deep,
            )
        length = max(map(len, rows))
        # Behind its end a prompt repeats it; nothing attends to that.
        index = torch.tensor([row + row[-1:] * (length - len(row)) for row in rows], device=device)
        ends = torch.tensor([len(row) - 1 for row in rows], device=device).repeat(batch)
        text: Tensor = tower(table[:, index].flatten(0, 1), eos=ends, deep_tokens=deep)
        return torch.unflatten(text, 0, (-1, len(rows)))

    def _shared(self, rows: Sequence[Sequence[int]]) -> int:
        """Tokens of the common beginning with which prompts are packed; 0 where they are not."""
        # No prompt ends in the prefix, for each needs a branch of its own.
        alike = [len(set(tokens)) == 1 for tokens in zip(*(row[:-1] for row in rows), strict=False)]
        prefix = len(list(itertools.takewhile(bool, alike)))
        replaced = 0 if self.deep is None else self.deep.shape[2]
        if prefix < 1 + replaced:
            return 0
        packed = prefix + sum(len(row) - prefix for row in rows)
        return prefix if packed <= _WORTH_PACKING * len(rows) * max(map(len, rows)) else 0


def _layout(
    templates: Sequence[str], shapes: Mapping[str, tuple[int, ...]], tokenizer: Tokenizer
) -> tuple[list[int], list[list[int]]]:
    """Layout of the prompts' tokens in a table of all contexts, in order, and then the fixed words.

    Returns:
        Ids (F,) of the fixed words, and for each prompt the table's rows from SOS to EOS.
    """
    counts = [math.prod(shape) for shape in shapes.values()]
    starts = dict(zip(shapes, itertools.accumulate(counts, initial=0), strict=False))
    words, rows = [tokenizer.sos, tokenizer.eos], []
    sos = sum(counts)
    for template in templates:
        texts, *slots = (_SLOT.split(template)[part::3] for part in range(3))
        row = [sos]
        for text, name, member in itertools.zip_longest(texts, *slots):
            ids = tokenizer.encode(text)[1:-1]
            row += range(sos + len(words), sos + len(words) + len(ids))
            words += ids
            if name is not None:
                size, start = _slot(name, member, shapes)
                row += range(starts[name] + start, starts[name] + start + size)
        rows.append([*row, sos + 1])
    return words, rows


def _slot(name: str, member: str | None, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """Tokens of a slot, and how many tokens of its stack come before them."""
    shape = shapes.get(name, ())
    slots = {f"{key}.{i}" if len(s) > 1 else key for key, s in shapes.items() for i in range(s[0])}
    slot = name if member is None else f"{name}.{int(member)}"
    if slot not in slots:
        raise ConfigError(f"a prompt has the unknown slot {{{slot}}}; known are {', '.join(sorted(slots))}")
    return shape[-1], 0 if member is None else int(member) * shape[-1]


def _check(backbone: Backbone, *, lengths: Sequence[int], deep: int, deep_tokens: int) -> None:
    """Raise ConfigError where the text tower does not take prompts of these lengths with these deep tokens."""
    text = backbone.clip.config.text
    if max(lengths) > text.context_length:
        raise ConfigError(
            f"a prompt of {max(lengths)} tokens does not fit the text tower's {text.context_length}; use fewer "
            f"learnable tokens or a shorter class_word"
        )
    if deep >= max(1, text.layers):
        raise ConfigError(
            f"{deep} sets of deep text tokens need more than the {text.layers} blocks of the text tower of "
            f"{backbone.name}; use at most {max(0, text.layers - 1)}"
        )
    if deep and deep_tokens + 1 >= min(lengths):
        raise ConfigError(
            f"{deep_tokens} deep text tokens would replace the end of a prompt of {min(lengths)} tokens; use at "
            f"most {min(lengths) - 2}, or longer prompts"
        )
