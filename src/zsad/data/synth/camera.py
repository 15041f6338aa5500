"""What a camera adds: light, lens, sensor and file format."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageFilter

from zsad.data.synth.defects import check_image
from zsad.data.synth.noise import ByteArray, FloatArray, axes, to_bytes, white


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
        radius = rng.uniform(0.3, 1.1) * min(1.5, min(image.shape[:2]) / 256)
        image = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(float(radius))))
    if chance[2] < 0.4:
        deviation = float(np.exp(rng.uniform(np.log(1.0), np.log(8.0))))
        noise = white(rng, image.shape[:2])
        image = np.clip(image + (noise * np.float32(deviation))[..., None], 0, 255).astype(np.uint8)
    if chance[3] < 0.3:
        image = _compressed(image, int(rng.integers(45, 96)))
    return image


def _toned(image: ByteArray, rng: np.random.Generator) -> ByteArray:
    """Gamma, gain and a colour cast, as one table a channel."""
    gamma, gain = np.exp(rng.normal(0, 0.15)), np.exp(rng.normal(0, 0.08))
    cast = np.exp(rng.normal(0, 0.03, 3)) if rng.random() < 0.5 else np.ones(3)
    levels = np.linspace(0, 1, 256)[:, None] ** gamma * gain * cast
    table = (np.clip(levels, 0, 1) * 255 + 0.5).astype(np.uint8)
    return np.stack([table[:, channel][image[..., channel]] for channel in range(3)], axis=2)


def _lit(image: ByteArray, rng: np.random.Generator) -> ByteArray:
    """Darker corners, or light from one side."""
    rows, columns = axes(image.shape[:2])
    down, right = rows / image.shape[0] - np.float32(0.5), columns / image.shape[1] - np.float32(0.5)
    amount = np.float32(rng.uniform(0.1, 0.5))
    field: FloatArray
    if rng.random() < 0.5:
        field = 1 - amount * (down**2 + right**2) * np.float32(1.6)
    else:
        angle = rng.uniform(0, 2 * np.pi)
        field = 1 + amount * (down * np.float32(np.sin(angle)) + right * np.float32(np.cos(angle)))
    return to_bytes(image * (field * np.float32(1 / 255))[..., None])


def _compressed(image: ByteArray, quality: int) -> ByteArray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    buffer.seek(0)
    return np.asarray(Image.open(buffer).convert("RGB"))
