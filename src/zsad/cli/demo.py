"""`zsad demo`: real solar cells that the bundled model has never seen, scored and compared with their labels."""

from __future__ import annotations

import csv
import hashlib
import math
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from zsad.types import Sample

_GROUPS = (("mono", 0.0), ("mono", 1.0), ("poly", 0.0), ("poly", 1.0))


def demo_command(
    *,
    out: Path = Path("results"),
    count: int = 100,
    model: str = "promptmoe-tiny",
    device: str = "auto",
    threads: int | None = None,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Score a pinned sample of real solar cells that the bundled model has never seen.

    The cells are electroluminescence images of the package elpv-dataset: as many functional as defective ones, of
    mono- and polycrystalline silicon, chosen by a hash of their names. Ends with the image AUROC of this sample.

    Args:
        out: Folder for the results, as of zsad predict.
        count: How many cells, 4 to 1000.
        model: Bundled model, run folder or checkpoint.
        device: auto, cpu, cuda, cuda:1 or mps.
        threads: Processor threads; by default all cores.
        overwrite: Throw away the run that lies in the folder.
    """
    from zsad.cli.console import print_summary, printing
    from zsad.device import use_threads
    from zsad.loading import DEFAULT_MODEL, load
    from zsad.runs.folder import check_place
    from zsad.runs.predict_run import RunInputs, RunOptions, predict

    options = RunOptions(out=out, overwrite=overwrite)
    check_place(out)
    samples = demo_samples(count)
    use_threads(threads)
    detector = load(model, device=device, calibration=None)
    release = version("elpv-dataset")
    inputs = RunInputs((f"elpv-dataset {release}, {count} cells",), tuple(samples))
    title = f"Demo: {count} solar cells (elpv-dataset {release})"
    with printing(detector, inputs) as printer:
        outcome = predict(detector, inputs, options=options, title=title, reporter=printer)
    _say_auroc(out, unseen=model == DEFAULT_MODEL)
    return print_summary(outcome, options)


def dataset_folder() -> Path:
    """Return the folder in which elpv-dataset keeps labels.csv and its images.

    Raises:
        ConfigError: it is not installed.
    """
    from zsad.errors import ConfigError

    spec = find_spec("elpv_dataset")
    locations = list(spec.submodule_search_locations or ()) if spec is not None else []
    folder = Path(locations[0]) / "data" if locations else Path()
    if not (folder / "labels.csv").is_file():
        raise ConfigError("the demo needs the package elpv-dataset, get it with: pip install 'zsad[demo]'")
    return folder


def demo_samples(count: int) -> list[Sample]:
    """The pinned cells: per silicon type and label those whose names have the smallest SHA-256.

    Only cells on which the experts agreed are taken: probability of a defect 0 (functional) or 1 (defective).

    Raises:
        ConfigError: an impossible count, or the data set is not installed.
    """
    from zsad.errors import ConfigError
    from zsad.types import Sample

    if not 4 <= count <= 1000:
        raise ConfigError(f"--count is {count}, expected 4 to 1000")
    folder = dataset_folder()
    groups: dict[tuple[str, float], list[str]] = {group: [] for group in _GROUPS}
    with (folder / "labels.csv").open(encoding="utf-8") as stream:
        for cells in csv.reader(stream, delimiter=" ", skipinitialspace=True):
            path, chance, kind = (cell for cell in cells if cell)
            if (kind, float(chance)) in groups:
                groups[kind, float(chance)].append(path)
    samples = []
    for place, ((silicon, probability), names) in enumerate(groups.items()):
        share = count // 4 + (1 if place < count % 4 else 0)
        for name in sorted(names, key=_hash)[:share]:
            samples.append(
                Sample(
                    image=folder / name,
                    class_name="solar cell",
                    label=int(probability),
                    kind="defective" if probability else "good",
                    dataset=f"elpv {silicon}",
                )
            )
    return sorted(samples, key=lambda sample: sample.image)


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _say_auroc(out: Path, *, unseen: bool) -> None:
    from zsad.cli.console import say
    from zsad.metrics.functional import auroc
    from zsad.runs.store import read_rows

    rows = [row for row in read_rows(out) if row.get("label") is not None]
    scores, labels = [row["score"] for row in rows], [row["label"] for row in rows]
    anomalous = sum(labels)
    normal = len(labels) - anomalous
    if not normal or not anomalous:
        return
    value = auroc(scores, labels)
    error = standard_error(value, normal=normal, anomalous=anomalous)
    remark = ", a kind of thing the model has never seen" if unseen else ""
    say()
    say(
        f"image AUROC {100 * value:.1f} % (± {100 * error:.0f} at this sample size): {normal} functional against "
        f"{anomalous} defective solar cells{remark}"
    )


def standard_error(auroc: float, *, normal: int, anomalous: int) -> float:
    """Standard error of an area under the ROC curve (Hanley and McNeil, 1982, Eq. 2)."""
    first = auroc / (2 - auroc)
    second = 2 * auroc**2 / (1 + auroc)
    variance = auroc * (1 - auroc) + (anomalous - 1) * (first - auroc**2) + (normal - 1) * (second - auroc**2)
    return math.sqrt(max(0.0, variance) / (normal * anomalous))
