"""An endless source of surfaces, parts, medical views and defects, with masks and captions.

`generate` draws a whole scene, `pair` the same scene without and with a defect, and `add_defect` damages any
image, real ones too; `guess_foreground` finds the part in such an image. Everything is drawn from formulas
with NumPy and Pillow; the same generator state gives the same result.

    rng = np.random.default_rng(0)
    scene = generate(rng)                                 # image, mask, label, kind, material, caption
    image, mask, kind = add_defect(photo, rng, kind="scratch")
"""

from __future__ import annotations

from zsad.synth.camera import photometric
from zsad.synth.captions import GOOD, caption_for
from zsad.synth.dataset import write_data_set
from zsad.synth.defects import KINDS, VISIBLE, add_defect
from zsad.synth.foreground import guess_foreground
from zsad.synth.scenes import MATERIALS, Scene, generate, pair

caption = caption_for

__all__ = [
    "GOOD",
    "KINDS",
    "MATERIALS",
    "VISIBLE",
    "Scene",
    "add_defect",
    "caption",
    "caption_for",
    "generate",
    "guess_foreground",
    "pair",
    "photometric",
    "write_data_set",
]
