"""Makes and checks the golden set: what every verb of zsad writes and prints for small drawn pictures.

    python tools/golden.py check                       # compares with tests/golden; exit code 1 where anything differs
    python tools/golden.py check --only predict-tile   # one case, or several
    python tools/golden.py make [--only NAME ...]      # records anew what this checkout does

Results are equal to the bit on the kind of machine they were made on; elsewhere numbers are compared within
tolerances, and hashes not at all. The code under test is always that of this checkout.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
GOLDEN = REPOSITORY / "tests" / "golden"
sys.path.insert(0, str(REPOSITORY / "tools"))

from zsad_golden.case import Case  # noqa: E402
from zsad_golden.cases import CASES  # noqa: E402
from zsad_golden.compare import Tolerance, differences, fingerprint  # noqa: E402
from zsad_golden.workspace import Workspace  # noqa: E402

_LINES = 20  # differences shown for a case
_WIDTH = 160  # characters of a value that are shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `make` or `check`; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("action", choices=("make", "check", "list"))
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="names of cases, or their beginnings with *"
    )
    options = parser.parse_args(arguments)
    _prepare_process()
    cases = list(_chosen(options.only))
    if options.action == "list":
        print("\n".join(f"{case.name}{'' if case.quick else ' (not in the test suite)'}" for case in cases))
        return 0
    with tempfile.TemporaryDirectory(prefix="zsad-golden-") as folder:
        space = Workspace(Path(folder))
        return (_make if options.action == "make" else _check)(space, cases)


def _prepare_process() -> None:
    """Runs the code of this checkout, here and in processes that are started, on one thread of the processor."""
    source = str(REPOSITORY / "src")
    sys.path.insert(0, source)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH", "")]))
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def _chosen(names: Sequence[str] | None) -> Iterator[Case]:
    known = {case.name: case for case in CASES}
    for name in names or ("*",):
        matching = [
            case
            for key, case in known.items()
            if key == name or (name[-1:] == "*" and key.startswith(name[:-1]))
        ]
        if not matching:
            sys.exit(f"no case is called {name}; known are: {', '.join(known)}")
        yield from matching


def _make(space: Workspace, cases: list[Case]) -> int:
    groups: dict[str, dict[str, Any]] = {}
    for case in cases:
        if case.missing:
            print(f"{case.name}: left as it is, needs {', '.join(case.missing)}")
            continue
        started = time.monotonic()
        groups.setdefault(case.group, {})[case.name] = run_case(space, case)
        print(f"{case.name}: made in {time.monotonic() - started:.1f} s", flush=True)
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for group, results in groups.items():
        path = GOLDEN / f"{group}.json"
        former = json.loads(path.read_text(encoding="utf-8"))["cases"] if path.is_file() else {}
        order = [case.name for case in CASES if case.group == group]
        merged = {**former, **results}
        content = {
            "machine": fingerprint(),
            "cases": {name: merged[name] for name in order if name in merged},
        }
        path.write_text(readable(content) + "\n", encoding="utf-8")
    return 0


def _check(space: Workspace, cases: list[Case]) -> int:
    wrong = []
    for case in cases:
        if case.missing:
            print(f"{case.name}: skipped, needs {', '.join(case.missing)}")
            continue
        started = time.monotonic()
        lines = check_case(space, case)
        print(
            f"{case.name}: {'equal' if not lines else 'DIFFERS'} ({time.monotonic() - started:.1f} s)",
            flush=True,
        )
        if lines:
            wrong.append(case.name)
            print("\n".join(f"  {line}" for line in lines), flush=True)
    if wrong:
        print(f"{len(wrong)} of {len(cases)} cases differ: {' '.join(wrong)}")
    else:
        print(f"{len(cases)} cases are equal")
    return 1 if wrong else 0


def run_case(space: Workspace, case: Case) -> Any:
    """The result of a case, as JSON holds it."""
    with space.working(case.name):
        return json.loads(json.dumps(case.run(space)))


def check_case(space: Workspace, case: Case) -> list[str]:
    """A line for each difference between what a case gives and what is recorded."""
    path = GOLDEN / f"{case.group}.json"
    recorded = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"cases": {}}
    if case.name not in recorded["cases"]:
        return [f"nothing is recorded in {path.name}: python tools/golden.py make --only {case.name}"]
    exact = recorded["machine"] == fingerprint() and not case.inexact
    tolerance: Tolerance | None = None if exact else case.tolerance
    found = [
        f"{where}: expected {_short(expected)}, got {_short(got)}"
        for where, expected, got in differences(
            recorded["cases"][case.name], run_case(space, case), tolerance
        )
    ]
    return found if len(found) <= _LINES else [*found[: _LINES - 1], f"and {len(found) - _LINES + 1} more"]


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _WIDTH else text[:_WIDTH] + "..."


def readable(value: Any, indent: int = 0) -> str:
    """JSON with a line for each entry, but lists of numbers and what is short on one line."""
    flat = json.dumps(value, ensure_ascii=False)
    numbers = isinstance(value, list) and '"' not in flat and "{" not in flat
    if numbers or len(flat) + indent <= 150 or not isinstance(value, dict | list) or not value:
        return flat
    space, end = " " * (indent + 1), "\n" + " " * indent
    if isinstance(value, dict):
        entries = [
            f"{space}{json.dumps(key, ensure_ascii=False)}: {readable(entry, indent + 1)}"
            for key, entry in value.items()
        ]
        return "{\n" + ",\n".join(entries) + end + "}"
    return "[\n" + ",\n".join(space + readable(entry, indent + 1) for entry in value) + end + "]"


if __name__ == "__main__":
    sys.exit(main())
