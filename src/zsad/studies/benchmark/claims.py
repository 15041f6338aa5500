"""Who works on what, said by files: any number of processes and machines share one folder without a server.

A claim is a file that is created whole or not at all and names process, machine and a token of its owner. The owner
touches it as long as it lives; a claim whose process is gone, or that was not touched for long, is taken over. Two
owners of one claim are possible after a long sleep of one of them, and harmless: results are the same, and each is
written whole.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from zsad.files import make_folder, storage_errors

BEAT_SECONDS = 5.0
STALE_SECONDS = 120.0


class Busy(Exception):
    """Another process is at it; what needs it comes later."""


class Claims:
    """The claims of this process in a folder.

    Args:
        folder: shared by all that work together.
        stale_seconds: after which a claim of another machine that is not touched any more is void.
    """

    def __init__(self, folder: Path, *, stale_seconds: float = STALE_SECONDS) -> None:
        self.folder = make_folder(folder)
        self.owner = {"pid": os.getpid(), "host": _host(), "token": secrets.token_hex(8)}
        self.stale_seconds = stale_seconds
        self._held: set[Path] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._beat = threading.Thread(target=self._keep_alive, name="zsad-claims", daemon=True)

    def __enter__(self) -> Claims:
        self._sweep()
        self._beat.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._beat.join()
        for path in list(self._held):
            self._drop(path)
        self._sweep()

    def take(self, name: str) -> bool:
        """Whether the work of this name is now this process's alone.

        Raises:
            StorageError: the folder cannot be written.
        """
        path = self.folder / f"{name}.json"
        if not self._create(path):
            holder = _read(path)
            if path.exists() and not self._is_void(path, holder):
                return False
            if not self._clear(path, holder) or not self._create(path):
                return False
        with self._lock:
            self._held.add(path)
        return True

    def release(self, name: str) -> None:
        """Ends a claim of this process."""
        self._drop(self.folder / f"{name}.json")

    def active(self) -> int:
        """How many processes hold a claim that is not void, this one among them if it does."""
        found = {
            (holder["host"], holder["pid"])
            for path in self.folder.glob("*.json")
            if (holder := _read(path)) is not None and not self._is_void(path, holder)
        }
        return len(found)

    def _create(self, path: Path) -> bool:
        """Makes the file with its content in one step; False where it is there already."""
        temporary = path.with_suffix(f".{self.owner['token']}.tmp")
        with storage_errors(path):
            temporary.write_text(json.dumps(self.owner), encoding="utf-8")
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            except OSError:
                return self._create_without_links(path)
            finally:
                temporary.unlink(missing_ok=True)
        return True

    def _create_without_links(self, path: Path) -> bool:
        """The same on a file system without hard links, where the content comes a moment after the file."""
        try:
            with path.open("x", encoding="utf-8") as stream:
                stream.write(json.dumps(self.owner))
        except FileExistsError:
            return False
        return True

    def _is_void(self, path: Path, holder: dict[str, Any] | None) -> bool:
        """Whether nobody stands behind a claim any more; one that cannot be read may be in the making."""
        if holder is not None and holder["token"] == self.owner["token"]:
            return False
        if holder is not None and holder["host"] == self.owner["host"] and not _runs(holder["pid"]):
            return True
        return self._age(path) > self.stale_seconds

    def _sweep(self) -> None:
        """Removes what killed processes left: who was killed between a result and the end of its claim leaves one
        that nobody asks for again, and one killed in the midst of taking it leaves a file under another name."""
        for path in self.folder.glob("*.json"):
            holder = _read(path)
            if self._is_void(path, holder):
                self._clear(path, holder)
        for pattern in ("*.tmp", "*.void", ".*.now"):
            for path in self.folder.glob(pattern):
                if self._age(path) > self.stale_seconds:
                    with suppress(OSError):
                        path.unlink(missing_ok=True)

    def _age(self, path: Path) -> float:
        """Seconds since a claim was touched, by the clock of the machine that holds the folder."""
        probe = self.folder / f".{self.owner['token']}.now"
        with suppress(OSError):
            probe.touch()
            now = probe.stat().st_mtime
            probe.unlink(missing_ok=True)
            return now - path.stat().st_mtime
        return 0.0

    def _clear(self, path: Path, holder: dict[str, Any] | None) -> bool:
        """Moves a void claim out of the way; False where another process was faster."""
        aside = path.with_suffix(f".{self.owner['token']}.void")
        try:
            path.replace(aside)
        except OSError:
            return False
        moved = _read(aside)
        if moved is not None and (holder is None or moved["token"] != holder["token"]):
            with suppress(OSError):  # the new owner's, taken meanwhile: put back
                os.link(aside, path)
            aside.unlink(missing_ok=True)
            return False
        aside.unlink(missing_ok=True)
        return True

    def _drop(self, path: Path) -> None:
        with self._lock:
            self._held.discard(path)
        holder = _read(path)
        if holder is not None and holder["token"] == self.owner["token"]:
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def _keep_alive(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            with self._lock:
                held = list(self._held)
            for path in held:
                with suppress(OSError):  # taken over after a long sleep: nothing to touch
                    os.utime(path)


def _host() -> str:
    """This machine, and on Linux its space of process numbers: that of a container is its own."""
    space = ""
    with suppress(OSError, AttributeError):
        space = Path("/proc/self/ns/pid").readlink().name
    return f"{platform.node()}/{space}"


def _runs(pid: int) -> bool:
    """Whether a process of this machine is there; a killed one whose parent has not noticed is not."""
    if os.name != "posix":
        return True  # its claims end by their age
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _read(path: Path) -> dict[str, Any] | None:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return holder if isinstance(holder, dict) and {"pid", "host", "token"} <= holder.keys() else None


@contextmanager
def claimed(claims: Claims, name: str) -> Iterator[None]:
    """Work that nobody else does meanwhile.

    Raises:
        Busy: somebody does.
    """
    if not claims.take(name):
        raise Busy
    try:
        yield
    finally:
        claims.release(name)
