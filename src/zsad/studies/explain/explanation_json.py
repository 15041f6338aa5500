"""Numbers of an explanation as JSON."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from zsad.studies.explain.collect import PatchPicture, Usage
from zsad.studies.explain.embeddings import ExpertMap
from zsad.studies.explain.explanation import Explanation
from zsad.studies.explain.training_curves import RunCurves


def explanation_json(explanation: Explanation) -> dict[str, Any]:
    """Return all numbers as plain values; arrays are nested lists [layer][expert], NaN is null."""
    pools = explanation.pools
    names = {
        name: {"unit": pool.unit, "layers": list(pool.layers), "experts": list(pool.experts)}
        for name, pool in pools.items()
    }
    return {
        "model": explanation.model,
        "settings": explanation.settings,
        "datasets": {
            name: dict(zip(("normal", "anomalous", "unlabelled"), counts, strict=True))
            for name, counts in explanation.datasets.items()
        },
        "pools": names,
        "activation": [_usage(entry) for entry in explanation.usage],
        "contrasts": [
            {
                "pool": line.pool,
                "effective_experts": plain(line.effective),
                "distance_between_datasets": plain(line.datasets),
                "distance_normal_anomalous_images": plain(line.labels),
                "distance_normal_anomalous_pixels": plain(line.pixels),
            }
            for line in explanation.contrasts
        ],
        "regions": [_usage(entry) for entry in explanation.regions],
        "patches": [_picture(picture) for picture in explanation.collected.pictures],
        "embeddings": {
            "projection": explanation.projection,
            "maps": [_map(entry) for maps in explanation.maps for entry in maps],
        },
        "curves": [_curves(run) for run in explanation.runs],
        "skipped": [{"file": file, "reason": reason} for file, reason in explanation.collected.skipped],
        "notes": list(explanation.notes),
    }


def _map(entry: ExpertMap) -> dict[str, Any]:
    return {
        "layer": entry.layer,
        "points": {pool: plain(points) for pool, points in entry.points.items()},
        "explained_variance": plain(entry.explained),
        "spread": {pool: plain(value) for pool, value in entry.spread.items()},
        "mean_cosine": {pool: plain(value) for pool, value in entry.cosine.items()},
    }


def _curves(run: RunCurves) -> dict[str, Any]:
    return {
        "run": run.name,
        "steps": run.steps,
        "epochs": run.epochs,
        "not_recorded": list(run.unrecorded),
        "terms": {
            term: {
                "weight": curve.weight,
                **{name: plain(getattr(curve, name)) for name in ("steps", "mean", "low", "high")},
            }
            for term, curve in run.curves.items()
        },
    }


def _usage(entry: Usage) -> dict[str, Any]:
    return {
        "dataset": entry.dataset,
        "group": entry.group,
        "pool": entry.pool,
        "unit": entry.unit,
        "count": entry.count,
        "images": entry.images,
        "chosen": entry.chosen.tolist(),
        "strongest": entry.strongest.tolist(),
        "chosen_share": plain(entry.share("chosen")),
        "strongest_share": plain(entry.share("strongest")),
        "mean_weight": plain(entry.share("weight")),
        "effective_experts": plain(entry.effective_experts()),
    }


def _picture(picture: PatchPicture) -> dict[str, Any]:
    sample = picture.sample
    return {
        "image": str(sample.image),
        "dataset": sample.dataset,
        "label": sample.label,
        "strongest": {pool: index.tolist() for pool, index in picture.strongest.items()},
        "defect": None if picture.defect is None else picture.defect.astype(int).tolist(),
    }


def plain(values: Any) -> Any:
    """Numbers with six significant digits, in nested lists."""
    if values is None:
        return None
    if np.ndim(values):
        return [plain(value) for value in values]
    number = float(values)
    return float(f"{number:.6g}") if math.isfinite(number) else None
