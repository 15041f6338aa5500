"""Images of a batch compared with each other: what most others do not have is odd. No image is known to be normal.

MuSc (Li et al., ICLR 2024): the distance of a patch to an image is that to its most similar patch there; its score is
the mean over the 30 % of the images that are nearest (Eq. 3 and 4). Here an image meets a bounded number of others, not
all; with fewer images than that it is MuSc's scoring on one neighbourhood size. MuSc's aggregation over neighbourhoods
of several sizes and its re-ranking of image scores by the class tokens (RsCIN) are left out.

What is normal is told by the median of all distances and their median deviation, which a minority of defects does
not move.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zsad.comparison.compare import Comparison, Scale, look_closely, picture_key
from zsad.errors import DataError
from zsad.nn.memory import lowest_mean, nearest_distance

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from zsad.methods.base import Method

OTHERS = 64
_SHARE = 0.3
_ASKED = 16  # images whose distances tell what is usual
_NORMAL = 1.4826  # deviations of a normal distribution in a median deviation
_TOLERANCE = 1e-6


class Mutual(Comparison):
    """Images that others are compared with.

    Args:
        images: for each its key and its kinds of features (N, C), of length one.
        share: of the nearest images that counts.
        scale: what becomes of a distance.

    Raises:
        DataError: fewer than two images.
    """

    def __init__(
        self,
        images: Sequence[tuple[bytes, Sequence[Tensor]]],
        *,
        share: float = _SHARE,
        scale: Scale = "standard",
    ) -> None:
        self._images = {
            key: [kind.half() for kind in kinds] for key, kinds in sorted(images, key=lambda x: x[0])
        }
        if len(self._images) < 2:
            raise DataError("comparing images with each other needs two different ones, better ten or more")
        self._share, self.scale = share, scale
        self.statistics = self._usual()

    def distances(self, kinds: Sequence[Tensor], key: bytes) -> list[Tensor]:
        """Mean over the nearest images of the distance to each; an image is never compared with itself."""
        others = [other_kinds for other, other_kinds in self._images.items() if other != key]
        return [
            lowest_mean(
                torch.stack(
                    [nearest_distance(kind, other_kinds[index].to(kind.device)) for other_kinds in others]
                ),
                self._share,
            )
            for index, kind in enumerate(kinds)
        ]

    def digest(self) -> str:
        """Return a hash of the images and the rule."""
        hashed = hashlib.sha256(f"{self._share} {self.scale}".encode())
        for key in self._images:
            hashed.update(key)
        return hashed.hexdigest()[:16]

    def _usual(self) -> tuple[tuple[float, float], ...]:
        asked = list(self._images.items())[:_ASKED]
        rows = [self.distances([kind.float() for kind in kinds], key) for key, kinds in asked]
        statistics = []
        for kind in zip(*rows, strict=True):
            values = torch.cat(list(kind)).double()
            middle = values.median()
            spread = float((values - middle).abs().median()) * _NORMAL
            statistics.append((float(middle), max(spread, _TOLERANCE)))
        return tuple(statistics)


def chosen(paths: Iterable[Path], count: int = OTHERS) -> list[Path]:
    """At most `count` of the paths, by their names alone: the order in which they come does not matter.

    Example:
        >>> names = [Path(f"{number}.png") for number in range(9)]
        >>> chosen(names, 3) == chosen(names[::-1], 3)
        True
    """
    return sorted(
        paths, key=lambda path: (hashlib.sha256(path.name.encode("utf-8", "replace")).digest(), path)
    )[:count]


@torch.inference_mode()
def collect_mutual(
    method: Method, pictures: Iterable[npt.NDArray[np.float32]], *, scale: Scale = "standard"
) -> Mutual:
    """A comparison with pictures (3, H, W), ready for the model; raises as `Mutual`."""
    weight, images = next(method.parameters()), []
    for pixels in pictures:
        batch = torch.from_numpy(pixels[None]).to(device=weight.device, dtype=weight.dtype)
        kinds = look_closely(method, batch)[1]
        images.append((picture_key(pixels), [kind[0].half() for kind in kinds]))
    return Mutual(images, scale=scale)
