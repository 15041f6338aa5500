"""Words for labels: one vocabulary for the names of folders and the column `label` of listings."""

from __future__ import annotations

_NORMAL_WORDS = """
good ok okay normal nominal pass passed healthy intact undamaged
defectfree nodefect nodefects nondefective nonanomalous noanomaly
"""
_ANOMALOUS_WORDS = """
bad ng nok notok ko abnormal anomaly anomalies anomalous defect defects defective faulty
fail failed reject rejected damaged broken
"""
NORMAL = frozenset(_NORMAL_WORDS.split())
"""Words for normal images, as `letters` writes them."""
ANOMALOUS = frozenset(_ANOMALOUS_WORDS.split())
"""Words for anomalous images, as `letters` writes them; a folder of any other name is a kind of defect."""
UNKNOWN = frozenset(("", "none", "null", "unknown", "nan", "na", "n/a", "<na>", "nat"))
"""Cells of a table that say nothing, in lower case; those of pandas among them."""
_NUMBERS = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}


def letters(text: str) -> str:
    """Letters and digits of a name in lower case: what makes two spellings the same name.

    Example:
        >>> letters("Metal_Nut") == letters("metal nut")
        True
    """
    return "".join(letter for letter in text.casefold() if letter.isalnum())


def parse_label(text: str) -> int | None:
    """Return 0 for normal, 1 for anomalous, None for a cell that says nothing.

    Example:
        >>> [parse_label(text) for text in ("OK", "NG", "1.0", "nan")]
        [0, 1, 1, None]

    Raises:
        ValueError: any other word.
    """
    lowered = text.strip().lower()
    if lowered in UNKNOWN:
        return None
    if lowered in _NUMBERS:
        return _NUMBERS[lowered]
    word = letters(lowered)
    if word in NORMAL or word in ANOMALOUS:
        return int(word in ANOMALOUS)
    raise ValueError(f"{text!r} is no label")
