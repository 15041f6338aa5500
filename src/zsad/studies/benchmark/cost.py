"""The cost of a method: seconds an image and peak memory of a process that does nothing else.

`python -m zsad.studies.benchmark.cost` reads a request from its input and prints the answer: the memory of the
benchmark's own process would be that of everything it did before.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from zsad.errors import ZsadError
from zsad.files import write_json

WARM_UP, TIMED = 2, 8  # images


def cost(path: Path, request: dict[str, Any]) -> dict[str, float | None]:
    """Return seconds an image and peak memory in megabytes of 1e6 bytes, measured once and then kept in a file.

    Args:
        path: the file of the answer.
        request: method, config, backbone, weights, device, threads, and images to score one by one.

    Returns:
        "seconds_per_image" and "peak_memory_mb", None where they could not be measured.
    """
    answer = _parse(path.read_text(encoding="utf-8") if path.is_file() else "")
    if not answer:
        process = subprocess.run(
            [sys.executable, "-m", "zsad.studies.benchmark.cost"],
            check=False,
            input=json.dumps(request),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        answer = _parse(process.stdout)
        if answer:
            write_json(path, answer)
    return {name: answer.get(name) for name in ("seconds_per_image", "peak_memory_mb")}


def measure_cost(request: dict[str, Any]) -> dict[str, Any]:
    """Measure a request in this process, which has done nothing else."""
    import torch

    from zsad.backends.torch import TorchBackend
    from zsad.clip.weights import load_backbone
    from zsad.device import use_threads
    from zsad.methods.registry import build
    from zsad.predict.pipeline import stream
    from zsad.predict.view import Model, View
    from zsad.train.training_card import CardParts, card_of
    from zsad.types import Sample

    use_threads(request["threads"])
    device = torch.device(request["device"])
    weights = None if request["weights"] is None else Path(request["weights"])
    tower = load_backbone(request["backbone"], weights=weights, device=device)
    method = build(request["method"], request["config"], tower).to(device).eval()
    model = Model(TorchBackend(method), card_of(method, CardParts.of(method, tower), created=""))
    # Text that does not depend on the image is encoded in the warm-up; that of the others is part of their cost.
    taken: list[float] = []
    for image, word in request["images"]:
        started = time.perf_counter()
        for prediction in stream(
            model, [Sample(Path(image), word)], View(), on_error=_ignore, batch_size=1, workers=0
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
    """Return the most resident memory of this process so far, in megabytes; None where the system does not tell."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _parse(text: str) -> dict[str, Any]:
    with suppress(ValueError):
        values = json.loads(text)
        return values if isinstance(values, dict) else {}
    return {}


def main() -> None:
    """Read a request from the input and print its answer."""
    try:
        answer = measure_cost(json.load(sys.stdin))
    except ZsadError as error:  # an answer, too, so that it is not tried again
        answer = {"reason": str(error)}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
