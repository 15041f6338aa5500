"""What is kept beside grids: whatever happens to its files, it is what was put there, or nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zsad.metrics.classes import ClassScores
from zsad.metrics.streaming import PixelMetrics
from zsad.runs.metric_cache import MaskCache, StateCache
from zsad.studies.benchmark.pixel_counts import ClassPixels, group_starts, read_pixels

MASK = np.zeros((40, 40), bool)
MASK[3:9, 3:9] = True


@pytest.fixture
def pixels() -> PixelMetrics:
    state = PixelMetrics()
    state.update(np.random.default_rng(0).random(MASK.shape, dtype=np.float32), MASK)
    return state


@pytest.fixture
def files(tmp_path: Path, pixels: PixelMetrics) -> dict[str, Path]:
    """A file of states, one of masks and one of a benchmark's pixels, all sound."""
    found = {name: tmp_path / f"{name}.npz" for name in ("states", "masks", "pixels")}
    states = StateCache(found["states"])
    states.put(ClassScores("set", "bolt", pixels=pixels), "key")
    states.write()
    Image.fromarray(MASK).save(tmp_path / "mask.png")
    masks = MaskCache()
    masks.put(MASK, tmp_path / "mask.png", full=MASK.shape)
    masks.write(found["masks"])
    uncut = np.empty(0, int)
    counted = ClassPixels.of([("one", pixels)], group_starts(pixels, uncut), uncut)
    np.savez(found["pixels"], **counted.arrays("bolt"))
    return found


def check(files: dict[str, Path], pixels: PixelMetrics) -> None:
    """Reads all three; what comes back is right."""
    scores = ClassScores("set", "bolt")
    if StateCache(files["states"]).fill(scores, "key", limit=0.2):
        assert isinstance(scores.pixels, PixelMetrics)
        assert scores.pixels.compute().auroc == pixels.compute().auroc and scores.pixels.limit == 0.2
    mask = files["masks"].parent / "mask.png"
    read = MaskCache.of(files["masks"]).read(mask, MASK.shape, image=mask, full=MASK.shape)
    assert (read == MASK).all()
    for name, found in read_pixels(files["pixels"]).items():
        assert (name, found.marked.tolist()) == ("bolt", ["one"])


def test_sound_files_give_back_what_was_put(files: dict[str, Path], pixels: PixelMetrics) -> None:
    check(files, pixels)
    assert StateCache(files["states"]).fill(ClassScores("set", "bolt"), "key", limit=0.3)
    assert not StateCache(files["states"]).fill(ClassScores("set", "bolt"), "other", limit=0.3)
    assert list(MaskCache.of(files["masks"]).packed) and list(read_pixels(files["pixels"])) == ["bolt"]


def test_damaged_files_give_nothing(files: dict[str, Path], pixels: PixelMetrics) -> None:
    rng = np.random.default_rng(1)
    sound = {name: path.read_bytes() for name, path in files.items()}
    for number in range(300):
        for name, path in files.items():
            content = bytearray(sound[name])
            # Most in the directory at the end and in the headers at the start, where bits change what is read.
            start = (0, 0, max(0, len(content) - 600))[number % 3]
            stop = (600, len(content), len(content))[number % 3]
            for place in rng.integers(start, min(stop, len(content)), rng.integers(1, 6)):
                content[place] = rng.integers(0, 256)
            path.write_bytes(content[: rng.integers(0, len(content))] if number % 10 == 0 else content)
        check(files, pixels)


@pytest.mark.parametrize("content", [b"", b"no zip", b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'shape': ("])
def test_other_files_give_nothing(files: dict[str, Path], pixels: PixelMetrics, content: bytes) -> None:
    for path in files.values():
        path.write_bytes(content)
    check(files, pixels)
    np.save(files["states"].with_suffix(".npy"), np.arange(3))
    files["states"].with_suffix(".npy").replace(files["states"])
    check(files, pixels)
