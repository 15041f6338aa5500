"""An auxiliary data set of drawn scenes on disk, in MVTec's layout, for training without real images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from zsad.errors import ConfigError
from zsad.files import make_folder, storage_errors
from zsad.synth.scenes import Scene, generate


def write_data_set(
    folder: str | Path,
    *,
    count: int,
    seed: int = 0,
    size: tuple[int, int] = (320, 320),
    defective: float = 0.5,
) -> Path:
    """Write `count` scenes below `folder` as `MATERIAL/test/KIND/*.png` with masks in `MATERIAL/ground_truth`.

    Every scene depends on `seed` and its number alone, so a longer set begins like a shorter one.

    Args:
        folder: created if missing; `zsad train --data` takes it.
        count: scenes, at least 1.
        seed: of all of them.
        size: rows and columns of the pictures.
        defective: share of scenes with a defect, in [0, 1].

    Returns:
        The folder.

    Raises:
        ConfigError: no scenes asked for, or a share outside [0, 1].
        StorageError: the disk is full or cannot be written.
    """
    if count < 1 or not 0 <= defective <= 1:
        raise ConfigError(
            f"{count} scenes of which {defective} are defective cannot be drawn; "
            f"use a count of at least 1 and a share from 0 to 1"
        )
    root = make_folder(Path(folder).expanduser())
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        scene = generate(rng, size=size, defect="random" if rng.random() < defective else None)
        _write(root / scene.material.replace(" ", "_"), f"{index:06d}", scene)
    return root


def _write(folder: Path, name: str, scene: Scene) -> None:
    with storage_errors(folder):
        kind = make_folder(folder / "test" / scene.kind)
        Image.fromarray(scene.image).save(kind / f"{name}.png")
        if scene.label:
            masks = make_folder(folder / "ground_truth" / scene.kind)
            Image.fromarray(scene.mask.astype(np.uint8) * 255).save(masks / f"{name}_mask.png")
