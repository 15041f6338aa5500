"""Batches in order and in constant memory, whatever the files are like."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zsad.errors import ConfigError, DataError, ImageError
from zsad.images import inputs
from zsad.images.decode import load_image
from zsad.images.inputs import Batch, expand_inputs, iter_batches
from zsad.images.picture import Preprocess
from zsad.images.pixels import Reading
from zsad.types import Sample

PREPROCESS = Preprocess(image_size=(8, 10))


def make(folder: Path, count: int) -> list[Sample]:
    samples = []
    for index in range(count):
        path = folder / f"{index:03d}.png"
        Image.new("RGB", (12 + index, 9), (index * 7 % 256, 1, 2)).save(path)
        samples.append(Sample(path, label=index % 2))
    return samples


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("zsad-read")]


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 11, 50])
def test_batches_hold_all_samples_in_order(tmp_path: Path, workers: int, batch_size: int) -> None:
    samples = make(tmp_path, 11)
    batches = list(iter_batches(samples, PREPROCESS, batch_size=batch_size, workers=workers))
    assert [len(batch.samples) for batch in batches] == [
        min(batch_size, 11 - start) for start in range(0, 11, batch_size)
    ]
    assert [sample for batch in batches for sample in batch.samples] == samples
    assert [size for batch in batches for size in batch.sizes] == [(9, 12 + index) for index in range(11)]
    pixels = np.concatenate([batch.pixels for batch in batches])
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels, np.stack([PREPROCESS(load_image(s.image)) for s in samples]))
    assert not reading_threads()


def test_bad_files_are_reported_where_they_stand(tmp_path: Path) -> None:
    samples = make(tmp_path, 7)
    samples[1].image.write_bytes(b"")
    samples[2].image.unlink()
    for index in (4, 5):
        samples[index].image.write_bytes(samples[index].image.read_bytes()[:50])
    batches = list(iter_batches(samples, PREPROCESS, batch_size=2))
    assert [len(batch.samples) for batch in batches] == [1, 1, 0, 1]
    assert [[s for s, _ in batch.errors] for batch in batches] == [
        [samples[1]],
        [samples[2]],
        samples[4:6],
        [],
    ]
    assert batches[2].pixels.shape == (0, 3, 8, 10)
    errors = [error for batch in batches for _, error in batch.errors]
    assert all(isinstance(error, ImageError) and "\n" not in str(error) for error in errors)
    assert "empty" in str(errors[0]) and "does not exist" in str(errors[1])


def test_no_samples_give_no_batch() -> None:
    assert list(iter_batches([], PREPROCESS, batch_size=3)) == []


def test_reading_ahead_is_bounded(tmp_path: Path) -> None:
    sample = make(tmp_path, 1)[0]
    taken = 0

    def endless() -> Iterator[Sample]:
        nonlocal taken
        while True:
            taken += 1
            yield sample

    batches = iter_batches(endless(), PREPROCESS, batch_size=3, workers=2)
    for number in range(1, 6):
        next(batches)
        assert taken <= 3 * number + 2 * 3 + 2
    batches.close()
    assert not reading_threads()


@pytest.mark.parametrize("end", ["break", "error", "interrupt"])
def test_threads_end_when_the_loop_is_left(tmp_path: Path, end: str) -> None:
    samples = make(tmp_path, 20)
    failures = {"error": RuntimeError, "interrupt": KeyboardInterrupt}
    batches = iter_batches(samples, PREPROCESS, batch_size=2)
    try:
        for _ in batches:
            if end == "break":
                break
            raise failures[end]
    except (RuntimeError, KeyboardInterrupt):
        pass
    batches.close()
    assert not reading_threads()


def test_interrupt_while_waiting_ends_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(sample: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inputs, "read_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(iter_batches(make(tmp_path, 5), PREPROCESS, batch_size=2))
    assert not reading_threads()


def test_files_are_read_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(3, timeout=10)
    real = inputs.read_image

    def waiting(source: Path, **options: object) -> object:
        together.wait()  # breaks unless three threads arrive
        time.sleep(0.001)
        return real(source, **options)

    monkeypatch.setattr(inputs, "read_image", waiting)
    batches = list(iter_batches(make(tmp_path, 6), PREPROCESS, batch_size=6, workers=3))
    assert len(batches[0].samples) == 6


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"batch_size": 1, "workers": -1}])
def test_impossible_settings_are_refused_at_the_call(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        iter_batches([], PREPROCESS, **wrong)


def test_too_many_pixels_are_an_error(tmp_path: Path) -> None:
    batch: Batch = next(
        iter_batches(make(tmp_path, 1), PREPROCESS, batch_size=1, reading=Reading(max_pixels=100))
    )
    assert "at most 100" in str(batch.errors[0][1])


# expand_inputs


def test_inputs_are_expanded_sorted_and_deduplicated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.png", "a.JPG", "deep/er/c.tif", "masks/a.png", "._a.jpg", "[x].png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"?")
    (tmp_path / "notes.txt").write_text("?")
    everything = ["[x].png", "a.JPG", "b.png", "deep/er/c.tif"]

    def names(*inputs: str | Path) -> list[str]:
        return [s.image.relative_to(tmp_path).as_posix() for s in expand_inputs(list(inputs))]

    assert names(tmp_path) == everything
    assert (
        names(tmp_path / "b.png", tmp_path, tmp_path / "a.JPG", tmp_path / "deep" / ".." / "b.png")
        == everything
    )
    assert names(str(tmp_path / "*.png")) == ["[x].png", "b.png"]
    assert names(str(tmp_path / "**" / "*.tif")) == ["deep/er/c.tif"]
    assert names(str(tmp_path / "de*")) == ["deep/er/c.tif"]
    assert names(tmp_path / "[x].png") == ["[x].png"]
    assert names(tmp_path / "masks") == ["masks/a.png"]
    assert names(tmp_path / "notes.txt") == ["notes.txt"]  # named by the user: its own error will say why
    monkeypatch.chdir(tmp_path)
    assert [s.image.as_posix() for s in expand_inputs(["b.png", "*.JPG"])] == ["a.JPG", "b.png"]


def test_inputs_without_image_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for given, reason in [
        ([], "no input"),
        ([tmp_path / "empty"], "holds no images"),
        ([tmp_path / "absent.png"], "does not exist"),
        ([str(tmp_path / "*.png")], "no image matches"),
        (["x" * 5000], "does not exist"),
    ]:
        with pytest.raises(DataError, match=reason):
            expand_inputs(given)
