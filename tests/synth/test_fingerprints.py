"""Scenes stay what they are for every seed: fingerprints of one scene for each kind, material and camera.

`python tests/synth/test_fingerprints.py` writes them anew, after a change of drawings that is meant.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zsad.synth import KINDS, generate

FILE = Path(__file__).with_name("fingerprints.json")
SEEDS = range(60)
SIZES = ((48, 64), (96, 96), (131, 97))


def fingerprint(seed: int) -> dict[str, Any]:
    """Words, next random number, area of the mask and mean colours of the quadrants of a scene."""
    rng = np.random.default_rng([17, seed])
    size = SIZES[seed % len(SIZES)]
    kinds = (*KINDS, "random", None)
    scene = generate(rng, size=size, defect=kinds[seed % len(kinds)])
    halves = [np.array_split(half, 2, axis=1) for half in np.array_split(scene.image, 2)]
    return {
        "scene": [scene.label, scene.kind, scene.material, scene.caption],
        "next": float(rng.random()),
        "foreground": 0 if scene.foreground is None else int(scene.foreground.sum()),
        "mask": int(scene.mask.sum()),
        "colours": [part.mean(axis=(0, 1)).round(2).tolist() for half in halves for part in half],
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed_draws_the_scene_that_it_always_drew(seed: int) -> None:
    expected, actual = json.loads(FILE.read_text())[seed], fingerprint(seed)
    for name in ("scene", "next"):
        assert actual[name] == expected[name]
    # Processors and versions of Pillow round differently: a level in a hundred pixels, no more.
    np.testing.assert_allclose(actual["colours"], expected["colours"], atol=0.02)
    for name in ("foreground", "mask"):
        assert actual[name] == pytest.approx(expected[name], rel=0.005, abs=1)


if __name__ == "__main__":
    rows = ",\n".join(json.dumps(fingerprint(seed)) for seed in SEEDS)
    FILE.write_text(f"[\n{rows}\n]\n")
