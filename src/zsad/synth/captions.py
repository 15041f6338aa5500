"""English sentences for images with and without a defect."""

from __future__ import annotations

import numpy as np

from zsad.errors import ConfigError

GOOD = "good"
"""The kind of an image without a defect."""

NOUNS: dict[str, tuple[str, ...]] = {
    "scratch": ("a scratch", "scratches", "a scratched surface", "a scrape"),
    "hole": ("a hole", "a puncture", "a drilled-through spot"),
    "stain": ("a stain", "a spot", "a dirty patch", "a liquid stain"),
    "crack": ("a crack", "a fracture", "a hairline crack", "a broken area"),
    "dent": ("a dent", "a bump", "a deformation", "an indentation"),
    "contamination": ("contamination", "dirt on it", "a foreign particle", "debris"),
    "missing": ("a missing piece", "a missing part", "a chipped-off region", "a broken-off piece"),
    "misplaced": ("a misplaced part", "a shifted region", "a part in the wrong place"),
    "fray": ("frayed threads", "loose fibres", "a frayed spot"),
    "bend": ("a bent region", "a warped area", "a distortion"),
    "foreign": ("a foreign object", "foreign material on it", "something that does not belong there"),
    "discoloration": ("discoloration", "a wrong colour", "a faded area", "a burnt patch"),
    "print": ("a stray print", "unwanted marks", "a wrong imprint"),
    "smear": ("a smear", "a smudge", "a glue streak"),
    "pit": ("a small pit", "pinholes", "tiny pits"),
    "cut": ("a cut", "a slit", "a gash"),
    "lesion": ("a lesion", "an abnormal mass", "a tumour-like blob", "an abnormal bright or dark region"),
    "texture": ("an irregular texture", "a break in the pattern", "a pattern defect"),
    "speckle": ("a cluster of specks", "scattered spots", "speckles"),
}
"""Names of each defect kind after the word "with"."""

VIEWS = (
    "a photo of",
    "a close-up of",
    "an image of",
    "a cropped photo of",
    "a picture of",
    "an inspection image of",
    "",
)
_GOOD = (
    "{view} a flawless {name}",
    "{view} a {name} without defects",
    "{view} a normal {name}",
    "{view} a perfect {name}",
    "{view} an undamaged {name}",
    "{view} a {name} in good condition, without flaw",
    "{view} a good {name} with no damage",
    "{view} a {name} free of defects",
)
_BAD = (
    "{view} a {name} with {noun}",
    "{view} a damaged {name} with {noun}",
    "{view} a defective {name} with {noun}",
    "{view} a {name} that has a defect: {noun}",
    "{view} an abnormal {name} showing {noun}",
    "{view} a flawed {name}, {noun} visible",
    "{view} a {name} with {noun}, a defect",
)
_BAD_PLAIN = (
    "{view} a damaged {name}",
    "{view} a {name} with a defect",
    "{view} an abnormal {name}",
    "{view} a flawed {name}",
)


def caption_for(name: str, kind: str, rng: np.random.Generator) -> str:
    """A sentence about an object or a material of any name.

    Args:
        name: what is seen, such as "screw" or "woven fabric"; underscores become spaces.
        kind: "good", one of `KINDS`, or any other word for the defect, which is then used as it is.
        rng: chooses the wording.

    Raises:
        ConfigError: an empty name or kind.
    """
    spoken, defect = name.replace("_", " ").strip(), kind.replace("_", " ").strip()
    if not spoken or not defect:
        raise ConfigError(f"caption for name {name!r} and kind {kind!r}; expected both to be non-empty words")
    view = VIEWS[int(rng.integers(len(VIEWS)))]
    if defect == GOOD:
        template, noun = _GOOD[int(rng.integers(len(_GOOD)))], ""
    else:
        nouns = NOUNS.get(kind, (defect,))
        noun = nouns[int(rng.integers(len(nouns)))]
        choices = _BAD if rng.random() < 0.8 else _BAD_PLAIN
        template = choices[int(rng.integers(len(choices)))]
    return _articles(template.format(view=view, name=spoken, noun=noun).strip())


def _articles(text: str) -> str:
    """Write "an" where "a" stands before a vowel."""
    words = text.split(" ")
    for index in range(len(words) - 1):
        if words[index] == "a" and words[index + 1][:1].lower() in "aeiou":
            words[index] = "an"
    return " ".join(words)
