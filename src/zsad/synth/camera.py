"""Effects of a camera: light, lens, sensor and file format."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from zsad.synth.defects import check_image
from zsad.synth.noise import ByteArray, axes, to_bytes, white


def photometric(image: ByteArray, rng: np.random.Generator) -> ByteArray:
    """Take the picture with another camera: blur, noise, JPEG, gamma, vignette, colour cast, each by chance.

    Args:
        image: (H, W, 3) uint8, not changed.
        rng: the only source of chance.

    Raises:
        ImageError: an array of another shape or type.
    """
    check_image(image, name="image")
    chance = rng.random(5)
    image = _toned(image, rng)
    if chance[0] < 0.35:
        image = _lit(image, rng)
    if chance[1] < 0.3:
        radius = float(rng.uniform(0.3, 1.0) * min(1.5, min(image.shape[:2]) / 256))
        image = np.asarray(Image.fromarray(image).filter(ImageFilter.BoxBlur(radius)))
    if chance[2] < 0.4:
        deviation = float(np.exp(rng.uniform(np.log(1.0), np.log(8.0))))
        # The same noise on all channels keeps grey images grey.
        noise = np.repeat((white(rng, image.shape[:2]) * np.float32(deviation)).astype(np.int16), 3, axis=1)
        image = np.clip(noise.reshape(image.shape) + image, 0, 255).astype(np.uint8)
    if chance[3] < 0.3:
        image = _compressed(image, int(rng.integers(45, 96)))
    return image


def _toned(image: ByteArray, rng: np.random.Generator) -> ByteArray:
    """Gamma, gain and a colour cast, as one table a channel."""
    gamma, gain = np.exp(rng.normal(0, 0.15)), np.exp(rng.normal(0, 0.08))
    cast = np.exp(rng.normal(0, 0.03, 3)) if rng.random() < 0.5 else np.ones(3)
    levels = np.linspace(0, 1, 256)[:, None] ** gamma * gain * cast
    table = (np.clip(levels, 0, 1) * 255 + 0.5).astype(np.uint8)
    return np.asarray(Image.fromarray(image).point(table.T.ravel().tolist()))


def _lit(image: ByteArray, rng: np.random.Generator) -> ByteArray:
    """Darker corners, or light from one side; the field is smooth, so a small one is enough."""
    rows, columns = axes((24, 24))
    down, right = rows / 23 - np.float32(0.5), columns / 23 - np.float32(0.5)
    amount = np.float32(rng.uniform(0.1, 0.5))
    if rng.random() < 0.5:
        field = 1 - amount * (down**2 + right**2) * np.float32(1.6)
    else:
        angle = rng.uniform(0, 2 * np.pi)
        slope = down * np.float32(np.sin(angle)) + right * np.float32(np.cos(angle))
        field = 1 + amount * (slope - np.abs(slope).max())
    small = Image.fromarray(to_bytes(field)).resize(
        (image.shape[1], image.shape[0]), Image.Resampling.BICUBIC
    )
    return np.asarray(ImageChops.multiply(Image.fromarray(image), Image.merge("RGB", (small, small, small))))


def _compressed(image: ByteArray, quality: int) -> ByteArray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    buffer.seek(0)
    return np.asarray(Image.open(buffer).convert("RGB"))
