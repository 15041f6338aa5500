"""Every autograd Function of the package by itself: its gradients are those of its values."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

import zsad
from zsad.nn import lora

SOURCE = Path(zsad.__file__).parent


def randn(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def mixture_inputs(*, dropped: bool) -> tuple[object, ...]:
    """Seven tokens of width 6, and three experts of rank 2."""
    positions = torch.tensor([0, 3, 11, 12, 40]) if dropped else None
    settings = lora._Settings(scale=0.7, top_k=2, blend=0.3, norm_floor=0.1)
    tensors = randn(7, 6, seed=0), randn(3, 2, 6, seed=1), randn(3, 6, seed=2), randn(3, 2, 6, seed=3)
    return (*tensors, positions, settings)


CASES = {
    "zsad.nn.lora._Mixture": [
        (lora._Mixture, mixture_inputs(dropped=False)),
        (lora._Mixture, mixture_inputs(dropped=True)),
    ],
}


def autograd_functions() -> set[str]:
    """Return the dotted names of all classes of the package that derive from `torch.autograd.Function`."""
    names = set()
    for path in SOURCE.rglob("*.py"):
        module = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                bases = {ast.unparse(base).split(".")[-1] for base in node.bases}
                names |= {f"{module}.{node.name}"} if "Function" in bases else set()
    return names


def test_every_function_has_a_case():
    assert autograd_functions() == set(CASES)


@pytest.mark.parametrize("function, inputs", [case for cases in CASES.values() for case in cases])
def test_gradients_of_a_function_alone(function, inputs):
    assert torch.autograd.gradcheck(function.apply, inputs)


@pytest.mark.parametrize("learns", range(4))
def test_gradients_where_one_input_alone_learns(learns):
    inputs = mixture_inputs(dropped=True)
    inputs = tuple(
        value.detach().requires_grad_(position == learns)
        if isinstance(value, torch.Tensor) and position < 4
        else value
        for position, value in enumerate(inputs)
    )
    assert torch.autograd.gradcheck(lora._Mixture.apply, inputs)
