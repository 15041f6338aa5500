"""`zsad doctor`: what is here, what is missing, and how to get it."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

_EXTRAS = {
    "demo": (("elpv_dataset", "elpv-dataset"), ("jinja2", "jinja2")),
    "report": (("jinja2", "jinja2"),),
    "hub": (("huggingface_hub", "huggingface-hub"),),
    "onnx": (("onnx", "onnx"), ("onnxruntime", "onnxruntime")),
    "openvino": (("openvino", "openvino"), ("onnxruntime", "onnxruntime")),
}
_CORE = ("torch", "numpy", "pillow", "pydantic", "safetensors", "tokenizers", "cyclopts", "rich")
_PURPOSE = {
    "demo": "zsad demo on real solar cells",
    "report": "report.html",
    "hub": "backbones by hub id",
    "onnx": "zsad export, and graphs without PyTorch",
    "openvino": "the fastest graphs on processors",
}


def doctor_command() -> int:
    """Show versions, devices, memory, caches and bundled models, what is missing and how to get it."""
    from zsad.cli.console import printable, say

    sections = (
        ("Versions", _versions()),
        ("Machine", _machine()),
        ("Extras", _extras()),
        ("Caches", _caches()),
        ("Bundled", _bundled()),
    )
    for place, (title, rows) in enumerate(sections):
        say(f"{chr(10) if place else ''}{title}")
        for name, value in rows:
            say(f"  {name:<18} {printable(value)}")
    return 0


def _versions() -> Iterator[tuple[str, str]]:
    import zsad

    yield "zsad", zsad.__version__
    yield "python", f"{platform.python_version()} ({sys.executable})"
    yield "system", platform.platform()
    for package in _CORE:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, f"MISSING, get it with: pip install {_requirement(package)}"


def _requirement(package: str) -> str:
    """The package with the version bounds that zsad declares."""
    try:
        declared = requires("zsad") or []
    except PackageNotFoundError:
        declared = []
    for line in declared:
        if line.split(";")[0].strip().lower().startswith(package):
            return f"'{line.split(';')[0].strip()}'"
    return package


def _machine() -> Iterator[tuple[str, str]]:
    from zsad.device import available_cores

    yield "cores", f"{available_cores()} usable of {os.cpu_count()}"
    yield "memory", _memory()
    try:
        import torch
    except ImportError as error:
        yield "torch", f"cannot be imported ({error})"
        return
    yield "threads", f"{torch.get_num_threads()} by default, zsad takes one a core (--threads)"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield f"cuda:{index}", f"{properties.name}, {properties.total_memory / 1e9:.0f} GB"
    elif torch.version.cuda is not None:
        yield "cuda", "PyTorch is built for CUDA, but no GPU is visible: check the driver with nvidia-smi"
    else:
        yield "cuda", "this PyTorch is built without CUDA; for a GPU see https://pytorch.org/get-started"
    if torch.backends.mps.is_available():
        yield "mps", "Apple's GPU is usable"


def _memory() -> str:
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = (page * os.sysconf(name) / 1e9 for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return "not known on this system"
    return f"{total:.1f} GB, {free:.1f} GB free"


def _extras() -> Iterator[tuple[str, str]]:
    for extra, packages in _EXTRAS.items():
        missing = [name for module, name in packages if find_spec(module) is None]
        if missing:
            state = f"missing {', '.join(missing)}; get it with: pip install 'zsad[{extra}]'"
        else:
            state = "installed: " + ", ".join(f"{name} {_version(name)}" for _, name in packages)
        yield extra, f"{state} ({_PURPOSE[extra]})"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _caches() -> Iterator[tuple[str, str]]:
    from zsad.files import bytes_below

    folder = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface").expanduser() / "hub"
    state = (
        f"{bytes_below(folder) / 1e9:.2f} GB in {folder}"
        if folder.is_dir()
        else f"none yet, would be {folder}"
    )
    offline = " (offline mode is on)" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else ""
    yield "hub", state + offline
    yield "features", "beside each training run, in its folder `features`"


def _bundled() -> Iterator[tuple[str, str]]:
    import hashlib

    from zsad.clip.config import ASSETS

    files = sorted(ASSETS.glob("*/model.safetensors"))
    if not files:
        yield "models", "none found: this installation is incomplete, reinstall zsad"
    for file in files:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        yield file.parent.name, f"{file.stat().st_size / 1e6:.1f} MB, sha256 {digest[:16]}…"
    if not any(file.parent.name == "promptmoe-tiny" for file in files):
        yield "promptmoe-tiny", "missing: zsad predict needs --model; reinstall zsad"
