"""`zsad predict` on large pictures, pages, videos and with comparisons: what it writes, goes on with, and refuses."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zsad.cli.main import main
from zsad.runs.store import read_run


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def plate(path: Path, size: tuple[int, int]) -> Path:
    path.parent.mkdir(exist_ok=True)
    values = np.random.default_rng(0).normal(170, 6, (*size, 3))
    values[size[0] // 2 : size[0] // 2 + 9, size[1] // 3 : size[1] // 3 + 9] = 20
    Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    folder = tmp_path / "parts"
    folder.mkdir()
    plate(folder / "a-large.png", (150, 260))
    plate(folder / "b-small.png", (60, 60))
    pages = [Image.open(plate(tmp_path / f"{n}.png", (40 + n, 50))) for n in range(2)]
    pages[0].save(folder / "c-scan.tif", save_all=True, append_images=pages[1:])
    return folder


def test_tiles_and_pages_are_written_and_gone_on_with(toy: Any, mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["predict", str(mixed), "--model", str(toy.model), "--out", str(out), "--tile", "64"]
    assert main(command) == 0
    rows = rows_of(out)
    assert [Path(row["source"]).name for row in rows] == [
        "a-large.png",
        "b-small.png",
        "c-scan.tif#1",
        "c-scan.tif#2",
    ]
    assert isinstance(rows[0]["grid"], str) and (out / rows[0]["grid"]).is_file()
    assert [row["grid"] for row in rows[1:]] == [0, 1, 2]
    assert all((out / row["overlay"]).is_file() for row in rows) and (out / "report.html").is_file()
    found = list(read_run(out))
    assert found[0].grid.shape == (3, 19, 32) and found[0].map.shape == (150, 260)
    assert found[3].size == (41, 50)
    before = (out / "predictions.jsonl").read_bytes()
    assert main(command) == 0
    assert (out / "predictions.jsonl").read_bytes() == before
    (out / rows[0]["grid"]).unlink()  # as a power cut may leave it
    assert main(command) == 0
    assert {row["score"] for row in rows_of(out)} == {row["score"] for row in rows}
    assert len(list(read_run(out))) == 4


def test_a_picture_that_is_shrunk_much_is_worth_one_word(
    toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        plate(tmp_path / "parts" / f"{number}.png", (260, 520))
    plate(tmp_path / "parts" / "small.png", (250, 250))
    command = ["predict", str(tmp_path / "parts"), "--model", str(toy.model), "--no-report", "--no-overlay"]
    assert main([*command, "--out", str(tmp_path / "a")]) == 0
    said = capsys.readouterr().err
    assert said.count("--tile auto") == 1 and "a picture of 520x260 is shrunk 6 times" in said
    assert "a patch of which then covers 65 pixels" in said
    command[1] = str(tmp_path / "parts" / "0.png")
    assert main([*command, "--out", str(tmp_path / "b"), "--tile", "auto"]) == 0
    assert "shrunk" not in capsys.readouterr().err


def test_other_tiles_are_another_run(
    toy: Any, mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = [
        "predict",
        str(mixed),
        "--model",
        str(toy.model),
        "--out",
        str(out),
        "--no-report",
        "--no-overlay",
    ]
    assert main([*command, "--keep-aspect"]) == 0
    assert next(read_run(out)).grid.shape[1:] == (6, 11)
    assert main([*command, "--tile", "64"]) == 2
    assert "other settings (model)" in capsys.readouterr().err


def test_references_are_kept_for_others(toy: Any, tmp_path: Path) -> None:
    first, second = tmp_path / "one", tmp_path / "two"
    command = ["predict", str(toy.images), "--model", str(toy.model), "--no-report", "--no-overlay"]
    assert main([*command, "--out", str(first), "--references", str(toy.images), "--remember", "200"]) == 0
    kept = first / "references.safetensors"
    assert main([*command, "--out", str(second), "--references", str(kept)]) == 0
    assert [row["score"] for row in rows_of(first)] == [row["score"] for row in rows_of(second)]
    assert all("compared" in row["terms"] for row in rows_of(first))


def test_mutual_and_what_excludes_it(toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "predict",
        str(toy.images),
        "--model",
        str(toy.model),
        "--no-report",
        "--no-overlay",
        "--mutual",
    ]
    assert main([*command, "--out", str(tmp_path / "m")]) == 0
    assert len(rows_of(tmp_path / "m")) == 5
    for more, message in (
        (["--references", str(toy.images)], "--references and --mutual exclude each other"),
        (["--tile", "64"], "leave out --tile or --mutual"),
        (["--engine", "ray"], "leave out --mutual, or --engine"),
    ):
        assert main([*command, "--out", str(tmp_path / "x"), *more]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tile", "wide"], "expected auto, off, or a side in pixels"),
        (["--levels", "9,1"], "two percentiles"),
        (["--levels", "1,x"], "--levels is '1,x', expected two numbers"),
        (["--window", "40"], "--window is '40', expected two numbers"),
        (["--overlap", "1.5", "--tile", "auto"], "overlap is 1.5"),
        (["--references", "nowhere"], "nowhere does not exist"),
        (["--every", "0"], "--every is 0"),
    ],
)
def test_wrong_options_are_one_line(
    toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    out = tmp_path / "out"
    assert main(["predict", str(toy.images), "--model", str(toy.model), "--out", str(out), *more]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not out.exists()


def test_calibrations_know_the_tiles(
    toy: Any, mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "calibration.json"
    calibrate = [
        "calibrate",
        str(toy.model),
        "--normals",
        str(toy.images),
        "--target-fpr",
        "0.4",
        "--confidence",
        "0",
    ]
    assert main([*calibrate, "--out", str(made), "--tile", "64"]) == 0
    predict = ["predict", str(mixed), "--model", str(toy.model), "--calibration", str(made), "--no-report"]
    assert main([*predict, "--out", str(tmp_path / "a"), "--tile", "64"]) == 0
    assert all(row["verdict"] for row in rows_of(tmp_path / "a"))
    capsys.readouterr()
    assert main([*predict, "--out", str(tmp_path / "b")]) == 2
    assert "with the same --tile" in capsys.readouterr().err


def test_a_video_frame_by_frame(toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    av = pytest.importorskip("av")
    clip = tmp_path / "clip.mp4"
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 10)
        for number in range(8):
            frame = av.VideoFrame.from_image(Image.new("RGB", (96, 64), (20 * number,) * 3))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    out = tmp_path / "out"
    command = ["predict", str(clip), "--model", str(toy.model), "--out", str(out), "--every", "3"]
    assert main(command) == 0
    rows = rows_of(out)
    assert [row["source"] for row in rows] == [f"{clip}#{number}" for number in (1, 4, 7)]
    np.testing.assert_allclose([row["time"] for row in rows], [0, 0.3, 0.6], atol=1e-3)
    assert [found.time for found in read_run(out)] == [row["time"] for row in rows]
    assert main(command) == 0 and len(rows_of(out)) == 3
    capsys.readouterr()
    clip.write_bytes(b"no video at all")
    assert main([*command[:-4], "--out", str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err
    assert "cannot be read as a video" in error and error.strip().count("\n") == 0
