"""`zsad version`."""

from __future__ import annotations

import zsad
from zsad.cli.console import say


def version_command() -> int:
    """Print the version."""
    say(zsad.__version__)
    return 0
