"""What each module of every shipped adapter does: `zsad explain --alive` for all of them, kept with the results.

    python benchmarks/modules.py DATA/NEU-Seg DATA/CrackTile DATA/LGG DATA/MVTec-leather DATA/BrainMRI

The data sets are ones that no adapter was trained on. Written to benchmarks/results/modules.json, from which the
documentation's tables are made. An adapter that was measured before and has not changed since is left out; --anew
measures it again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import zsad
from zsad.files import file_sha256, write_json
from zsad.studies.explain.liveness import Liveness, measure_liveness
from zsad.studies.explain.liveness_report import findings, liveness_json, module_table, pool_table
from zsad.train.checkpoint import bundled_models, resolve_model

RESULTS = Path(__file__).parent / "results" / "modules.json"


def page_of(result: Liveness) -> list[str]:
    """Return the tables and findings as lines of Markdown."""
    lines = module_table(result).to_markdown()
    if result.pools:
        lines += ["", *pool_table(result).to_markdown()]
    if result.kl is not None:
        lines += ["", f"KL divergence of the posterior: {result.kl:.2f} nats."]
    sentences = [f"* {sentence}." for sentence in findings(result).values()]
    return [*lines, "", *(sentences or ["Every module lives."])]


def main() -> None:
    """Measure the adapters and write after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--models", nargs="*", default=bundled_models())
    parser.add_argument("--anew", action="store_true")
    chosen = parser.parse_args()
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for name in chosen.models:
        digest = file_sha256(resolve_model(name))
        if not chosen.anew and results.get(name, {}).get("sha256") == digest:
            print(f"{name}: measured before")
            continue
        detector = zsad.load(name, device="cpu", calibration=None)
        result = measure_liveness(detector, chosen.data, images=chosen.images)
        results[name] = {**liveness_json(result), "sha256": digest, "page": page_of(result)}
        write_json(RESULTS, dict(sorted(results.items())))
        print(f"{name}: {len(findings(result))} findings", *findings(result).values(), sep="\n  ", flush=True)


if __name__ == "__main__":
    main()
