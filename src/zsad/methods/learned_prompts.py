"""Learnable prompts with deep text tokens on the frozen text tower: AnomalyCLIP's learner for any P prompts.

A prompt is written as a template: words stay fixed, a slot `{name}` stands for learnable tokens ("context"):

    PromptLearner(backbone, ["{normal} object.", "{abnormal} damaged object."],
                  contexts={"normal": 12, "abnormal": 12}, deep=deep_sets(backbone.preset))

`contexts` gives each slot's number of tokens M, or (S, M) for a stack of S contexts of which `{name.0}` .. name
one each; several prompts may use the same slot. All P prompts are one batch of one pass:

    text = learner(tower)                                    (P, D), encoded once as long as nothing changes
    text = learner.encode(tower, contexts={"abnormal": x})   (P, D), x in place of the learned context
    text = learner.encode(tower, contexts={"abnormal": x})   (B, P, D), where x has a leading axis B

Embeddings are not normalised. The tower is an argument, not a submodule: a checkpoint holds the prompts alone.
`learner.contexts[name]` are the parameters (M, D_t) or (S, M, D_t), `learner.deep` those of the deep tokens
(G, J, M, D_t) of G groups of prompts, or None.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from zsad.clip.presets import Preset
from zsad.clip.text import TextTower
from zsad.clip.tokenizer import Tokenizer
from zsad.clip.weights import Backbone
from zsad.errors import ConfigError
from zsad.methods.similarity import full_precision

_SLOT = re.compile(r"\{(\w+)(?:\.(\d+))?\}")


def deep_sets(preset: Preset, *, wanted: int = 8) -> int:
    """Sets of deep text tokens that a backbone's text tower takes, at most `wanted` (AnomalyCLIP has 8)."""
    return max(0, min(wanted, preset.config.text.layers - 1))


class PromptLearner(nn.Module):
    """P prompts with learnable tokens; see the module's text for templates and use.

    Args:
        backbone: its tokenizer reads the templates, its text tower gives the width D_t; neither is kept.
        templates: of the P prompts.
        contexts: for each slot its tokens M, or contexts and tokens (S, M).
        deep: sets J of deep tokens: the j-th replaces positions 1 .. M at the input of text block j + 1, so
            that a tower of T blocks takes T - 1; 0 for none.
        deep_tokens: tokens M of a set.
        deep_groups: for each prompt the group whose deep tokens it has, from 0; default: all have the same.
        deviation: of the normal distribution that `reset_parameters` draws from.
        fuse: makes of the learned contexts by name those, or some of those, that `forward` encodes in their
            place; a function of nothing else.

    Raises:
        ConfigError: an unknown slot, a prompt too long for the tower or too short for its deep tokens, more
            sets than the tower takes.
    """

    deep: nn.Parameter | None
    _words: Tensor
    _index: Tensor
    _ends: Tensor
    _groups: Tensor

    def __init__(
        self,
        backbone: Backbone,
        templates: Sequence[str],
        *,
        contexts: Mapping[str, int | tuple[int, int]],
        deep: int = 0,
        deep_tokens: int = 4,
        deep_groups: Sequence[int] | None = None,
        deviation: float = 0.02,
        fuse: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None,
    ) -> None:
        super().__init__()
        width = backbone.clip.config.text.width
        self.deviation, self.fuse = deviation, fuse
        self._shapes = {
            name: (shape,) if isinstance(shape, int) else shape for name, shape in contexts.items()
        }
        self.contexts = nn.ParameterDict(
            [(name, nn.Parameter(torch.empty(*shape, width))) for name, shape in self._shapes.items()]
        )
        words, index, ends = _layout(templates, self._shapes, backbone.tokenizer)
        _check(backbone, lengths=[end + 1 for end in ends], deep=deep, deep_tokens=deep_tokens)
        groups = [0] * len(templates) if deep_groups is None else list(deep_groups)
        buffers = {"_words": words, "_index": index, "_ends": ends, "_groups": groups}
        for name, values in buffers.items():
            self.register_buffer(name, torch.tensor(values), persistent=False)
        shape = (max(groups) + 1, deep, deep_tokens, width)
        self.register_parameter("deep", nn.Parameter(torch.empty(shape)) if deep else None)
        self._kept: tuple[tuple[object, ...], Tensor] | None = None
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws contexts, in the order given, then deep tokens."""
        tokens = [*self.contexts.values(), *([] if self.deep is None else [self.deep])]
        for parameter in tokens:
            nn.init.normal_(parameter, std=self.deviation, generator=generator)

    def forward(self, tower: TextTower) -> Tensor:
        """Embeddings (P, D) of the prompts as learned, not normalised.

        They are kept as long as no gradient is asked for and neither prompts nor tower change: in evaluation,
        and in training once the prompts are frozen.
        """
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters()):
            return self.encode(tower, contexts=self._fused())
        key = tuple(map(stamp, (*self.parameters(), tower.proj)))
        if self._kept is None or self._kept[0] != key:
            # What is kept may later meet autograd or another precision than the present one.
            with torch.inference_mode(mode=False), torch.no_grad(), full_precision(tower.proj.device):
                self._kept = (key, self.encode(tower, contexts=self._fused()))
        return self._kept[1]

    def encode(
        self, tower: TextTower, *, contexts: Mapping[str, Tensor] | None = None, project: bool = True
    ) -> Tensor:
        """Embeddings (P, D), or (B, P, D) where a given context has a batch axis; not normalised.

        Args:
            tower: of the backbone that the learner was built for.
            contexts: what stands in place of learned contexts: of their shape, or with a leading axis B.
            project: False leaves the tower's projection out: width D_t.
        """
        tokens: dict[str, Tensor] = {**self.contexts, **(contexts or {})}
        # Every context as (B or 1, its tokens, D_t), the axes of a stack joined.
        flat = [x.reshape(-1, math.prod(self._shapes[name]), x.shape[-1]) for name, x in tokens.items()]
        batched = any(x.dim() > len(self._shapes[name]) + 1 for name, x in tokens.items())
        batch, words = max(map(len, flat)), tower.embed(self._words)
        table = torch.cat([x.to(words.dtype).expand(batch, -1, -1) for x in (*flat, words[None])], dim=1)
        text: Tensor = tower(
            table[:, self._index].flatten(0, 1),
            eos=self._ends.repeat(batch),
            deep_tokens=self._deep_rows(batch),
            project=project,
        )
        text = text.to(flat[0].dtype)
        return text.view(batch, len(self._ends), -1) if batched else text

    def _fused(self) -> Mapping[str, Tensor] | None:
        return None if self.fuse is None else self.fuse(dict(self.contexts))

    def _deep_rows(self, batch: int) -> Tensor | None:
        """Deep tokens (J, M, D_t) of all sequences, or (J, batch * P, M, D_t) where groups have their own."""
        if self.deep is None or len(self.deep) == 1:
            return None if self.deep is None else self.deep[0]
        return self.deep[self._groups.repeat(batch)].transpose(0, 1)


def stamp(tensor: Tensor) -> tuple[object, ...]:
    """What changes when a tensor is written, moved, cast or replaced."""
    version = None if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), version, tensor.dtype, tensor.device


def _layout(
    templates: Sequence[str], shapes: Mapping[str, tuple[int, ...]], tokenizer: Tokenizer
) -> tuple[list[int], list[list[int]], list[int]]:
    """Where prompts take their tokens from: a table of all contexts, in order, and then the fixed words.

    Returns:
        Ids (F,) of the fixed words, table rows (P, S) of the prompts, index (P,) of each prompt's EOS.
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
    ends = [len(row) - 1 for row in rows]
    # Behind its end a prompt repeats it; nothing looks there.
    return words, [row + [sos + 1] * (max(ends) + 1 - len(row)) for row in rows], ends


def _slot(name: str, member: str | None, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """Tokens of a slot, and how many tokens of its stack come before them."""
    shape = shapes.get(name, ())
    known = {f"{key}.{i}" if len(s) > 1 else key for key, s in shapes.items() for i in range(s[0])}
    asked = name if member is None else f"{name}.{int(member)}"
    if asked not in known:
        raise ConfigError(f"a prompt has the unknown slot {{{asked}}}; known are {', '.join(sorted(known))}")
    return shape[-1], 0 if member is None else int(member) * shape[-1]


def _check(backbone: Backbone, *, lengths: Sequence[int], deep: int, deep_tokens: int) -> None:
    """ConfigError where the text tower does not take prompts of these lengths with these deep tokens."""
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
