"""Image scores that use the whole test set, as some papers report them; never for a strict zero-shot protocol.

MoECLIP (Park et al., CVPR 2026) brings map values to [0, 1] class by class over all test images before the map's
maximum meets the image feature. That changes no ranking by the map within a class, but how much it counts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zsad.errors import MetricError
from zsad.types import Domain

_MARGIN = 1e-9


def transductive_scores(
    highest: ArrayLike, lowest: ArrayLike, cosine: ArrayLike, *, domain: Domain = "industrial"
) -> NDArray[np.float64]:
    """Return MoECLIP's scores (n,) of a class: `(m + (cos_a + 1) / 2) / 2`, m the map's maximum normalised over it.

    The paper normalises a linear function of the cosines; maps are sigmoids of that, which are undone here.

    Args:
        highest: (n,) largest value in (0, 1) of each image's map (`terms["map"]` of a prediction).
        lowest: (n,) smallest value of each image's map (`terms["map_low"]`).
        cosine: (n,) `(cos_a + 1) / 2` of each image (`terms["global"]`), taken as it is.
        domain: scores of medical images are m alone.

    Raises:
        MetricError: lists of different lengths.

    Example:
        >>> transductive_scores([0.5, 0.9], [0.1, 0.1], [0.5, 0.5]).tolist()
        [0.5, 0.75]
    """
    high, low = (_logit(np.asarray(values, dtype=np.float64)) for values in (highest, lowest))
    whole = np.asarray(cosine, dtype=np.float64)
    if not len(high) == len(low) == len(whole):
        raise MetricError(
            f"{len(high)} maxima, {len(low)} minima and {len(whole)} cosines: give one of each for every image"
        )
    smallest = low.min(initial=np.inf)
    scaled = (high - smallest) / max(high.max(initial=-np.inf) - smallest, np.finfo(np.float64).tiny)
    scores: NDArray[np.float64] = scaled if domain == "medical" else (scaled + whole) / 2
    return scores


def _logit(probability: NDArray[np.float64]) -> NDArray[np.float64]:
    inside = np.clip(probability, _MARGIN, 1 - _MARGIN)
    return np.asarray(np.log(inside) - np.log1p(-inside), dtype=np.float64)
