"""The folder of a run: predicted, evaluated and measured again resumably, exported and shown.

from zsad import runs

outcome = runs.predict(detector, "photos/", out="results")  # what `zsad predict` does
table = runs.evaluate(detector, "mvtec/", out="results/mvtec")  # what `zsad evaluate` does
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zsad.runs.evaluate_run import evaluate
    from zsad.runs.predict_run import Outcome, RunOptions, RunReporter, predict

__all__ = ["Outcome", "RunOptions", "RunReporter", "evaluate", "predict"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "evaluate_run" if name == "evaluate" else "predict_run"
    return getattr(import_module(f"{__name__}.{module}"), name)
