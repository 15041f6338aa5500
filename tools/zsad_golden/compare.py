"""Differences between two results of a case: exact on the machine they were made on, else within tolerances."""

from __future__ import annotations

import math
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far numbers may be apart; hashes are then not compared."""

    relative: float = 1e-4
    absolute: float = 1e-5

    def equal(self, expected: float, got: float, *, unit: float = 0.0) -> bool:
        """Whether two numbers agree; `unit` is what the last printed digit stands for."""
        if math.isnan(expected) or math.isnan(got):
            return math.isnan(expected) and math.isnan(got)
        return abs(expected - got) <= max(self.absolute, self.relative * abs(expected), 1.01 * unit)


def fingerprint() -> dict[str, str]:
    """What decides the last bits of a result."""
    import numpy
    import PIL
    import torch

    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor()
    return {
        "processor": f"{cpu}, {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__,
        "python": ".".join(platform.python_version_tuple()[:2]),
        "numpy": numpy.__version__,
        "pillow": PIL.__version__,
    }


def differences(
    expected: Any, got: Any, tolerance: Tolerance | None, path: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Yields (key path, expected, got) of all that differs; without a tolerance everything has to be equal."""
    if isinstance(expected, dict) and isinstance(got, dict):
        for key in [*expected, *(key for key in got if key not in expected)]:
            below = f"{path} > {key}" if path else str(key)
            if key not in got or key not in expected:
                yield below, expected.get(key, "nothing"), got.get(key, "nothing")
            else:
                yield from differences(expected[key], got[key], tolerance, below)
    elif isinstance(expected, list) and isinstance(got, list):
        if len(expected) != len(got):
            yield f"{path} > length", len(expected), len(got)
        for index, (first, second) in enumerate(zip(expected, got, strict=False)):
            yield from differences(first, second, tolerance, f"{path} > {index}")
    elif not _equal(expected, got, tolerance):
        yield path, expected, got


def _equal(expected: Any, got: Any, tolerance: Tolerance | None) -> bool:
    if tolerance is None:
        same_nan = expected != expected and got != got
        return same_nan or (type(expected) is type(got) and expected == got)
    if isinstance(expected, str) and isinstance(got, str):
        if expected.startswith("sha256:") and got.startswith("sha256:"):
            return True
        return _equal_text(expected, got, tolerance)
    if _is_number(expected) and _is_number(got):
        return tolerance.equal(float(expected), float(got), unit=_unit(repr(expected)))
    return bool(expected == got)


def _equal_text(expected: str, got: str, tolerance: Tolerance) -> bool:
    if expected == got:
        return True
    frames = [re.sub(r"\s+", " ", NUMBER.sub("#", text)) for text in (expected, got)]
    pairs = zip(NUMBER.findall(expected), NUMBER.findall(got), strict=False)
    return frames[0] == frames[1] and all(
        tolerance.equal(float(first), float(second), unit=_unit(first)) for first, second in pairs
    )


def _unit(number: str) -> float:
    """What the last digit of a printed number stands for; nothing for whole numbers."""
    digits, _, exponent = number.lower().partition("e")
    decimals = len(digits.partition(".")[2])
    return 10.0 ** (int(exponent or 0) - decimals) if decimals else 0.0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
