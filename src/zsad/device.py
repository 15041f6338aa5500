"""Device and threads of a model: chosen by the caller, never read from the environment."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from typing import TYPE_CHECKING

from zsad.errors import ConfigError

if TYPE_CHECKING:
    import torch


def available_cores() -> int:
    """Processor cores that this process may use; fewer than the machine has where it is confined."""
    try:
        return max(1, len(os.sched_getaffinity(0)))
    except AttributeError:  # macOS and Windows
        return max(1, os.cpu_count() or 1)


def select_device(name: str = "auto") -> torch.device:
    """The device that `name` means.

    Args:
        name: "auto" (CUDA where there is one, then Apple's GPU, then the CPU), or a device of PyTorch such as
            "cpu", "cuda", "cuda:1", "mps".

    Raises:
        ConfigError: an unknown name, or a device that this machine or this build of PyTorch lacks.
    """
    import torch

    if name == "auto":
        return torch.device(_best())
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {name!r}, expected auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda":
        _check_cuda(device, name)
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise ConfigError(f"device {name!r} is not there; use --device cpu or auto")
    elif device.type != "cpu":
        raise ConfigError(f"device {name!r} is not supported, expected auto, cpu, cuda, cuda:N or mps")
    return device


def _best() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _check_cuda(device: torch.device, name: str) -> None:
    import torch

    if not torch.cuda.is_available():
        build = (
            "no GPU is visible" if torch.version.cuda is not None else "this PyTorch is built without CUDA"
        )
        raise ConfigError(f"device {name!r} cannot be used: {build}; use --device cpu or auto")
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise ConfigError(
            f"device {name!r} is not there: this machine has {count} CUDA device(s), from cuda:0"
        )


def default_batch_size(device: torch.device) -> int:
    """Images a pass: one on a CPU, where the maps of larger batches outgrow the cache, more on a GPU."""
    return 1 if device.type == "cpu" else 32


def use_threads(count: int | None = None) -> int:
    """Sets PyTorch's threads for the whole process (for programs, not libraries) and returns their number.

    Args:
        count: threads; None takes one for each available core.

    Raises:
        ConfigError: a count below 1.
    """
    import torch

    wanted = thread_count(count)
    torch.set_num_threads(wanted)
    keep_freed_memory()
    return wanted


def thread_count(count: int | None = None) -> int:
    """Return the number of threads: `count`, or one for each available core.

    Raises:
        ConfigError: a count below 1.
    """
    wanted = available_cores() if count is None else count
    if wanted < 1:
        raise ConfigError(f"threads is {wanted}, expected 1 or more")
    return wanted


def keep_freed_memory() -> None:
    """Lets glibc keep what is freed for the next image, instead of asking the system for every map anew.

    Pages that come fresh from the system are cleared on first touch: for a small convolutional tower that is a
    quarter of the time. Without glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    trim_threshold, mmap_threshold, large = -1, -3, 1 << 30
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(trim_threshold, large)
        library.mallopt(mmap_threshold, large)


def describe_environment(device: torch.device) -> dict[str, str]:
    """Versions and hardware as readable pairs, for run files and reports."""
    import torch

    hardware = f"{device} ({torch.get_num_threads()} threads)"
    if device.type == "cuda":
        hardware = f"{device} ({torch.cuda.get_device_name(device)})"
    return describe_software("torch", hardware=hardware)


def describe_software(runtime: str, *, hardware: str) -> dict[str, str]:
    """Versions of what scores depend on, and the hardware, as readable pairs.

    Args:
        runtime: the package that runs the model: "torch", "onnxruntime", "openvino".
        hardware: what it runs on.
    """
    import platform
    from importlib.metadata import version

    import numpy
    import PIL

    import zsad

    return {
        "zsad": zsad.__version__,
        "python": platform.python_version(),
        runtime: version(runtime),
        "numpy": numpy.__version__,
        "pillow": PIL.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "device": hardware,
    }
