"""What the reading of docstrings for the site does not know of ours: `Example:` holds code, one or many."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_EXAMPLE = re.compile(r"^(?P<indent>\s*)Example:$", re.MULTILINE)


class Docstrings(Extension):
    """Renames the section before docstrings are read."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called with every object, its members loaded."""
        if obj.docstring is not None:
            obj.docstring.value = _EXAMPLE.sub(r"\g<indent>Examples:", obj.docstring.value)
