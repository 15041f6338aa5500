"""Cases of what is printed alone: lists, options, errors, and verbs about the machine and about data sets."""

from __future__ import annotations

import re
from typing import Any

from zsad_golden.case import Case, commands
from zsad_golden.workspace import Workspace

VERBS = (
    "predict", "calibrate", "monitor", "demo", "evaluate", "remeasure", "explain", "serve", "export", "train",
    "benchmark", "reproduce", "ablate", "bench", "data list", "data show", "data check", "data manifest", "data fetch",
    "list", "doctor", "version",
)  # fmt: skip


def _doctor(space: Workspace) -> dict[str, Any]:
    """Titles and names of rows of `zsad doctor`; the values are the machine's."""
    done = space.command("doctor")
    names = [line if not line.startswith(" ") else "  " + line.split()[0] for line in done["stdout"]]
    return {"exit": done["exit"], "rows": names}


def _bench(space: Workspace) -> dict[str, Any]:
    """Lines of `zsad bench` without its numbers and without the library of the fastest product, which varies."""
    done = space.command("bench clip-tiny --repeats 1 --threads 1")
    lines = [re.sub(r"[\d.,]+", "#", " ".join(line.split())) for line in done["stdout"]]
    lines = [re.sub(r"\((torch|numpy)\)", "(library)", line) for line in lines]
    return {"exit": done["exit"], "stdout": lines, "stderr": done["stderr"]}


def _options(space: Workspace) -> dict[str, Any]:
    """Options of each verb with their choices and defaults, as its help shows them; not the prose."""
    found = {}
    for verb in VERBS:
        lines = space.command(f"{verb} --help", columns=2000)["stdout"]
        found[verb] = [
            " ".join(
                re.findall(r"(?<!\S)--?[a-zA-Z][\w-]*|\[(?:choices|default|env var|required)[^\]]*\]", line)
            )
            for line in lines
            if re.match(r"^\W*(?:\* +)?(?:[A-Z_-]+ )?-", line)
        ]
    return found


SAYING_CASES = [
    Case("doctor", "say", _doctor),
    Case("bench", "say", _bench, needs=("onnx", "onnxruntime"), quick=False),
    Case("options", "say", _options, quick=False),
    commands("list", "say", "list methods", "list models", "list backbones", "list", "version", "--version"),
    commands(
        "data",
        "say",
        "data list",
        "data list --group medical",
        "data show mvtec",
        "data show visa --json",
        "data fetch visa",
        "data check own in/mini --against in/target --near 4",
        "data check own in/mini --json",
        "data check own in/faulty --image-size 240",
        "data check own in/mini --classes disc",
        "data check mvtec in/mini",
        "data manifest in/mini --out {out}/meta.json",
        "data manifest in/mini --out {out}/meta.json",
        "data manifest in/faulty --out {out}/faulty.json",
    ),
    commands(
        "errors",
        "say",
        "predict in/nothing --out {out}",
        "predict in/mixed/empty.png --out {out} --threads 1",
        "predict in/mixed/broken.png --out {out} --threads 1",
        "predict in/parts --model nothing --out {out}",
        "predict in/parts --device tpu --out {out}",
        "predict in/parts --regions csv --out {out} --threads 1",
        "predict in/parts --tile 8 --out {out} --threads 1",
        "predict in/parts --levels 3,2 --out {out} --threads 1",
        "predict in/parts --roi in/parts --out {out} --threads 1",
        "predict in/parts --batch-size 0 --out {out} --threads 1",
        "predict in/parts --calibration in/roi.json --out {out} --threads 1",
        "predict in/parts --calibration {calibration} --object nut --out {out} --threads 1",
        "predict in/parts --model clip-tiny --calibration {calibration} --out {out} --threads 1",
        "predict in/parts --mutual --references in/normals --out {out} --threads 1",
        "predict in/parts/part0.png --mutual --out {out} --threads 1",
        "predict in/parts --backend onnx --out {out} --threads 1",
        "predict --out {out} --threads 1",
        "predict in/parts --unknown",
        "calibrate promptmoe-tiny",
        "calibrate promptmoe-tiny --normals in/normals",
        "calibrate promptmoe-tiny --normals in/normals --out {out}/c.json --target-fpr 2",
        "calibrate promptmoe-tiny --labelled in/normals --out {out}/c.json",
        "monitor in/roi.json {run}",
        "monitor {calibration} in/parts",
        "evaluate promptmoe-tiny --data in/mini --transductive --out {out}",
        "evaluate promptmoe-tiny --data in/mini --classes nothing --out {out} --threads 1",
        "evaluate promptmoe-tiny --data in/mini --also nothing --out {out} --threads 1",
        "remeasure in/mini --data in/mini",
        "explain clip-tiny --data in/mini --out {out} --threads 1",
        "train nothing --data in/mini --out {out}",
        "train clip --data in/mini --out {out}",
        "train moeclip --data in/normals --out {out} --threads 1",
        "train moeclip --data in/auxiliary --set experts=0 --out {out} --threads 1",
        "train moeclip --data in/auxiliary --set nothing=1 --out {out} --threads 1",
        "ablate moeclip --table nothing --train-on in/auxiliary --test-on in/target --out {out}",
        "ablate clip --table 1 --train-on in/auxiliary --test-on in/target --out {out}",
        "benchmark --methods clip --out {out}",
        "benchmark --test-on in/target --out {out}",
        "benchmark --report-only --out {out}",
        "reproduce promptmoe nothing --out {out}",
        "reproduce nothing in/mini --out {out}",
        "export nothing --out {out}",
        "serve promptmoe-tiny --host 0.0.0.0 --port 0",
        "data show nothing",
        "data check nothing in/mini",
        "demo --count 3 --out {out}",
        "nothing",
    ),
]
