"""Segmentation of a part from an even background by colour."""

from __future__ import annotations

import numpy as np
from PIL import Image

from zsad.synth.defects import check_image
from zsad.synth.noise import BoolArray, ByteArray, grow, shrink

_SIDE = 96


def guess_foreground(image: ByteArray) -> BoolArray | None:
    """Find the part in a picture of one part on an even ground, so that defects can be put on it.

    The ground is what resembles the median colour of the image border. A cheap guess for making training
    data, not a segmentation.

    Args:
        image: (H, W, 3) uint8.

    Returns:
        (H, W) bool, or None where the border is uneven or what is left is no plausible part.

    Raises:
        ImageError: an array of another shape or type.
    """
    check_image(image, name="image")
    picture = Image.fromarray(image)
    small = np.asarray(picture.resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float32)
    border = np.concatenate([small[:4].reshape(-1, 3), small[-4:].reshape(-1, 3)])
    border = np.concatenate([border, small[:, :4].reshape(-1, 3), small[:, -4:].reshape(-1, 3)])
    ground = np.median(border, axis=0)
    spread = np.abs(border - ground).max(axis=1)
    threshold = max(18.0, 3.0 * float(np.median(spread)))
    if threshold > 60 or float((spread < threshold).mean()) < 0.75:
        return None
    part = np.abs(small - ground).max(axis=2) > threshold
    part = shrink(grow(shrink(grow(np.pad(part, 4), 2), 3), 1))[4:-4, 4:-4]
    share = float(part.mean())
    if not 0.02 < share < 0.85 or float(part[24:72, 24:72].mean()) < 0.08:
        return None
    large = Image.fromarray(part.astype(np.uint8) * 255).resize(picture.size, Image.Resampling.BILINEAR)
    return np.asarray(large) > 127
