"""Rules that take out of texts and data what differs between two equal runs: times, dates, places, versions."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# (name, pattern, replacement): applied to every line of text, in this order.
TEXT_RULES = (
    ("date", re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\.\d+)?( ?UTC|Z|[+-]\d\d:\d\d)?"), "<date>"),
    ("rate", re.compile(r"(scored in ).*?(, [\d.,]+ a second)"), r"\1<time>"),
    ("milliseconds", re.compile(r" *\d[\d.,]* ms\b"), " <time>"),
    ("seconds", re.compile(r"\b\d[\d.,]* (s|seconds|min|h)\b"), "<time>"),
    ("rest", re.compile(r"; about .* left"), ""),
    ("key", re.compile(r"\b([a-z]+(?:-\d+)?)-[0-9a-f]{16}\b"), r"\1-<key>"),
    ("identity", re.compile(r", [0-9a-f]{8}\)"), ", <identity>)"),
    ("error of a graph", re.compile(r"differ by up to [^,]+, maps by up to [^,]+,"), "differ by <error>,"),
    ("port", re.compile(r"127\.0\.0\.1:\d+"), "127.0.0.1:<port>"),
    ("version", re.compile(r"zsad \d+\.\d+\S*"), "zsad <version>"),
    ("address in memory", re.compile(r"0x[0-9a-f]{8,}"), "<address>"),
)

# Keys of data whose value is a time, a date, or the version of something.
VARYING = {
    "ms", "seconds", "seconds_training", "started", "created", "elapsed", "zsad", "python", "torch", "numpy", "pillow",
    "system", "device", "threads", "request", "machine", "memory", "gpu_memory", "onnxruntime", "openvino", "onnx",
}  # fmt: skip
_SYSTEM = f"{platform.system()} {platform.machine()}"
# Keys whose value says which model it is; kept whole in the case `cards` alone.
DESCRIBING = {"card", "map_spec", "environment"}
# Hashes of settings and of the model: kept in the case `cards` alone, where a change is seen once.
HASHES = {"identity", "data_fingerprint"}


class Normaliser:
    """Applies the rules, with the places of this run and more replacements in its texts."""

    def __init__(self, places: Mapping[str, str]) -> None:
        self.places = dict(sorted(places.items(), key=lambda item: -len(item[0])))
        self._names = installed_versions()
        either = "|".join(map(re.escape, sorted(self._names, key=len, reverse=True)))
        self._versions = re.compile(rf"(?<![\w.])(?:{either})(?![\w.])")

    def line(self, text: str) -> str:
        """A line of text by the rules; a sha256 instead of very long ones."""
        for place, name in self.places.items():
            text = text.replace(place, name)
        text = self._versions.sub(lambda match: self._names[match[0]], text)
        for _, pattern, replacement in TEXT_RULES:
            text = pattern.sub(replacement, text)
        text = text.rstrip()
        return text if len(text) <= 2000 else "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    def lines(self, text: str) -> list[str]:
        """The lines of a text, empty ones left out."""
        return [line for line in map(self.line, text.splitlines()) if line]

    def data(self, value: Any, *, whole: bool = False) -> Any:
        """Data as JSON holds it, by the rules; `whole` keeps what describes a model."""
        if isinstance(value, Mapping):
            return {self.line(str(key)): self._entry(str(key), entry, whole) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [self.data(entry, whole=whole) for entry in value]
        if isinstance(value, bytes):
            return "sha256:" + hashlib.sha256(value).hexdigest()
        return self.line(value) if isinstance(value, str) else value

    def _entry(self, key: str, value: Any, whole: bool) -> Any:
        if key in DESCRIBING and not whole:
            return sorted(value) if isinstance(value, Mapping) else f"<{key}>"
        if key == "model" and isinstance(value, Mapping) and "map_spec" in value and not whole:
            return sorted(value)
        if key.endswith((".onnx", ".xml", ".bin")) and _is_hash(value):
            return "<hash>"
        if key in HASHES | {"model", "key", "calibration"} and _is_hash(value) and not whole:
            return "<hash>"
        if key in VARYING:
            return f"<{type(value).__name__}>" if not isinstance(value, Mapping) else sorted(value)
        if key == "file" and isinstance(value, list):  # size and time of change
            return "<state>"
        return self.data(value, whole=whole)


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{16,64}", value) is not None


def installed_versions() -> dict[str, str]:
    """Versions and the system, as pages and `zsad version` print them, and what they are called."""
    import torch

    import zsad

    versions = {name: importlib.metadata.version(name) for name in ("numpy", "pillow")}
    versions |= {"zsad": zsad.__version__, "torch": torch.__version__, "python": platform.python_version()}
    return {**{version: f"<{name}>" for name, version in versions.items()}, _SYSTEM: "<system>"}


def places_of(root: Path, package: Path) -> dict[str, str]:
    """The folders of this run and what they are called."""
    places = {str(root): "ROOT", str(root).lstrip("/"): "ROOT", str(package): "PACKAGE"}
    try:
        import elpv_dataset
    except ImportError:
        return places
    return {**places, str(Path(elpv_dataset.__file__).parent): "ELPV"}
