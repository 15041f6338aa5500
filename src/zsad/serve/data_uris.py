"""Pictures in an answer as data URIs: the heat map as a layer to lay over the image, and a preview."""

from __future__ import annotations

import base64
import io

from PIL import Image

from zsad.images.decode import load_image
from zsad.predict.overlay import colour_table, levels, opacity_table
from zsad.predict.prediction import Prediction

PREVIEW_SIDE = 1024


def heat_layer(prediction: Prediction) -> str:
    """Return the heat map as a PNG in a data URI, transparent wherever the map is low.

    Stretched over the picture with some opacity it is what `Prediction.overlay` draws: the same colours on the same
    scale. Outside the region of interest it is transparent.
    """
    values = prediction.canonical_map()
    indices = levels(values, prediction.scale)
    inside = prediction.inside(values.shape)
    if inside is not None:
        indices *= inside
    layer = Image.fromarray(indices)
    layer.putpalette(colour_table().tobytes())
    content = io.BytesIO()
    layer.save(content, format="PNG", transparency=bytes(opacity_table(1.0)), compress_level=6)
    return _uri("image/png", content)


def preview(content: bytes, image: Image.Image, size: tuple[int, int]) -> str:
    """Return a small JPEG of the picture in a data URI, for programs that cannot show the file itself.

    Args:
        content: of the file.
        image: decoded, perhaps at reduced scale.
        size: (H, W) of the whole picture.
    """
    reduced = image.size != (size[1], size[0]) and max(image.size) < PREVIEW_SIDE
    small = load_image(content, target=(PREVIEW_SIDE // 2,) * 2) if reduced else image.copy()
    small.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, format="JPEG", quality=86)
    return _uri("image/jpeg", stream)


def _uri(media: str, content: io.BytesIO) -> str:
    return f"data:{media};base64," + base64.b64encode(content.getvalue()).decode("ascii")
