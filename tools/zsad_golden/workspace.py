"""A folder with the drawn inputs, in which the commands of the cases run, in this process."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from zsad_golden.inputs import draw_inputs
from zsad_golden.normalise import Normaliser, places_of
from zsad_golden.outputs import overlay_names, read_outputs

# What several cases start from, made when it is first asked for.
PRODUCTS = {
    "calibration": (
        "calibrate promptmoe-tiny --normals in/normals --target-fpr 0.2 --confidence 0 --out {file} --threads 1",
        "calibration.json",
    ),
    "run": ("predict in/normals --no-overlay --no-report --out {file} --threads 1", "run"),
    "drifted": ("predict in/shifted --no-overlay --no-report --out {file} --threads 1", "drifted"),
    "evaluation": ("evaluate winclip-tiny --data in/mini --out {file} --threads 1", "evaluation"),
    "trained": (
        "train moeclip --data in/auxiliary --out {file} --epochs 1 --batch-size 2 --set experts=2 --threads 1",
        "trained",
    ),
    "graph": ("export promptmoe-tiny --to onnx --count 2 --out {file} --threads 1", "graph"),
    "openvino": ("export clip-tiny --to openvino --count 2 --out {file} --threads 1", "openvino"),
    "references": (
        "predict in/parts --references in/normals --no-overlay --no-report --out {file} --threads 1",
        "compared",
    ),
}


class Workspace(Mapping[str, str]):
    """Inputs in `in/`, results in `out/`, products in `made/`; as a mapping, the paths that commands name.

    Args:
        root: an empty folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.case = ""
        draw_inputs(self.root / "in")
        import zsad

        self.package = Path(zsad.__file__).parent
        self.places = places_of(self.root, self.package)

    def __iter__(self) -> Iterator[str]:
        return iter(("out", *PRODUCTS))

    def __len__(self) -> int:
        return 1 + len(PRODUCTS)

    def __getitem__(self, name: str) -> str:
        """Path of a product, made now if it is not there, or of the folder for the results of the case."""
        if name == "out":
            return f"out/{self.case}"
        command, file = PRODUCTS[name]
        path = f"made/{file}"
        if not (self.root / path).exists():
            (self.root / "made").mkdir(exist_ok=True)
            done = self.command(command.format(file=path))
            if done["exit"]:
                raise RuntimeError(f"{name} cannot be made: {done['stderr']}")
        return path

    @property
    def out(self) -> Path:
        """The folder for the results of the case."""
        return self.root / "out" / self.case

    @contextmanager
    def working(self, case: str) -> Iterator[None]:
        """Makes the root the working folder, and results those of a case."""
        self.case = case
        shutil.rmtree(self.out, ignore_errors=True)
        (self.root / "out").mkdir(exist_ok=True)
        former = Path.cwd()
        os.chdir(self.root)
        try:
            yield
        finally:
            os.chdir(former)

    def command(self, text: str, *, columns: int | None = None) -> dict[str, Any]:
        """Runs `zsad TEXT` in this process: exit code and what was printed; `{NAME}` is a path of the mapping."""
        from zsad.cli.main import main

        arguments = shlex.split(text.format_map(self))
        said, complained = io.StringIO(), io.StringIO()
        with _environment(columns), redirect_stdout(said), redirect_stderr(complained):
            try:
                code: object = main(arguments)
            except SystemExit as stop:
                code = stop.code
        normaliser = self.normaliser()
        stdout: Any
        if "--json" in arguments and said.getvalue().startswith(("{", "[")):
            stdout = normaliser.data(json.loads(said.getvalue()))
        else:
            stdout = normaliser.lines(said.getvalue())
        # Remarks of libraries come once a process: they are nobody's result.
        notes = [
            line for line in normaliser.lines(complained.getvalue()) if line.startswith(("zsad:", "epoch "))
        ]
        return {"command": text, "exit": code, "stdout": stdout, "stderr": notes}

    def outputs(self, *, charts: bool = False, whole: bool = False) -> dict[str, Any]:
        """What lies in the folder of the case."""
        return (
            read_outputs(self.out, self.normaliser(), charts=charts, whole=whole) if self.out.exists() else {}
        )

    def normaliser(self) -> Normaliser:
        """The rules for texts of the case."""
        return Normaliser({**self.places, **dict(overlay_names(self.out))})


@contextmanager
def _environment(columns: int | None) -> Iterator[None]:
    """One thread, and no terminal."""
    import torch

    former = dict(os.environ)
    for name in ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "ZSAD_DEBUG", "ZSAD_TOKEN"):
        os.environ.pop(name, None)
    if columns is not None:
        os.environ["COLUMNS"] = str(columns)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(former)
