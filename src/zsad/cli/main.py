"""The command `zsad`: a table of verbs, each imported when it is called, and one place where errors end.

Exit codes: 0 all went well; 2 one clear error, nothing done; 3 done, but some images failed; 4 `monitor` warns of
drift or `explain --alive` of a dead module; 1 a bug of zsad; 130 interrupted and 143
terminated, what was finished is valid.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from cyclopts import App, CycloptsError, Parameter

import zsad
from zsad.cli.console import note, open_streams, printable, silence
from zsad.errors import ConfigError, InputWarning, ZsadError

VERBS = {
    "predict": "Score images and outline what is wrong with them.",
    "calibrate": "Find thresholds on normal images: verdicts, p-values and regions with a stated error rate.",
    "monitor": "Compare new scores with a calibration's and warn of drift.",
    "demo": "Score a pinned sample of real solar cells that the bundled model has never seen.",
    "evaluate": "Measure a model on a data set: image and pixel metrics per class.",
    "remeasure": "Measure again what was scored before: other metrics in seconds, without the model.",
    "explain": "Show which experts a model asks, where, and how they were trained.",
    "serve": "Serve a model over HTTP, with a page to drop images on.",
    "export": "Export a model as one graph that runs without PyTorch, proven to be the same model.",
    "train": "Train a method on an auxiliary data set.",
    "benchmark": "Train and measure methods on data sets, resumable, with tables and a report.",
    "reproduce": "Print a paper's numbers on a data set beside ours, and what keeps them from being comparable.",
    "ablate": "Repeat a paper's ablation table: train its variants, measure them, print both side by side.",
    "bench": "Measure what share of this machine's matrix products each backend reaches with a model.",
    "data": "Data sets: what there is, whether a copy is whole, how to get one.",
    "list": "List methods, backbones or bundled models.",
    "doctor": "Show versions, devices, caches, and what is missing and how to get it.",
    "version": "Print the version.",
}
EPILOGUE = (
    "Start with `zsad demo`, then `zsad predict FOLDER`. Exit codes: 0 all well, 2 one clear error and nothing done, "
    "3 done but some images failed, 4 drift found or a dead module, 130 interrupted and 143 terminated, with finished "
    "results valid."
)

# What PyTorch, C++ and the operating system say where memory ends.
_OUT_OF_MEMORY = ("allocate memory", "bad_alloc", "out of memory", "start new thread", "not enough memory")
_ADDRESS_SPACE = (
    1_100_000_000  # bytes that the libraries of a model reserve; below, some end the process themselves
)
_DISK_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))


def build_app() -> App:
    """The command line, no verb imported yet."""
    app = App(
        name="zsad",
        help="Zero-shot visual anomaly detection: defects and lesions in images of things the model never saw.",
        help_epilogue=EPILOGUE,
        help_format="plaintext",
        version=zsad.__version__,
        default_parameter=Parameter(negative_iterable=""),
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    for verb, help_text in VERBS.items():
        app.command(f"zsad.cli.{verb}:{verb}_command", name=verb, help=help_text)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    # NumPy only ever multiplies small matrices here, in threads beside the model's own: a pool of threads for each
    # product would cost more than the product. To be said before NumPy is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    open_streams()
    # What is wrong with an image is said once, by zsad; Pillow's remarks on headers would come on top.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, _terminate)
    warnings.showwarning = partial(_show_warning, warnings.showwarning)
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _check_address_space(words)
        result = build_app()(words, exit_on_error=False, print_error=False)
        _flush()
        return result if isinstance(result, int) else 0
    except KeyboardInterrupt as stop:
        reason = printable(stop) or "finished results are valid, the same command goes on where it stopped"
        if isinstance(stop, Terminated):
            note(f"zsad: terminated; {reason}")
            return 128 + signal.SIGTERM
        note(f"zsad: interrupted; {reason}")
        return 130
    except BrokenPipeError:
        silence(sys.stdout)
        return 0
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # rich's answer to `zsad --help | head`
            return 0
        raise
    except Exception as error:
        if os.environ.get("ZSAD_DEBUG", "") not in ("", "0") and not isinstance(error, CycloptsError):
            raise
        message, code = explain(error)
        note(f"zsad: error: {message}")
        with suppress(OSError):
            _flush()  # a full disk is reported once, not again at the end of the process
        return code


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM): it ends as after Ctrl+C, with another exit code."""


def _terminate(_number: int, _frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends at once
    raise Terminated


def _show_warning(default: Callable[..., None], message: Any, category: type, *where: Any) -> None:
    """Print what zsad says of inputs as a remark; all else as Python does."""
    if issubclass(category, InputWarning):
        note(f"zsad: {printable(message)}")
    else:
        default(message, category, *where)


def _check_address_space(words: Sequence[str]) -> None:
    """Raise a ConfigError for a verb that loads a model where a limit (`ulimit -v`) is too low for its libraries."""
    if not words or words[0] not in VERBS or words[0] in ("data", "list", "version", "doctor"):
        return
    with suppress(ImportError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY and limit < _ADDRESS_SPACE and not {"--help", "-h"} & set(words):
            raise ConfigError(
                f"the address space is limited to {limit // 10**6:,} MB (ulimit -v), a model needs at least "
                f"{_ADDRESS_SPACE // 10**6:,} MB: raise the limit"
            )


def _flush() -> None:
    """Write what is still buffered: at the end of the process an error could no longer be reported."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        silence(sys.stdout)
        raise


def explain(error: Exception) -> tuple[str, int]:
    """Return one line about an error, and the exit code that goes with it."""
    if isinstance(error, CycloptsError):
        return f"{printable(_usage(error))} See zsad --help.", 2
    if isinstance(error, ZsadError):
        return printable(error), error.exit_code
    if isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _OUT_OF_MEMORY):
        return "out of memory; use a smaller --batch-size or smaller images, or raise the limit of memory", 2
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return f"cannot write: {error.strerror}; free some space or choose another folder", 2
    return (
        f"internal error: {type(error).__name__}: {printable(error)} (a bug: please report it with the "
        "traceback that ZSAD_DEBUG=1 shows)",
        1,
    )


def _usage(error: CycloptsError) -> str:
    """Return the error in the words of a command line; pydantic's own message runs over several lines."""
    cause = error.__cause__ or error.__context__
    details = getattr(cause, "errors", None)
    if details is None:
        return str(error)
    first = details()[0]
    option = "-".join(str(part) for part in first["loc"]).replace("_", "-")
    return f"--{option} {first['input']}: {first['msg'][:1].lower()}{first['msg'][1:]}."


if __name__ == "__main__":
    sys.exit(main())
