"""Every layer says how it is used alone, and what it says is run."""

from __future__ import annotations

import doctest
import inspect
import pkgutil
from importlib import import_module

import pytest
import torch
from torch import nn

import zsad.nn

MODULES = sorted(f"zsad.nn.{module.name}" for module in pkgutil.iter_modules(zsad.nn.__path__))


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    torch.manual_seed(0)
    result = doctest.testmod(import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0 < result.attempted


@pytest.mark.parametrize("name", MODULES)
def test_every_public_layer_and_function_has_an_example_and_knows_nothing_of_clip(name):
    module = import_module(name)
    public = {
        key: value
        for key, value in vars(module).items()
        if not key.startswith("_") and getattr(value, "__module__", "") == name
    }
    for key, value in public.items():
        if inspect.isfunction(value) or (inspect.isclass(value) and issubclass(value, nn.Module)):
            assert ">>>" in (inspect.getdoc(value) or ""), f"{name}.{key} has no example"
    imported = {getattr(value, "__module__", None) or "" for value in vars(module).values()}
    imported |= {value.__name__ for value in vars(module).values() if inspect.ismodule(value)}
    ours = {origin for origin in imported if origin.startswith("zsad.")}
    assert all(origin == "zsad.errors" or origin.startswith("zsad.nn.") for origin in ours)
