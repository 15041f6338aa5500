"""What a method costs: seconds an image and peak memory of a process that does nothing else.

Run as `python -m zsad.studies.benchmark.cost REQUEST.json`, which writes its answer beside the request: the
memory of the benchmark's own process would be that of everything it did before.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from zsad.errors import ZsadError
from zsad.files import write_json

WARM_UP, TIMED = 2, 8  # images


def cost(place: Path, request: dict[str, Any]) -> dict[str, float | None]:
    """Seconds an image and peak memory in megabytes of 1e6 bytes, measured once and then kept in `place`.

    Args:
        place: the file of the answer.
        request: method, config, backbone, weights, device, threads, and images to score one by one.

    Returns:
        "seconds_per_image" and "peak_memory_mb", None where they could not be measured.
    """
    kept = _read(place)
    if kept is None:
        asked = place.with_suffix(".request.json")
        write_json(asked, {**request, "answer": str(place)})
        subprocess.run(
            [sys.executable, "-m", "zsad.studies.benchmark.cost", str(asked)],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        kept = _read(place)
        asked.unlink(missing_ok=True)
    nothing: dict[str, float | None] = {"seconds_per_image": None, "peak_memory_mb": None}
    return nothing if kept is None else {name: kept.get(name) for name in nothing}


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """The answer to a request, in a process of its own."""
    import torch

    from zsad.clip.weights import load_backbone
    from zsad.device import use_threads
    from zsad.images.preprocess import Preprocess
    from zsad.methods.registry import build
    from zsad.predict.pipeline import predict_samples
    from zsad.types import Sample

    use_threads(request["threads"])
    device = torch.device(request["device"])
    weights = None if request["weights"] is None else Path(request["weights"])
    tower = load_backbone(request["backbone"], weights=weights, device=device)
    method = build(request["method"], request["config"], tower).to(device).eval()
    size, preset = (method.config.image_size,) * 2, tower.preset
    preprocess = Preprocess(image_size=size, mean=preset.mean, std=preset.std)
    # Text that does not depend on the image is encoded in the warm-up; that of the others is part of their cost.
    taken: list[float] = []
    for image, word in request["images"]:
        started = time.perf_counter()
        for prediction in predict_samples(
            method, [Sample(Path(image), word)], preprocess, on_error=_ignore, batch_size=1, workers=0
        ):
            prediction.canonical_map()
            taken.append(time.perf_counter() - started)
    timed = taken[WARM_UP:] or taken
    peak: float | None = _peak_memory()
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 1e6
    return {"seconds_per_image": statistics.median(timed) if timed else None, "peak_memory_mb": peak}


def _ignore(sample: object, error: object) -> None:
    """An image that cannot be read costs nothing."""


def _peak_memory() -> float | None:
    """The most resident memory of this process so far, in megabytes; None where the system does not tell."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _read(place: Path) -> dict[str, float | None] | None:
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def main() -> None:
    """Reads the request named on the command line and writes its answer."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        answer = measure(request)
    except ZsadError as error:  # written, so that nobody asks again
        answer = {"reason": str(error)}
    write_json(Path(request["answer"]), answer)


if __name__ == "__main__":
    main()
