"""Sizes of folders that others work in."""

from __future__ import annotations

import threading
from pathlib import Path
from shutil import rmtree

from zsad.files import bytes_below


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
