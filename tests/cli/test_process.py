"""`zsad predict` as a process of its own: signals, pipes, limits of files. One model start each, so few."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zsad.cli.main import main
from zsad.train.checkpoint import read_card

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX")

MANY = 70  # images: seconds of work, so that a signal always comes in the middle

LIMITED = """
import resource, sys
from zsad.cli.main import main
import zsad.detector, zsad.cli.console
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
sys.exit(main(sys.argv[1:]))
"""


def command(toy, out: Path, *more: object) -> list[str]:
    words = [
        "predict",
        toy.images,
        "--model",
        toy.model,
        "--out",
        out,
        "--device",
        "cpu",
        "--threads",
        1,
        *more,
    ]
    return [str(word) for word in words]


def sources(out: Path) -> list[str]:
    return [json.loads(line)["source"] for line in (out / "predictions.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("how", "code", "word"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")]
)
def test_interrupted_process_goes_on(
    toy, make_images, tmp_path: Path, capsys, how: str, code: int, word: str
) -> None:
    images = make_images(tmp_path / "in", MANY)
    out = tmp_path / "out"
    words = [*command(toy, out, "--batch-size", 1, "--no-report"), str(images)]
    process = subprocess.Popen(
        [sys.executable, "-m", "zsad.cli.main", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts the tests in the background has them ignore SIGINT, and their children with them.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    for _ in range(4):  # the headline and three images
        assert process.stdout.readline()
    process.send_signal(signal.Signals[how])
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert said.count("\n") == 1 and word in said
    assert (out / "scores.csv").stat().st_size > 0
    done = sources(out)
    assert 3 <= len(done) < MANY + 5
    assert main(words) == 0
    assert f"{len(done)} images of this run finished before" in capsys.readouterr().err
    assert sources(out)[: len(done)] == done and len(set(sources(out))) == len(sources(out)) == MANY + 5


def test_killed_process_leaves_whole_rows_and_goes_on(toy, make_images, tmp_path: Path, capsys) -> None:
    images = make_images(tmp_path / "in", MANY)
    out = tmp_path / "out"
    words = [*command(toy, out, "--batch-size", 1, "--no-report"), str(images)]
    process = subprocess.Popen([sys.executable, "-m", "zsad.cli.main", *words], stdout=subprocess.PIPE)
    assert process.stdout is not None
    lines = [process.stdout.readline().decode() for _ in range(6)]
    shown = {Path(line.split()[-1]).name for line in lines[1:]}
    process.kill()
    process.wait()
    process.stdout.close()
    before = (out / "predictions.jsonl").read_bytes()
    whole = before[: before.rindex(b"\n") + 1]
    rows = [json.loads(line) for line in whole.splitlines()]
    assert {Path(row["source"]).name for row in rows} >= shown
    for row in rows:
        assert (out / row["overlay"]).stat().st_size > 500
    grids = np.load(out / "grids.npy")[: len(rows)].copy()
    assert main(words) == 0
    assert f"{len(rows)} images of this run finished before" in capsys.readouterr().err
    assert (out / "predictions.jsonl").read_bytes().startswith(whole)
    assert len(set(sources(out))) == len(sources(out)) == MANY + 5
    assert np.array_equal(np.load(out / "grids.npy")[: len(rows)], grids)


def test_reader_that_goes_away_does_not_stop_the_work(toy, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "zsad.cli.main", *command(toy, out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait(timeout=60) == 0
    assert said == b"" and len(sources(out)) == 5


def test_bar_on_the_terminal_leaves_results_on_stdout(toy, tmp_path: Path) -> None:
    import pty

    terminal, side = pty.openpty()
    with os.fdopen(terminal, "rb", buffering=0) as shown:
        done = subprocess.run(
            [sys.executable, "-m", "zsad.cli.main", *command(toy, tmp_path / "out")],
            stdout=subprocess.PIPE,
            stderr=side,
            env={**os.environ, "TERM": "xterm"},
        )
        os.close(side)
        bar = shown.read(4096)
    assert done.returncode == 0 and b"scoring" in bar
    assert done.stdout.count(b"part0") == 5 and b"\x1b" not in done.stdout


def test_files_that_may_not_grow_are_one_clear_line(toy, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *command(toy, tmp_path / "out", "--no-overlay")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and "cannot write" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&- <&-"])
def test_closed_standard_streams_do_not_matter(tmp_path: Path, closed: str) -> None:
    shell = f'exec "$0" -m zsad list methods {closed}'
    done = subprocess.run(["sh", "-c", shell, sys.executable], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert ("promptmoe" in done.stdout) == (">&-" not in closed.replace("2>&-", ""))


def test_help_into_a_closed_pipe_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "zsad", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    said = process.stderr.read()
    assert (process.wait(timeout=60), said) == (0, b"")


def test_full_standard_output_is_one_clear_line(toy, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "zsad.cli.main", "list", "methods"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "No space left" in done.stderr


def test_torchrun_trains_with_two_processes(toy, tmp_path: Path) -> None:
    """The command of the README on two processes of gloo: one model, one log, one voice."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_gloo_available()):
        pytest.skip("no gloo in this PyTorch")
    for index, kind in enumerate(("good", "good", "spot", "spot")):
        pixels = np.random.default_rng(index).integers(60, 120, (40, 40, 3), dtype=np.uint8)
        mask = np.zeros((40, 40), np.uint8)
        mask[10:20, 10:24] = 255
        pixels[mask > 0] = 240 if kind == "spot" else pixels[mask > 0]
        for folder, image in (("test", pixels), ("ground_truth", mask)):
            if folder == "test" or kind == "spot":
                place = tmp_path / "disc" / folder / kind
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(place / f"{index}.png")
    out = tmp_path / "run"
    launch = "-m torch.distributed.run --standalone --nproc-per-node 2 -m zsad train promptmoe --device cpu"
    words = [*launch.split(), "--threads", "1", "--data", str(tmp_path / "disc"), "--out", str(out)]
    words += ["--backbone", str(toy.backbone), "--epochs", "1", "--batch-size", "2"]
    words += ["--set", "heads=4", "--set", "experts=2", "--set", "top_k=1"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote ") == 1 and done.stderr.count("2 normal and 2 anomalous") == 1
    assert "Traceback" not in done.stderr
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in log] == [1, 2]
    assert read_card(out / "model.safetensors").training.samples == 4
