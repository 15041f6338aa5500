"""Time and memory of the pixel metrics against scikit-learn and against the loop over 200 thresholds.

    python benchmarks/metrics.py --maps 20 --size 518 --json metrics.json

Every form runs in a process of its own, so that its peak memory is its own; times are CPU seconds of the
metric alone, without imports and without making the maps.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

FORMS = {
    "streaming": "AUROC, AP, F1-max, AUPRO with bounds",
    "exact": "AUROC, AP, F1-max, AUPRO",
    "pro-fast": "PRO (200 thresholds), binary searches",
    "pro-loop": "PRO (200 thresholds), loop over regions",
    "sklearn-auroc": "AUROC",
    "sklearn-ap": "AP",
    "sklearn-f1": "F1-max",
}


def make_scene(index: int, *, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Map (size, size) float32 in [0, 1] and its mask of up to three discs; every fifth is normal."""
    rng = np.random.default_rng(index)
    rows, columns = np.ogrid[:size, :size]
    mask = np.zeros((size, size), dtype=bool)
    for _ in range(0 if index % 5 == 0 else rng.integers(1, 4)):
        y, x, radius = *rng.integers(0, size, 2).tolist(), rng.integers(size // 50 + 1, size // 10 + 2)
        mask |= (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
    scores = rng.random((size, size), dtype=np.float32) * 0.6
    scores += mask * np.float32(rng.uniform(0.05, 0.35))
    return scores, mask


def measure(form: str, *, maps: int, size: int) -> dict[str, object]:
    """CPU seconds, peak memory and values of one form; runs in the child process."""
    if form == "streaming":
        return _streaming(maps=maps, size=size)
    scenes = [make_scene(index, size=size) for index in range(maps)]
    stack, masks = np.stack([scene[0] for scene in scenes]), np.stack([scene[1] for scene in scenes])
    del scenes
    run = {
        "exact": _exact,
        "pro-fast": _pro_fast,
        "pro-loop": _pro_loop,
        "sklearn-auroc": _sklearn_auroc,
        "sklearn-ap": _sklearn_ap,
        "sklearn-f1": _sklearn_f1,
    }[form]
    from scipy import ndimage  # noqa: F401  (its import is not the metric's time)

    if form.startswith("sklearn"):
        import sklearn.metrics  # noqa: F401
    start = time.process_time()
    values = run(stack, masks)
    return _report(time.process_time() - start, values)


def _streaming(*, maps: int, size: int) -> dict[str, object]:
    from zsad.metrics.streaming import PixelMetrics

    metrics, seconds = PixelMetrics(), 0.0
    metrics.update(*make_scene(1, size=32))
    metrics = PixelMetrics()
    for index in range(maps):
        scores, mask = make_scene(index, size=size)
        start = time.process_time()
        metrics.update(scores, mask)
        seconds += time.process_time() - start
    start = time.process_time()
    result = metrics.compute()
    seconds += time.process_time() - start
    names = ("auroc", "ap", "f1_max", "aupro")
    values = {name: getattr(result, name) for name in names}
    return _report(seconds, values | {f"{name}_bound": result.error(name) for name in names})


def _exact(maps: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    from zsad.metrics.streaming import ExactPixelMetrics

    metrics = ExactPixelMetrics()
    for scores, mask in zip(maps, masks, strict=True):
        metrics.update(scores, mask)
    result = metrics.compute()
    return {name: getattr(result, name) for name in ("auroc", "ap", "f1_max", "aupro")}


def _pro_fast(maps: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    from zsad.metrics.functional import pro_anomalyclip

    return {"pro_anomalyclip": pro_anomalyclip(maps, masks)}


def _pro_loop(maps: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    """The shape of the published evaluations: all maps and all regions once for each threshold."""
    from scipy import ndimage

    low, high = maps.min(), maps.max()
    normal = ~masks
    rates, overlaps = [], []
    for threshold in np.arange(low, high, (high - low) / 200):
        binary = maps > threshold
        covered = []
        for found, mask in zip(binary, masks, strict=True):
            labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
            for number, box in enumerate(ndimage.find_objects(labels), start=1):
                region = labels[box] == number
                covered.append(found[box][region].sum() / region.sum())
        rates.append(np.logical_and(normal, binary).sum() / normal.sum())
        overlaps.append(np.mean(covered))
    rate, overlap = np.array(rates), np.array(overlaps)
    kept = rate < 0.3
    rate, overlap = rate[kept][::-1], overlap[kept][::-1]
    rate = (rate - rate.min()) / (rate.max() - rate.min())
    return {"pro_anomalyclip": float(np.diff(rate) @ (overlap[1:] + overlap[:-1]) / 2)}


def _sklearn_auroc(maps: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import roc_auc_score

    return {"auroc": float(roc_auc_score(masks.ravel(), maps.ravel()))}


def _sklearn_ap(maps: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import average_precision_score

    return {"ap": float(average_precision_score(masks.ravel(), maps.ravel()))}


def _sklearn_f1(maps: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(masks.ravel(), maps.ravel())
    return {"f1_max": float((2 * precision * recall / np.maximum(precision + recall, 1e-300)).max())}


def _report(seconds: float, values: dict[str, float]) -> dict[str, object]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Bytes on macOS, KiB elsewhere.
    megabytes = peak / 2**20 if sys.platform == "darwin" else peak / 2**10
    return {"cpu_seconds": seconds, "peak_mb": megabytes, "values": values}


def main() -> None:
    """Run the chosen forms one after the other and print their table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--maps", type=int, default=20)
    parser.add_argument("--size", type=int, default=518)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--child", choices=FORMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child, maps=options.maps, size=options.size)))
        return
    results = {}
    for form in options.forms:
        command = [sys.executable, __file__, "--child", form]
        command += ["--maps", str(options.maps), "--size", str(options.size)]
        results[form] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    base = results[options.forms[0]]["cpu_seconds"]
    print(f"{options.maps} maps of {options.size} x {options.size}")
    print(f"{'form':<15}{'gives':<42}{'CPU s':>9}{'x':>8}{'peak MB':>10}")
    for form, result in results.items():
        seconds = result["cpu_seconds"]
        print(f"{form:<15}{FORMS[form]:<42}{seconds:>9.3f}{seconds / base:>8.1f}{result['peak_mb']:>10.0f}")
    print()
    for form, result in results.items():
        print(f"{form:<15}" + "  ".join(f"{name} {value:.7f}" for name, value in result["values"].items()))
    if options.json:
        document = {"maps": options.maps, "size": options.size, "results": results}
        options.json.write_text(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
