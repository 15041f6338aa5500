"""How a detector looks at pictures: cut into tiles or whole, in their own proportions or squeezed, read how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zsad.images.pixels import PLAIN, Reading

if TYPE_CHECKING:
    from zsad.predict.tiles import Tiling


@dataclass(frozen=True, slots=True)
class InputOptions:
    """Settings of a detector beside its model's; all of them change scores, so calibrations know them.

    Attributes:
        tiling: how large pictures are cut; None: not at all.
        keep_aspect: resize to a rectangle of the picture's own proportions instead of a square, with about as many
            pixels; position embeddings are interpolated to it. Needs the method itself, not an exported graph.
        reading: depth, transparency, DICOM window.
    """

    tiling: Tiling | None = None
    keep_aspect: bool = False
    reading: Reading = PLAIN

    def to_dict(self) -> dict[str, Any]:
        """What differs from the defaults, as plain JSON values."""
        found: dict[str, Any] = {}
        if self.tiling is not None:
            found["tile"] = self.tiling.to_dict()
        if self.keep_aspect:
            found["keep_aspect"] = True
        if reading := self.reading.to_dict():
            found["reading"] = reading
        return found


SQUARE = InputOptions()
