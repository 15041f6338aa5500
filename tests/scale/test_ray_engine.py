"""`zsad predict --engine ray` on two local workers: to the last byte what one process gives, and resumable."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import zsad
from zsad.cli.cluster import ClusterRequest
from zsad.cli.main import main
from zsad.cli.options import ModelOptions
from zsad.device import available_cores
from zsad.errors import CheckpointError, ConfigError, EngineError
from zsad.runs.rows import COLUMNS
from zsad.runs.store import read_rows
from zsad.scale import ray_engine as distributed
from zsad.scale.ray_engine import Cluster, predict_with_ray


def test_without_ray_one_line_says_what_to_install(toy, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    words = [
        "predict",
        str(toy.images),
        "--model",
        str(toy.model),
        "--engine",
        "ray",
        "--out",
        str(tmp_path / "o"),
    ]
    assert main(words) == 2
    assert capsys.readouterr().err.count("pip install 'zsad[scale]'") == 1
    assert not (tmp_path / "o").exists()


def test_a_worker_has_the_threads_of_one_process(toy) -> None:
    detector = zsad.load(toy.model, device="cpu")
    for asked, threads in ((None, available_cores()), (1, 1), (3, 3)):
        made = ClusterRequest(
            str(toy.model), ModelOptions(device="cpu", threads=asked), "none", None, 2, None
        )
        assert made.loading(detector).threads == threads
        assert made.cluster().cores == (asked or max(1, available_cores() // 2))


@pytest.fixture(scope="module")
def cluster():
    """One cluster for all tests here: commands use the one that their process has joined."""
    ray = pytest.importorskip("ray")
    pytest.importorskip("pyarrow")
    quiet = {"log_to_driver": False, "logging_level": "error"}
    address = os.environ.get("RAY_ADDRESS", "local")
    own = {"num_cpus": 3, "include_dashboard": False} if address == "local" else {}
    ray.init(address=address, **own, **quiet)
    yield ray
    ray.shutdown()


@pytest.fixture
def predict(toy, cluster, capsys):
    """Runs `zsad predict ... --engine ray` on two workers; returns exit code, stdout and stderr."""

    def run(*words: object, engine: str = "ray") -> tuple[int, str, str]:
        workers = ["--workers", "2"] if engine == "ray" else ["--no-overlay", "--no-report"]
        fixed = ["--model", str(toy.model), "--device", "cpu", "--threads", "1", "--engine", engine, *workers]
        code = main(["predict", *map(str, words), *fixed])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def table_of(path: Path) -> list[dict]:
    from pyarrow import parquet

    return parquet.read_table(path).to_pylist()


def without_time(out: Path) -> list[dict]:
    rows = sorted(read_rows(out), key=lambda row: row["source"])
    return [{key: value for key, value in row.items() if key not in ("ms", "grid")} for row in rows]


def test_two_workers_give_the_bytes_of_one_process(predict, make_images, tmp_path: Path) -> None:
    from zsad.scale.parquet import read_table, write_table

    images = make_images(tmp_path / "in", 37)
    (images / "broken.png").write_bytes(b"no image")
    code, printed, said = predict(images, "--out", tmp_path / "ray")
    assert code == 3 and said.count("broken.png is not an image") == 1
    assert printed.count("part") == 37 and "predictions.parquet" in printed
    assert predict(images, "--out", tmp_path / "one", engine="local")[0] == 3
    assert without_time(tmp_path / "ray") == without_time(tmp_path / "one")
    made = (tmp_path / "ray" / "predictions.parquet").read_bytes()
    assert made == write_table(tmp_path / "one").read_bytes()
    rows = table_of(tmp_path / "ray" / "predictions.parquet")
    assert list(rows[0]) == list(COLUMNS) and len(rows) == 38
    assert [row["path"] for row in rows] == sorted(row["path"] for row in rows)
    assert [Path(row["path"]).name for row in rows if row["error"]] == ["broken.png"]
    assert len(list(read_table(tmp_path / "ray" / "predictions.parquet"))) == 37
    # The same run goes on in either engine.
    code, _, said = predict(images, "--out", tmp_path / "ray", engine="local")
    assert code == 3 and "37 images of this run finished before" in said


def test_finished_rows_are_not_computed_again(predict, make_images, tmp_path: Path) -> None:
    images, out = make_images(tmp_path / "in", 12), tmp_path / "out"
    assert predict(images, "--out", out)[0] == 0
    whole = (out / "predictions.parquet").read_bytes()
    lines = (out / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    (out / "predictions.jsonl").write_bytes(b"".join(lines[:7]) + lines[7][:30])
    code, printed, said = predict(images, "--out", out)
    assert code == 0 and "7 images of this run finished before" in said and "5 images scored" in printed
    assert (out / "predictions.jsonl").read_bytes().startswith(b"".join(lines[:7]))
    assert (out / "predictions.parquet").read_bytes() == whole
    code, printed, said = predict(images, "--out", out)
    assert code == 0 and "12 images" in said and "0 images scored" in printed


def test_parquet_and_addresses(predict, toy, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    paths = sorted(toy.images.iterdir())
    contents = [path.read_bytes() for path in paths] + [b"broken", None]
    parquet.write_table(arrow.table({"picture": contents}), tmp_path / "in.parquet", row_group_size=3)
    assert predict(tmp_path / "in.parquet", "--column", "picture", "--out", tmp_path / "a")[0] == 3
    assert predict(toy.images.as_uri(), "--out", tmp_path / "b")[0] == 0
    assert predict(toy.images, "--out", tmp_path / "c")[0] == 0
    first, second, third = (table_of(tmp_path / name / "predictions.parquet") for name in "abc")
    for mine, other, own in zip(first[:5], second, third, strict=True):
        assert {**mine, "path": ""} == {**other, "path": ""} == {**own, "path": ""}
    assert [row["path"] for row in first] == [f"{tmp_path / 'in.parquet'}#{n}" for n in range(1, 8)]
    assert [row["error"] is None for row in first] == [True] * 5 + [False] * 2
    assert second[0]["path"] == paths[0].as_uri()
    code, _, said = predict(tmp_path / "in.parquet", "--column", "picture", "--out", tmp_path / "a")
    assert code == 3 and "5 images of this run finished before" in said
    code, _, said = predict(toy.images.as_uri(), "--out", tmp_path / "b")
    assert code == 0 and "5 images of this run finished before" in said


def test_what_a_worker_says_of_the_model_is_one_line(cluster, toy) -> None:
    import zsad
    from zsad.scale.predictor import Loading
    from zsad.scale.sources import find_images

    images = find_images([str(toy.images)])
    preprocess = zsad.load(toy.model, device="cpu").model.preprocess
    loading = Loading(model="no-such-model", device="cpu", threads=1)
    with pytest.raises(CheckpointError, match="no-such-model") as caught:
        list(predict_with_ray(images, loading, preprocess, cluster=Cluster(workers=1)))
    assert "\n" not in str(caught.value)


def test_numbers_and_clusters_that_are_not_there(predict, toy, tmp_path: Path) -> None:
    assert predict(toy.images, "--out", tmp_path / "a", "--backend", "auto")[0] == 2
    with pytest.raises(ConfigError, match="--workers is 0"):
        ClusterRequest("m", ModelOptions(), "none", None, 0, None).cluster()

    class Absent:
        def is_initialized(self) -> bool:
            return False

        def init(self, **options: object) -> None:
            raise ConnectionError("nobody\nat home")

    refused = pytest.raises(EngineError, match=r"no Ray cluster at 10\.0\.0\.1:1 \(at home\)")
    with refused, distributed.joined_cluster(Absent(), Cluster(address="10.0.0.1:1")):
        pass


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_killed_run_keeps_every_printed_row(cluster, toy, make_images, tmp_path: Path) -> None:
    images, out = make_images(tmp_path / "in", 300), tmp_path / "out"
    words = [
        sys.executable,
        "-m",
        "zsad.cli.main",
        "predict",
        str(images),
        "--model",
        str(toy.model),
        "--device",
        "cpu",
    ]
    words += ["--threads", "1", "--engine", "ray", "--workers", "2", "--out", str(out)]
    words += ["--address", os.environ["RAY_ADDRESS"]] if "RAY_ADDRESS" in os.environ else []
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    printed = [process.stdout.readline() for _ in range(21)][1:]
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    done = [row["source"] for row in read_rows(out)]
    assert {line.split()[-1].rsplit("/")[-1] for line in printed} <= {Path(name).name for name in done}
    before = (out / "predictions.jsonl").read_bytes()
    again = subprocess.run(words, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert f"{len(done)} images of this run finished before" in again.stderr
    whole = before[: before.rindex(b"\n") + 1]
    assert (out / "predictions.jsonl").read_bytes().startswith(whole)
    assert len({row["source"] for row in read_rows(out)}) == len(list(read_rows(out))) == 300
    shutil.rmtree(out / "overlays")
    assert json.loads((out / "run.json").read_text())["settings"]["overlay"] is False
