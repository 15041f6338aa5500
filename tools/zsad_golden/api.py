"""The few public names of the Python package that are part of the golden set."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from PIL import Image

from zsad_golden.case import Case
from zsad_golden.outputs import summary
from zsad_golden.workspace import Workspace


def _prediction(space: Workspace, prediction: Any) -> dict[str, Any]:
    """Score, map and the serialised form of a prediction."""
    return {
        "score": prediction.score,
        "map": summary(prediction.map),
        "dict": space.normaliser().data(json.loads(json.dumps(prediction.to_dict()))),
    }


def _detector(space: Workspace) -> dict[str, Any]:
    """Prediction of a file, an array, bytes and a folder; calibration; a saved model that is loaded again."""
    import zsad

    part = space.root / "in" / "parts" / "part1.png"
    pixels = np.asarray(Image.open(part))
    detector = zsad.load("promptmoe-tiny", device="cpu")
    result: dict[str, Any] = {
        "file": _prediction(space, detector.predict(part)),
        "array": _prediction(space, detector.predict(pixels)),
        "bytes": _prediction(space, detector.predict(part.read_bytes())),
        "folder": [_prediction(space, one) for one in detector.predict_folder(space.root / "in" / "parts")],
    }
    calibration = detector.calibrate(space.root / "in" / "normals", target_fpr=0.2, confidence=0.0)
    result["calibration"] = space.normaliser().data(calibration.model_dump(mode="json", by_alias=True))
    result["calibrated"] = _prediction(space, detector.predict(part))
    detector.save(space.out)
    result["saved"] = _prediction(space, zsad.load(space.out, device="cpu").predict(part))
    result["files"] = space.outputs()
    return result


def _compared(space: Workspace) -> dict[str, Any]:
    """Scores beside references and beside a batch; the detector itself stays as it is."""
    import zsad

    parts, normals = space.root / "in" / "parts", space.root / "in" / "normals"
    detector = zsad.load("mpama-tiny", device="cpu")
    before = [one.score for one in detector.predict_folder(parts)]
    return {
        "alone": before,
        "references": [
            _prediction(space, one) for one in detector.with_references(normals).predict_folder(parts)
        ],
        "distances": [
            one.score
            for one in detector.with_references(normals, limit=300, scale="distance").predict_folder(parts)
        ],
        "mutual": [_prediction(space, one) for one in detector.with_mutual(parts).predict_folder(parts)],
        "afterwards": [one.score for one in detector.predict_folder(parts)],
    }


API_CASES = [
    Case("python-detector", "api", _detector),
    Case("python-compared", "api", _compared, quick=False),
]
