"""`zsad monitor`: do new images still score as those of the calibration did?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from zsad.cli.options import ModelOptions

if TYPE_CHECKING:
    from zsad.calibration.calibration import Calibration
    from zsad.calibration.drift import Drift

EXIT_DRIFT = 4


def monitor_command(
    calibration: Path,
    results: Path,
    /,
    *,
    alarm_rate: float = 0.01,
    last: int | None = None,
    model: str | None = None,
    batch_size: int | None = None,
    tower: ModelOptions | None = None,
    json_: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Compare the scores of new images with the calibration's, and warn of drift (exit code 4).

    Two tests together raise a false alarm at most at the alarm rate: one looks at all new images at once, one goes
    through them in order and says from which on they differ.

    Args:
        calibration: File of zsad calibrate.
        results: Folder that zsad predict wrote, its predictions.jsonl, or a folder of images (then with --model).
        alarm_rate: Rate of false alarms while nothing has changed.
        last: Look only at so many of the latest results.
        model: Model that scores a folder of images; must be the calibrated one.
        batch_size: Images a pass; by default what suits the device.
        json_: Print the numbers as JSON.
    """
    from zsad.calibration.calibration import read_calibration
    from zsad.calibration.drift import compare
    from zsad.cli.console import note, note_skipped, say
    from zsad.errors import CalibrationError

    if last is not None and last < 1:
        raise CalibrationError(f"--last is {last}, expected 1 or more results")
    reference = read_calibration(calibration)
    if model is None:
        scores = _of_results(reference, results)
    else:
        detector = (tower or ModelOptions()).load(model, calibration=calibration)
        predictions = detector.predict_folder(results, batch_size=batch_size, on_error=note_skipped)
        scores = [prediction.score for prediction in predictions]
    drift = compare(
        reference.scores,
        scores if last is None else scores[-last:],
        threshold=reference.image.value,
        alarm_rate=alarm_rate,
    )
    if json_:
        say(json.dumps(_as_dict(drift)))
    else:
        for line in _lines(drift, reference):
            say(line)
    if drift.drifted:
        note(f"zsad: warning: drift: {drift.kind}; look at the images, then calibrate again")
    return EXIT_DRIFT if drift.drifted else 0


def _of_results(calibration: Calibration, results: Path) -> list[float]:
    """Scores in the order of the rows, of a run made as the calibration was."""
    from zsad.calibration.drift import check_match
    from zsad.errors import DataError
    from zsad.runs.store import ROWS_FILE, RUN_FILE, read_rows, read_run_file

    folder = results.parent if results.name == ROWS_FILE else results
    if not (folder / ROWS_FILE).is_file():
        raise DataError(
            f"{results} holds no {ROWS_FILE}; name a folder that zsad predict wrote, or, for a folder of images, "
            "the calibrated model with --model"
        )
    if (folder / RUN_FILE).is_file():
        settings: dict[str, Any] = read_run_file(folder).get("settings", {})
        region = None if calibration.region is None else calibration.region.digest()
        for expected, recorded, what in (
            (calibration.model.identity, settings.get("model"), "model"),
            (region, settings.get("region"), "region of interest"),
            (calibration.object_name, settings.get("object"), "--object"),
        ):
            check_match(expected, recorded, what=what)
    return [row["score"] for row in read_rows(folder) if "error" not in row]


def _lines(drift: Drift, calibration: Calibration) -> list[str]:
    """The result for people."""
    low, high = drift.above_interval
    half = drift.alarm_rate / 2
    lines = [
        f"{drift.count:,} new images against {drift.normals:,} of the calibration of {calibration.created[:10]}",
        f"{'quantile':>8}  {'calibrated':>10}  {'new':>8}  {'shift':>8}",
    ]
    for share, before, after in drift.quantiles:
        lines.append(f"{100 * share:>6.0f} %  {before:>10.4f}  {after:>8.4f}  {after - before:>+8.4f}")
    since = f", alarm at image {drift.since}" if drift.since is not None else ""
    return [
        *lines,
        f"above the threshold: {drift.above} of {drift.count} "
        f"({100 * low:.1f} to {100 * high:.1f} % at 95 % confidence)",
        f"distribution: distance {drift.distance:.3f}, p-value {drift.ks_p:.3g} (alarm at {half:g} or less)",
        f"sequence: evidence {drift.evidence:.3g} (alarm at {1 / half:g} or more{since})",
        f"{'drift' if drift.drifted else 'no drift'} at a false alarm rate of {100 * drift.alarm_rate:g} %",
    ]


def _as_dict(drift: Drift) -> dict[str, Any]:
    from dataclasses import asdict

    quantiles = [{"share": a, "calibrated": b, "new": c} for a, b, c in drift.quantiles]
    kind = drift.kind if drift.drifted else None
    return {**asdict(drift), "quantiles": quantiles, "drifted": drift.drifted, "kind": kind}
