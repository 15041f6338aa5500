"""Zero-shot anomaly detection: defects and lesions in images of things the model has never seen.

Everything here is loaded on first use, so that `import zsad` costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.2.0.dev0"

if TYPE_CHECKING:
    from zsad.detector import Detector
    from zsad.loading import load
    from zsad.metrics.evaluation import evaluate
    from zsad.predict.prediction import Prediction

_LAZY = {
    "Detector": "zsad.detector",
    "load": "zsad.loading",
    "Prediction": "zsad.predict.prediction",
    "evaluate": "zsad.metrics.evaluation",
}

__all__ = ["Detector", "Prediction", "__version__", "evaluate", "load"]


def __getattr__(name: str) -> object:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'zsad' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
