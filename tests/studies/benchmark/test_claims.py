"""Claims: one owner at a time, also when owners die, sleep, or come all at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from zsad.studies.benchmark.claims import Busy, Claims, claimed


def test_one_owner_at_a_time(tmp_path: Path) -> None:
    with Claims(tmp_path) as first, Claims(tmp_path) as second:
        assert first.take("a") and not second.take("a") and second.take("b")
        assert first.active() == 1  # both are this process
        first.release("a")
        assert second.take("a") and not first.take("a")
        first.release("a")  # not its own any more: nothing happens
        assert not first.take("a")
        with pytest.raises(Busy), claimed(first, "b"):
            pass
    assert not list(tmp_path.glob("*"))


def test_of_many_at_once_one_wins(tmp_path: Path) -> None:
    dead = {"pid": 2**22 + 1, "host": "elsewhere", "token": "x"}
    for round_ in range(20):
        if round_ % 2:  # a void claim lies there
            path = tmp_path / f"{round_}.json"
            path.write_text(json.dumps(dead))
            os.utime(path, (1, 1))
        owners = [Claims(tmp_path) for _ in range(8)]
        won: list[bool] = []
        start = threading.Barrier(len(owners))

        def take(owner: Claims, start=start, won=won, name=str(round_)) -> None:
            start.wait()
            won.append(owner.take(name))

        threads = [threading.Thread(target=take, args=(owner,)) for owner in owners]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert won.count(True) == 1


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_claim_of_a_killed_process_is_taken_over_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from zsad.studies.benchmark.claims import Claims\n"
        "with Claims(Path(sys.argv[1])) as own:\n"
        "    assert own.take('a'); print('taken', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"taken\n"
    with Claims(tmp_path) as mine:
        assert not mine.take("a")
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert mine.take("a")
        assert json.loads((tmp_path / "a.json").read_text())["pid"] == os.getpid()


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_what_a_killed_process_left_is_swept_though_nobody_asks_for_it(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from zsad.studies.benchmark.claims import Claims\n"
        "own = Claims(Path(sys.argv[1])); assert own.take('finished')\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    process = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert process.returncode == -signal.SIGKILL and (tmp_path / "finished.json").exists()
    halves = [tmp_path / name for name in ("a.0f.tmp", "a.0f.void", ".0f.now")]
    young = tmp_path / "b.1e.tmp"
    for path in (*halves, young):
        path.write_text("{}")
    for path in halves:
        os.utime(path, (1, 1))
    living = Claims(tmp_path)
    assert living.take("going on")
    with Claims(tmp_path) as mine:
        assert sorted(tmp_path.glob("*")) == [young, tmp_path / "going on.json"]
        assert not mine.take("going on")
    assert sorted(tmp_path.glob("*")) == [young, tmp_path / "going on.json"]


def test_claim_of_another_machine_is_void_when_nobody_touches_it(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"pid": 1, "host": "elsewhere", "token": "x"}))
    with Claims(tmp_path, stale_seconds=100) as mine:
        assert not mine.take("a")
        now = path.stat().st_mtime
        os.utime(path, (now - 99, now - 99))
        assert not mine.take("a")
        os.utime(path, (now - 101, now - 101))
        assert mine.take("a")


def test_half_written_claim_is_respected_while_young(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"pid": 1')
    with Claims(tmp_path, stale_seconds=100) as mine:
        assert not mine.take("a")
        os.utime(path, (1, 1))
        assert mine.take("a")


def test_file_systems_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    with Claims(tmp_path) as first, Claims(tmp_path) as second:
        assert first.take("a") and not second.take("a")


def test_heartbeat_keeps_a_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zsad.studies.benchmark.claims.BEAT_SECONDS", 0.02)
    with Claims(tmp_path) as mine:
        mine.take("a")
        os.utime(tmp_path / "a.json", (1, 1))
        done = threading.Event()
        for _ in range(200):
            if (tmp_path / "a.json").stat().st_mtime > 1:
                done.set()
                break
            done.wait(0.02)
        assert done.is_set()
