"""Switching the named modules of a method off (`zsad.methods.base.PaperModule`), as `zsad explain --alive` does.

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
from typing import Any

import torch
from torch import Tensor, nn


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
