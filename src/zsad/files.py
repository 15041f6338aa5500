"""Files that are either whole or not there: written beside their place, flushed to the disk, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any, BinaryIO

from zsad.errors import LockedError, StorageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    getattr(errno, "EDQUOT", -1): "the disk quota is used up; free some space or choose another folder",
    errno.EFBIG: "the file system does not hold files this large; choose another folder",
    errno.EACCES: "permission denied; choose a folder that you may write to",
    errno.EPERM: "permission denied; choose a folder that you may write to",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOTDIR: "a part of the path is a file, not a folder; choose another path",
    errno.EEXIST: "a file of that name is in the way; choose another path",
    errno.EISDIR: "it is a folder; choose the name of a file",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}
# What NumPy, and the zip file below it, raise over damaged arrays; RuntimeError where bits ask for a password or for a
# way of packing that nobody has.
BROKEN_ARRAYS = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    RuntimeError,
    MemoryError,
    OverflowError,
    TokenError,
    TypeError,  # one array where several are expected, as is
    AttributeError,  # in Python 3.10
    zlib.error,
    zipfile.BadZipFile,
)
_PREFIX, _SUFFIX = ".zsad-", ".tmp"


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns the system's errors while writing `path` into a `StorageError` of one line."""
    try:
        yield
    except OSError as error:
        reason = _REASONS.get(error.errno or 0) or error.strerror or str(error)
        raise StorageError(f"cannot write {path}: {reason}") from error


def make_folder(path: Path) -> Path:
    """Creates a folder and its parents, and returns it.

    Raises:
        StorageError: it cannot be created.
    """
    with storage_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def atomic_write(path: Path, writer: Callable[[BinaryIO], object]) -> None:
    """Writes a file so that at any moment its path holds the old content or all of the new one.

    Args:
        path: the file; missing parent folders are created.
        writer: gets the open binary stream.

    Raises:
        StorageError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    make_folder(path.parent)
    temporary = path.parent / f"{_PREFIX}{path.name[:60]}-{os.getpid()}-{secrets.token_hex(4)}{_SUFFIX}"
    with storage_errors(path):
        try:
            with temporary.open("xb") as stream:
                writer(stream)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    sync_folder(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes bytes atomically; see `atomic_write`."""
    atomic_write(path, lambda stream: stream.write(content))


def write_text(path: Path, content: str) -> None:
    """Writes UTF-8 text atomically, with the line ends as given; see `atomic_write`.

    Halves of characters, as names of files and classes may hold them, are written as escapes, which JSON reads again.
    """
    write_bytes(path, content.encode("utf-8", errors="backslashreplace"))


def write_json(path: Path, content: Any) -> None:
    """Writes indented JSON atomically; see `atomic_write`."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text that somebody else may have written.

    Raises:
        ValueError: it is not JSON, or is nested so deeply that Python's reader gives up with another error.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_document(text: str | bytes) -> Any:
    """`parse_json` of what is handed on: halves of characters, which no file and no hash can take, are refused.

    Raises:
        ValueError: as `parse_json`, or a text in it is not text.
    """
    values = parse_json(text)
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("it holds half of a character (a lone surrogate)") from None
    return values


def parse_toml(text: str) -> dict[str, Any]:
    """Parse a TOML text.

    Raises:
        ValueError: it is not TOML.
    """
    toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    values: dict[str, Any] = toml.loads(text)
    return values


def read_arrays(source: Path | BinaryIO) -> dict[str, NDArray[Any]] | None:
    """The arrays of a .npz file; None where it is missing or broken."""
    import numpy as np

    try:
        with np.load(source, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except BROKEN_ARRAYS:
        return None


def sync_folder(folder: Path) -> None:
    """Flushes a folder's own entries, so that a rename survives a power cut (POSIX; elsewhere nothing)."""
    if os.name != "posix":
        return
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Keeps other processes from entering the same block for this folder; the system ends it with the process.

    Args:
        folder: must exist. Where the file system knows no locks, nothing is kept from anybody.

    Raises:
        LockedError: another process is in the block.
    """
    handle = _locked(folder)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _locked(folder: Path) -> int | None:
    """An open handle of a folder that carries a lock, or None where there are no such locks."""
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise LockedError(
                f"another zsad is writing into {folder}: wait until it has finished, or choose another --out"
            ) from error
        return None
    return handle


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Create a temporary folder in `parent` and remove it at the end, with those that killed processes left there.

    A folder in use carries a lock, which the system releases when the process ends. Folders stay where the file system
    supports no locks.

    Raises:
        StorageError: it cannot be created.
    """
    for leftover in make_folder(parent).glob(f"{_PREFIX}*"):
        with suppress(StorageError):  # in use
            if leftover.is_dir() and (handle := _locked(leftover)) is not None:
                shutil.rmtree(leftover, ignore_errors=True)
                os.close(handle)
    while True:
        with storage_errors(parent):
            folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        with suppress(StorageError):  # another process has just taken it for a leftover
            handle = _locked(folder)
            if folder.is_dir():
                break
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def remove_leftovers(folder: Path) -> None:
    """Removes temporary files of `atomic_write` that a killed process left in a folder it alone writes to."""
    for leftover in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        with suppress(OSError):
            leftover.unlink()


def bytes_below(folder: Path, *, suffix: str = "") -> int:
    """The sizes of the files below a folder together, links left out; files and folders that others remove while they
    are counted count as nothing, where `Path.rglob` and `stat` would raise."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            with suppress(OSError):
                total += path.stat().st_size if name.endswith(suffix) and not path.is_symlink() else 0
    return total


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits, read in parts; OSError where it cannot be read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def content_hash(path: Path) -> str | None:
    """Return the SHA-256 of a file's bytes, or None where it cannot be read."""
    try:
        return file_sha256(path)
    except OSError:
        return None
