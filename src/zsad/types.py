"""The small data classes that travel between the layers, and the one table of shape letters.

Shape letters used in every docstring of zsad, one meaning each:

| letter | meaning | letter | meaning |
|---|---|---|---|
| B | batch | E | experts of a pool |
| C | channels | K | experts chosen (top-k) |
| H, W | height, width in pixels | R | rank |
| h, w | height, width of the patch grid | L | tapped layers |
| N | patch tokens, h * w | P | prompts |
| D | width of a token or of the joint space | S | positions of a text sequence |
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Domain = Literal["industrial", "medical"]
"""What the images of a data set are of; some methods score the two differently."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a data set.

    `label` is 0 (normal), 1 (anomalous) or None (not known); `mask` is the path of the pixel mask or None.
    `kind` names the defect ("good", "scratch", ...; "" when not known), `class_name` the object.
    """

    image: Path
    class_name: str = "object"
    label: int | None = None
    mask: Path | None = None
    kind: str = ""
    dataset: str = ""

    def word_for(self, method: str) -> str:
        """Return the object as a method's prompts name it: by a list of `class_names.toml`, else by its class in words.

        Example:
            >>> sample = Sample(Path("1.png"), "metal_nut", dataset="MVTec")
            >>> sample.word_for("winclip"), sample.word_for("moeclip")
            ('metal nut', 'metal nut which has four notched edges')
        """
        if not self.dataset:
            return self.class_name.replace("_", " ")
        from zsad.prompts import class_name

        return class_name(self.dataset, self.class_name, method=method)
