"""The one family of exceptions that zsad raises for what a user can put right.

Every message says what happened, what was found, what was expected and how to fix it, in one line: the
command line prints it as it is and exits with `ZsadError.exit_code`.
"""

from __future__ import annotations


def printable(text: object) -> str:
    """Text on one line that cannot steer a terminal: control characters and broken Unicode are escaped.

    Names of files may hold anything.

    Example:
        >>> printable("part\\n7.png")
        'part\\\\n7.png'
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode("ascii")
        for char in str(text)
    )


class ZsadError(Exception):
    """Base of all errors that the user can put right; `exit_code` is what the command exits with."""

    exit_code = 2

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(printable(part) if isinstance(part, str) else part for part in arguments))


class ImageError(ZsadError):
    """An image or a mask that cannot be read or used: truncated, empty, not an image, too small, too large."""


class TooManyPixelsError(ImageError):
    """An image with more pixels than are read."""


class DataError(ZsadError):
    """A data folder, manifest or data set that cannot be used: empty, of no known layout, contradicting itself."""


class ConfigError(ZsadError):
    """A configuration that makes no sense: an unknown key, an impossible value, a layer the backbone lacks."""


class CheckpointError(ZsadError):
    """A checkpoint that cannot be read, is of another method, or belongs to another backbone."""


class BackboneError(ZsadError):
    """Backbone weights or a tokenizer that are missing, broken or of an unknown layout."""


class HubError(BackboneError):
    """A model hub that cannot be reached, or a repository that is not there."""


class TrainingError(ZsadError):
    """A training that cannot go on: a loss or a gradient is not finite."""


class StorageError(ZsadError):
    """The disk is full, or a folder cannot be written."""


class InputWarning(UserWarning):
    """What is left out of an input or inferred about it, with the reason."""


class LockedError(StorageError):
    """A folder into which another process is writing."""


class MetricError(ZsadError):
    """Scores, maps and labels that do not fit together."""


class CalibrationError(ZsadError):
    """A calibration that cannot be made, cannot be read, or belongs to another model."""


class EngineError(ZsadError):
    """A cluster that cannot be reached or broke down."""
