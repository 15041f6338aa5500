"""The named modules of a method, each with what switches it off: what `zsad explain --alive` asks of a model.

    PaperModule("b = 0", off={"vae": None}, parameters=("vae.*",), by_image=("vae.mean",))

`off` names what stands elsewhere while a module is switched off, by its path below the method:

* a parameter or buffer with a number or a tensor: it has these values, `{"refine.fusion.weight": 0.0}`;
* `config.NAME`: the setting has this value, `{"config.fusion": "none"}`;
* anything else: the attribute has this value; None takes a submodule out.

`*` stands for every entry of a list of modules, `{"experts.*.up": 0.0}`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class PaperModule:
    """Named module of a method.

    Attributes:
        means: what the method does while it is switched off, in a few words or as an equation.
        off: what stands elsewhere then; see the module's text.
        parameters: names of its parameters; `*` stands for any letters.
        by_image: submodules whose output (B, ...) follows the image: they may be given that of another image.
        text: it acts on text; with `by_image`, it makes text follow the image.
    """

    means: str
    off: Mapping[str, Any]
    parameters: tuple[str, ...] = ()
    by_image: tuple[str, ...] = ()
    text: bool = False


@dataclass(slots=True)
class Internals:
    """Values inside a method for a batch, beside its output.

    Attributes:
        text: (B, ..., D) embeddings of length one that images meet; (1, ..., D) where no image changes them; None
            without text.
        outputs: for each pool the inner products (L, ..., E, E) of its experts' outputs, whether chosen or not.
        kl: divergence of a posterior from its prior, in nats, mean over images; None without one.
    """

    text: Tensor | None = None
    outputs: dict[str, Tensor] = field(default_factory=dict)
    kl: Tensor | None = None


@contextmanager
def switched(method: Any, off: Mapping[str, Any]) -> Iterator[None]:
    """Put the values of `PaperModule.off` in place, and afterwards what was there before, to the bit.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> with switched(layer, {"weight": 0.0, "bias": 1.0}):
        ...     float(layer(torch.randn(2)))
        1.0
        >>> bool(layer.weight.any())
        True
    """
    with ExitStack() as stack:
        for path, value in off.items():
            *parents, name = path.split(".")
            if parents[:1] == ["config"]:
                value, parents, name = method.config.model_copy(update={name: value}), [], "config"
            for owner in _owners(method, parents):
                before = getattr(owner, name)
                if isinstance(before, Tensor) and value is not None:
                    stack.callback(_write, before, before.detach().clone())
                    _write(before, value)
                else:
                    stack.callback(setattr, owner, name, before)
                    setattr(owner, name, value)
        yield


@contextmanager
def other_image(method: nn.Module, names: tuple[str, ...]) -> Iterator[None]:
    """Give every image of a batch the output of these submodules for the image before it in the batch."""
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(method.get_submodule(name).register_forward_hook(_previous))
        yield


def _owners(method: nn.Module, parents: list[str]) -> list[Any]:
    owners: list[Any] = [method]
    for part in parents:
        owners = [x for owner in owners for x in (owner if part == "*" else [getattr(owner, part)])]
    return owners


@torch.no_grad()
def _write(tensor: Tensor, value: float | Tensor) -> None:
    tensor.copy_(torch.as_tensor(value, dtype=tensor.dtype, device=tensor.device).expand_as(tensor))


def _previous(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return output.roll(1, dims=0)
