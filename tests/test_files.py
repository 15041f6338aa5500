"""Sizes of folders that others work in, and temporary folders of killed processes."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from shutil import rmtree

from zsad.files import bytes_below, scratch_folder


def test_bytes_below_counts_files_not_links(tmp_path: Path) -> None:
    (tmp_path / "deep" / "deeper").mkdir(parents=True)
    (tmp_path / "a.bin").write_bytes(bytes(5))
    (tmp_path / "deep" / "deeper" / "b.bin").write_bytes(bytes(7))
    (tmp_path / "deep" / "c.json").write_bytes(bytes(11))
    (tmp_path / "link.bin").symlink_to(tmp_path / "a.bin")
    assert bytes_below(tmp_path) == 23
    assert bytes_below(tmp_path, suffix=".bin") == 12
    assert bytes_below(tmp_path / "none") == 0


def test_bytes_below_while_folders_come_and_go(tmp_path: Path) -> None:
    (tmp_path / "kept.bin").write_bytes(bytes(3))
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            for index in range(20):
                folder = tmp_path / f"run{index}" / "maps"
                folder.mkdir(parents=True)
                (folder / "a.bin").touch()
            for index in range(20):
                rmtree(tmp_path / f"run{index}")

    other = threading.Thread(target=work)
    other.start()
    try:
        assert {bytes_below(tmp_path) for _ in range(300)} == {3}
    finally:
        over.set()
        other.join()


def test_scratch_folders_of_killed_processes_are_removed_and_those_in_use_are_not(tmp_path: Path) -> None:
    code = f"""
import os, pathlib, signal
from zsad.files import scratch_folder
with scratch_folder(pathlib.Path({str(tmp_path)!r})) as folder:
    (folder / "graph.onnx").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    with scratch_folder(tmp_path) as in_use:
        (in_use / "graph.onnx").touch()
        subprocess.run([sys.executable, "-c", code], check=False)
        assert len(list(tmp_path.glob(".zsad-*"))) == 2
        with scratch_folder(tmp_path) as other:
            assert set(tmp_path.glob(".zsad-*")) == {in_use, other}
        assert (in_use / "graph.onnx").is_file()
    assert list(tmp_path.iterdir()) == []
