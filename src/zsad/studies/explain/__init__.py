"""Which experts a model asks, when, and how they came to be: tables and figures.

Everything here is loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zsad.studies.explain.explanation import Explanation, explain
    from zsad.studies.explain.explanation_page import write_explanation

_LAZY = {
    "Explanation": "zsad.studies.explain.explanation",
    "explain": "zsad.studies.explain.explanation",
    "write_explanation": "zsad.studies.explain.explanation_page",
}

__all__ = ["Explanation", "explain", "write_explanation"]


def __getattr__(name: str) -> object:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'zsad.studies.explain' has no attribute {name!r}")
