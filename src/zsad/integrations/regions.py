"""What exporters of regions share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zsad.errors import ConfigError

if TYPE_CHECKING:
    from zsad.predict.prediction import Prediction
    from zsad.predict.regions import Region


def needed_regions(prediction: Prediction) -> tuple[Region, ...]:
    """The regions of a prediction.

    Raises:
        ConfigError: it has no pixel threshold, so there is nothing that a region could be.
    """
    regions = prediction.regions
    if regions is None:
        raise ConfigError(
            "the prediction has no pixel threshold, so no regions: calibrate the detector, or set its pixel_threshold"
        )
    return regions
