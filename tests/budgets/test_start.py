"""What starting costs: time, memory and imports, each in an interpreter of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "pydantic", "PIL", "safetensors", "tokenizers", "jinja2", "transformers")

# Memory from /proc: getrusage's maximum is inherited from the process that started this one.
PROBE = """
import json, sys, time
{code}
try:
    status = open("/proc/self/status").read()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
except OSError:
    peak = 0.0
print(json.dumps([sorted(sys.modules), peak, time.process_time()]), file=sys.stderr)
"""

HELP = "from zsad.cli.main import main\nassert main({arguments!r}) == 0"


def start(code: str, *, times: int = 3) -> tuple[set[str], float, float]:
    """Modules, peak memory in MB and seconds of a fresh interpreter, the best of some.

    Seconds of the processor, not of the wall: the same on an idle machine, and fair on a busy one.
    """
    seconds = []
    for _ in range(times):
        done = subprocess.run(
            [sys.executable, "-c", PROBE.format(code=code)], capture_output=True, text=True, check=True
        )
        modules, peak, used = json.loads(done.stderr.splitlines()[-1])
        seconds.append(used)
    return set(modules), peak, min(seconds)


def test_import_is_free() -> None:
    bare = start("")[2]
    modules, _, seconds = start("import zsad")
    assert not modules & set(HEAVY)
    assert seconds - bare < 0.1


@pytest.mark.parametrize("verb", [None, "predict"])
def test_help_is_light(verb: str | None) -> None:
    arguments = ([verb] if verb else []) + ["--help"]
    modules, megabytes, seconds = start(HELP.format(arguments=arguments))
    assert not modules & set(HEAVY)
    assert megabytes < 60
    assert seconds < 0.5


@pytest.mark.parametrize(
    "verb",
    [
        "calibrate",
        "data",
        "demo",
        "evaluate",
        "explain",
        "train",
        "export",
        "bench",
        "list",
        "monitor",
        "doctor",
        "version",
    ],
)
def test_no_help_needs_torch(verb: str) -> None:
    assert "torch" not in start(HELP.format(arguments=[verb, "--help"]), times=1)[0]


def test_main_help_imports_no_verb() -> None:
    modules, _, _ = start(HELP.format(arguments=["--help"]), times=1)
    assert not {name for name in modules if name.startswith("zsad.cli.")} - {
        "zsad.cli.main",
        "zsad.cli.console",
    }
