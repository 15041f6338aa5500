"""Puts a finished run into the package as a bundled model, in half precision.

python benchmarks/systems.py run DATA --work WORK --also SCENES --methods promptmoe --folds AB --seeds 111
python tools/ship_adapter.py WORK/runs/promptmoe-AB-111/fused/model.safetensors promptmoe-tiny
"""

from __future__ import annotations

import argparse
from pathlib import Path

from zsad.train.checkpoint import build_method, save_checkpoint

ASSETS = Path(__file__).parent.parent / "src" / "zsad" / "assets"


def main() -> None:
    """Reads the command line and writes `assets/NAME`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    options = parser.parse_args()
    method, card = build_method(options.run)
    path = save_checkpoint(ASSETS / options.name / "model.safetensors", method, card, half=True)
    print(f"wrote {path}, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
