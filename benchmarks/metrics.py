"""Time and memory of the pixel metrics beside scikit-learn, the loop over 200 thresholds, torchmetrics and anomalib.

    python benchmarks/metrics.py --maps 200 --write
    python benchmarks/metrics.py --peer-maps 40 --peers-python /path/to/other/env/bin/python --write

Every form runs in a process of its own on one thread. Times are processor seconds of the metric alone, the least of
some repetitions for ours, one for the others: without imports and without making the maps. Memory is the most that
the process held, less what it held after its imports; forms that need all maps at once hold them, too.
What is not installed is said and left out; anomalib and torchmetrics may lie in an environment of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import metrics_peers

if TYPE_CHECKING:
    from zsad.datasets.manifest import DataSet

RESULTS = Path(__file__).parent / "results"
SIZE = 518
GRID = (4, 37, 37)
NAMES = ("auroc", "ap", "f1_max", "aupro")
Values = dict[str, float]

FORMS = {
    "streaming": "AUROC, AP, F1-max, AUPRO with bounds",
    "streaming-smooth": "the same, maps as a model gives them",
    "streaming-all": "these, PRO twice and AUPIMO, with bounds",
    "exact": "AUROC, AP, F1-max, AUPRO, PRO twice, AUPIMO",
    "sklearn-auroc": "AUROC",
    "sklearn-ap": "AP",
    "sklearn-f1": "F1-max",
    "pro-loop": "PRO, loop over 200 thresholds and regions",
    "torchmetrics-binned": "AUROC, AP of 200 thresholds",
    "torchmetrics-exact": "AUROC, AP",
    "anomalib-aupro": "AUPRO",
    "anomalib-aupimo": "AUPIMO",
}
OURS = tuple(form for form in FORMS if form.startswith(("streaming", "exact")))
REEVALUATIONS = ("after_softmax", "before_softmax")


def make_scene(index: int, *, size: int = SIZE, smooth: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Map (size, size) float32 in [0, 1] and its mask of up to three discs; every fifth is normal.

    The map is noise, which is what costs most; `smooth` makes it of a grid of 37 x 37, as a model's is.
    """
    rng = np.random.default_rng(index)
    rows, columns = np.ogrid[:size, :size]
    mask = np.zeros((size, size), dtype=bool)
    for _ in range(0 if index % 5 == 0 else rng.integers(1, 4)):
        y, x, radius = *rng.integers(0, size, 2).tolist(), rng.integers(size // 50 + 1, size // 10 + 2)
        mask |= (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
    if smooth:
        from zsad.nn.maps import MapSpec, render_map_numpy

        grid = (rng.normal(size=(4, 37, 37)) - 2).astype(np.float32)
        grid += 2 * mask[:: size // 37, :: size // 37][:37, :37]
        return render_map_numpy(grid, MapSpec(size=(size, size))), mask
    scores = rng.random((size, size), dtype=np.float32) * np.float32(0.6)
    scores += mask * np.float32(rng.uniform(0.05, 0.35))
    return scores, mask


def held_mb(field: str) -> float:
    """Megabytes the process holds ("VmRSS") or held at most ("VmHWM"); the latter for both where /proc is missing."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
            2**20 if sys.platform == "darwin" else 2**10
        )
    lines = status.read_text(encoding="utf-8").splitlines()
    return next(float(line.split()[1]) / 2**10 for line in lines if line.startswith(field))


def child(form: str, *, maps: int, repeat: int) -> dict[str, object]:
    """CPU seconds, additional memory and values of one form; runs in a process of its own."""
    if form in REEVALUATIONS:
        return reevaluate(form, images=maps)
    try:
        run = prepare(form)
    except (ImportError, RuntimeError) as error:
        return {"missing": str(error).splitlines()[0]}
    before = held_mb("VmRSS")
    if form.startswith("streaming"):
        seconds, values = min(
            (stream(form, maps=maps) for _ in range(repeat)), key=lambda measured: measured[0]
        )
    else:
        scenes = [make_scene(index) for index in range(maps)]
        stack, masks = (np.stack(part) for part in zip(*scenes, strict=True))
        del scenes
        seconds, values = np.inf, {}
        for _ in range(repeat):
            start = time.process_time()
            values = run(stack, masks)
            seconds = min(seconds, time.process_time() - start)
    return {"cpu_seconds": seconds, "memory_mb": held_mb("VmHWM") - before, "maps": maps, "values": values}


def stream(form: str, *, maps: int) -> tuple[float, Values]:
    """CPU seconds and values of one pass; a map is made, measured and forgotten."""
    from zsad.metrics.exact import PIXEL_MEASURES
    from zsad.metrics.streaming import PixelMetrics

    seconds, metrics = 0.0, PixelMetrics()
    for index in range(maps):
        scores, mask = make_scene(index, smooth=form == "streaming-smooth")
        start = time.process_time()
        metrics.update(scores, mask)
        seconds += time.process_time() - start
    start = time.process_time()
    result = metrics.compute()
    further = {name: metrics.measure(name) for name in PIXEL_MEASURES[1:]} if form == "streaming-all" else {}
    seconds += time.process_time() - start
    values = {}
    for name in NAMES:
        values[name] = getattr(result, name)
        values[f"{name}_low"], values[f"{name}_high"] = result.bounds[name]
    for name, found in further.items():
        values[name], values[f"{name}_low"], values[f"{name}_high"] = found
    return seconds, values


def prepare(form: str) -> Callable[[np.ndarray, np.ndarray], Values]:
    """The function of a form that needs all maps at once, its libraries imported; ImportError where missing."""
    kind = form.partition("-")[0]
    if kind == "streaming":
        from zsad.metrics.streaming import PixelMetrics

        PixelMetrics().update(np.zeros((2, 2)), np.eye(2))
        if form == "streaming-smooth":
            make_scene(1, smooth=True)
        return exact  # not called: maps come one by one
    if kind == "exact":
        import zsad.metrics.streaming  # noqa: F401

        return exact
    if kind == "sklearn":
        import sklearn.metrics  # noqa: F401

        return partial(metrics_peers.sklearn_one, form.partition("-")[2])
    if kind == "pro":
        import scipy.ndimage  # noqa: F401

        return metrics_peers.pro_loop
    import torch

    torch.set_num_threads(1)
    if kind == "torchmetrics":
        import torchmetrics.classification  # noqa: F401

        return partial(metrics_peers.torchmetrics_both, thresholds=200 if form.endswith("binned") else None)
    import anomalib.metrics  # noqa: F401

    return metrics_peers.anomalib_aupro if form == "anomalib-aupro" else metrics_peers.anomalib_aupimo


def exact(maps: np.ndarray, masks: np.ndarray) -> Values:
    """Our exact form of everything."""
    from zsad.metrics.exact import PIXEL_MEASURES, ExactPixelMetrics

    metrics = ExactPixelMetrics()
    for scores, mask in zip(maps, masks, strict=True):
        metrics.update(scores, mask)
    result = metrics.compute()
    values = {name: getattr(result, name) for name in NAMES}
    return values | {name: metrics.measure(name).value for name in PIXEL_MEASURES[1:]}


def reevaluate(order: str, *, images: int) -> dict[str, object]:
    """15 classes measured again from a run's folder of grids (4, 37, 37) float16, as `zsad remeasure` does."""
    from zsad.runs.metric_cache import STATES_FILE
    from zsad.runs.remeasure import measure_again

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = write_run(folder, order, images=images)
        before = held_mb("VmRSS")
        cpu, wall = time.process_time(), time.perf_counter()
        single = measure_again(folder, data).to_json()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        memory = held_mb("VmHWM") - before
        counted = time.perf_counter()
        third = measure_again(folder, data).to_json()
        counted = time.perf_counter() - counted
        (folder / STATES_FILE).unlink()
        wall_two = time.perf_counter()
        double = measure_again(folder, data, processes=2).to_json()
        wall_two = time.perf_counter() - wall_two
    seconds = {"cpu_seconds": cpu, "wall_seconds_one_process": wall, "wall_seconds_two_processes": wall_two}
    seconds["wall_seconds_counted_before"] = counted
    return {"images": images, **seconds, "memory_mb": memory, "same": single == double == third}


def write_run(folder: Path, order: str, *, images: int) -> DataSet:
    """A run of scores and grids as an evaluation leaves it, its masks kept; every fifth image is normal."""
    from zsad.datasets.manifest import DataSet
    from zsad.nn.maps import MapSpec
    from zsad.runs.metric_cache import MASKS_FILE, MaskCache
    from zsad.runs.store import GRIDS_FILE, ROWS_FILE, RUN_FILE, GridFile, row_line
    from zsad.types import Sample

    rng, full = np.random.default_rng(0), (SIZE, SIZE)
    grids, masks, samples = GridFile(folder / GRIDS_FILE, keep=0), MaskCache(), []
    spec = MapSpec(size=full, order=order).model_dump(mode="json")
    (folder / RUN_FILE).write_text(json.dumps({"settings": {}, "map_spec": spec}))
    with (folder / ROWS_FILE).open("wb") as rows:
        for index in range(images):
            mask = make_scene(index // 15)[1]
            image, file = folder / f"{index}.png", folder / f"{index}_mask.png"
            label = int(mask.any())
            if label:
                masks.put(mask, file, full=full)
            samples.append(Sample(image, f"class {index % 15:02}", label, file if label else None))
            row = {"source": str(image), "score": rng.random(), "verdict": None, "ms": 1, "size": full}
            place = grids.append(rng.normal(size=GRID).astype(np.float32))
            rows.write(row_line({**row, "grid": place, "file": [-1, -1], "label": label}))
    grids.close()
    masks.write(folder / MASKS_FILE)
    return DataSet(sorted(samples, key=lambda sample: sample.class_name), "mvtec", folder, "drawn")


def run_child(form: str, *, maps: int, repeat: int, python: str) -> dict[str, object]:
    """What a form measured in a process of its own, on one thread."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = [python, __file__, "--child", form, "--maps", str(maps), "--repeat", str(repeat)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | threads, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1]
        if form in OURS + REEVALUATIONS:
            raise SystemExit(f"{form}: {reason}")
        return {"missing": reason}
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result


def outside(results: dict[str, dict]) -> list[str]:
    """Bounds of the streaming form that do not hold the exact value; none, or something is wrong."""
    exact_values = results["exact"]["values"]
    bounded = results["streaming-all"]["values"]
    return [
        f"{name}: {value} is not in [{bounded[f'{name}_low']}, {bounded[f'{name}_high']}]"
        for name, value in exact_values.items()
        if not bounded[f"{name}_low"] <= value <= bounded[f"{name}_high"]
    ]


def render(results: dict[str, dict], again: dict[str, dict]) -> str:
    """All results as Markdown."""
    base = results["streaming"]["cpu_seconds"] / results["streaming"]["maps"]
    lines = [
        "| form | gives | maps | CPU s | ms a map | x streaming | additional MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for form, result in results.items():
        if "missing" in result:
            lines.append(f"| {form} | {FORMS[form]} | none: {result['missing']} | | | | |")
            continue
        each = result["cpu_seconds"] / result["maps"]
        lines.append(
            f"| {form} | {FORMS[form]} | {result['maps']} | {result['cpu_seconds']:.2f} | {1000 * each:.2f} "
            f"| {each / base:.1f} | {result['memory_mb']:.0f} |"
        )
    papers = [results.get(form, {}) for form in ("sklearn-auroc", "sklearn-ap", "sklearn-f1", "pro-loop")]
    if all("cpu_seconds" in result for result in papers):
        total = sum(result["cpu_seconds"] / result["maps"] for result in papers)
        lines += [
            "",
            f"scikit-learn three times and the loop over 200 thresholds, together: {total / base:.0f} x",
        ]
    bounded, exact_values = results["streaming-all"]["values"], results["exact"]["values"]
    lines += ["", "| metric | exact | streaming | error | bound |", "|---|---|---|---|---|"]
    for name, value in exact_values.items():
        found = bounded[name]
        bound = max(found - bounded[f"{name}_low"], bounded[f"{name}_high"] - found)
        lines.append(f"| {name} | {value:.7f} | {found:.7f} | {abs(found - value):.1e} | {bound:.1e} |")
    lines += [
        "",
        "| measured again from grids | images | CPU s | wall s | two processes, wall s | counted before | more MB |",
    ]
    lines += ["|---|---|---|---|---|---|---|"]
    lines += [
        f"| {order} | {result['images']} | {result['cpu_seconds']:.2f} | {result['wall_seconds_one_process']:.2f} "
        f"| {result['wall_seconds_two_processes']:.2f} | {result['wall_seconds_counted_before']:.2f} "
        f"| {result['memory_mb']:.0f} |"
        for order, result in again.items()
    ]
    return "\n".join(lines)


def write(results: dict[str, dict], again: dict[str, dict]) -> None:
    """results/metrics.json, and the table once there is one."""
    document = {"size": SIZE, "forms": results, "measured_again": again}
    (RESULTS / "metrics.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    if set(OURS) <= results.keys():
        (RESULTS / "metrics.md").write_text(render(results, again) + "\n", encoding="utf-8")


def main() -> None:
    """Run the chosen forms one after the other and print their table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--maps", type=int, default=200, help="maps of our forms")
    parser.add_argument(
        "--peer-maps", type=int, help="maps of the others where 200 take too long; as many as ours"
    )
    parser.add_argument("--images", type=int, default=1725, help="images measured again from their grids")
    parser.add_argument("--repeat", type=int, default=5, help="passes of ours, of which the fastest counts")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), help="ours are always run")
    parser.add_argument(
        "--peers-python", default=sys.executable, help="interpreter with torchmetrics and anomalib"
    )
    parser.add_argument(
        "--write", action="store_true", help="write results/metrics.json and results/metrics.md"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.child, maps=options.maps, repeat=options.repeat)))
        return
    results, again = {}, {}
    for form in [*OURS, *REEVALUATIONS, *(form for form in options.forms if form not in OURS)]:
        maps, repeat, python = options.peer_maps or options.maps, 1, sys.executable
        if form in OURS:
            maps, repeat = options.maps, options.repeat
        elif form in REEVALUATIONS:
            maps = options.images
        elif form.startswith(("torchmetrics", "anomalib")):
            python = options.peers_python
        place = again if form in REEVALUATIONS else results
        place[form] = run_child(form, maps=maps, repeat=repeat, python=python)
        if options.write:  # after each form: what takes long is not lost to an interruption
            write(results, again)
    print(render(results, again))
    if wrong := outside(results):
        raise SystemExit("the truth lies outside the bound of " + "; ".join(wrong))
    if not all(result["same"] for result in again.values()):
        raise SystemExit("two processes gave other numbers than one")


if __name__ == "__main__":
    main()
