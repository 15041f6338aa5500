"""Exported graphs against the models they were made from, as the command line and the library give both.

For each model `zsad export` writes an ONNX graph and an OpenVINO one; the same images then go through the model and
through both graphs, and the largest differences of image scores, of rendered maps at the images' own sizes, and of
the stored grids (as probabilities, and as logits) are listed. `large` is PromptMoE on a tower of ViT-L/14@336's shape
with fewer blocks and drawn numbers, at 518 x 518 pixels.

    python benchmarks/export_parity.py all --images FOLDER [--markdown benchmarks/results/export.md]
    python benchmarks/export_parity.py large --layers 4 --images FOLDER --count 5
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

import zsad
from zsad.cli.main import main as run_command
from zsad.clip.config import preset
from zsad.clip.model import CLIP
from zsad.clip.tokenizer import Tokenizer
from zsad.clip.weights import Backbone
from zsad.detector import Detector
from zsad.export.parity import MAP_LIMIT, SCORE_LIMIT
from zsad.export.writer import export_model
from zsad.methods.registry import METHODS, build
from zsad.predict.prediction import Prediction
from zsad.train.training_card import CardParts, card_of

MODELS = tuple(f"{name}-tiny" for name in METHODS)
TARGETS = ("onnx", "openvino")


@dataclass
class Row:
    """The largest differences of one graph from its model."""

    model: str
    target: str
    images: int
    score: float = 0.0
    map: float = 0.0
    grid: float = 0.0
    logit: float = 0.0
    routing: float = 0.0

    def take(self, right: Prediction, found: Prediction) -> None:
        """Widens the differences by those of one image."""
        self.score = max(self.score, abs(right.score - found.score))
        self.map = max(self.map, _apart(right.map, found.map))
        self.grid = max(self.grid, _apart(_chance(right.grid), _chance(found.grid)))
        self.logit = max(self.logit, _apart(right.grid, found.grid))
        for name, weights in (right.routing or {}).items():
            self.routing = max(self.routing, _apart(weights, (found.routing or {})[name]))

    @property
    def holds(self) -> bool:
        """Whether scores and maps are within what `zsad export` allows."""
        return self.score <= SCORE_LIMIT and max(self.map, self.grid) <= MAP_LIMIT

    def __str__(self) -> str:
        numbers = (self.score, self.map, self.grid, self.logit, self.routing)
        cells = (self.model, self.target, self.images, *(f"{number:.1e}" for number in numbers))
        return f"| {' | '.join(map(str, cells))} | {'yes' if self.holds else 'NO'} |"


HEAD = f"""| model | graph | images | score | map | grid | logits | routing | within {SCORE_LIMIT:g} and {MAP_LIMIT:g} |
|---|---|---|---|---|---|---|---|---|"""


def _apart(right: npt.NDArray[np.float32], found: npt.NDArray[np.float32]) -> float:
    if right.shape != found.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(right.astype(np.float64) - found).max(initial=0.0))


def _chance(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    return 0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64)))


def bundled(name: str, images: Path, work: Path, *, proof: int) -> Iterator[tuple[str, Detector, Detector]]:
    """A bundled model, and each graph that the command makes of it, loaded without a GPU."""
    native = zsad.load(name, device="cpu")
    for target in TARGETS:
        out = work / f"{name}-{target}"
        arguments = ["export", name, "--to", target, "--out", str(out), "--images", str(images)]
        with redirect_stdout(StringIO()):
            code = run_command([*arguments, "--count", str(proof), "--threads", str(torch.get_num_threads())])
        if code:
            raise SystemExit(f"zsad {' '.join(arguments)} failed")
        yield target, native, _opened(out, target)


def large(layers: int, work: Path) -> Iterator[tuple[str, Detector, Detector]]:
    """PromptMoE on a shortened ViT-L/14@336 of drawn numbers, its adapter far from its start, and its graphs."""
    known = preset("ViT-L/14@336")
    vision = known.config.vision.model_copy(update={"layers": layers})
    own = known.model_copy(
        update={"config": known.config.model_copy(update={"vision": vision}), "taps": (layers - 1, layers)}
    )
    own = own.model_copy(update={"value_value_from": max(1, layers * 5 // 24 + 1)})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = Backbone(
            clip=CLIP(own.config).freeze(), tokenizer=Tokenizer(), preset=own, sha256="drawn", name="drawn"
        )
    method, noise = build("promptmoe", None, backbone), torch.Generator().manual_seed(1)
    state = method.adapter_state().items()
    method.load_adapter({key: one + 0.02 * torch.randn(one.shape, generator=noise) for key, one in state})
    card = card_of(method, CardParts.of(method, backbone), created="")
    native = Detector.from_method(method, card, name="large")
    for target in TARGETS:
        graph, _ = export_model(
            native.backend,
            native.card,
            work / target,
            name="large",
            target="onnx" if target == "onnx" else "openvino",
            count=1,
        )
        yield target, native, _opened(graph, target)


def _opened(graph: Path, target: str) -> Detector:
    backend, threads = "onnx" if target == "onnx" else "openvino", torch.get_num_threads()
    return zsad.load(
        graph,
        backend=backend,
        precision="fp32",
        threads=threads,
        calibration=None,  # type: ignore[arg-type]
    )


def compared(name: str, pairs: Iterable[tuple[str, Detector, Detector]], files: list[Path]) -> Iterator[Row]:
    """A row for each graph."""
    native = dict[Path, Prediction]()
    for target, model, graph in pairs:
        row = Row(name, target, len(files))
        for file in files:
            if file not in native:
                native[file] = model.predict(file)
            row.take(native[file], graph.predict(file))
        yield row


def pictures(folder: Path, count: int) -> list[Path]:
    """The first `count` images below a folder."""
    from zsad.images.inputs import expand_inputs

    return [sample.image for sample in expand_inputs([folder])][:count]


def main() -> None:
    """Reads the command line, exports, compares and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", choices=[*MODELS, "all", "large"], metavar="MODEL")
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    parser.add_argument("--count", type=int, default=20, help="images compared")
    parser.add_argument("--proof", type=int, default=4, help="images of the proof of zsad export itself")
    parser.add_argument("--layers", type=int, default=4, help="blocks of `large`")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--markdown", type=Path, help="file to add the rows to")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    files = pictures(options.images, options.count)
    names = list(
        dict.fromkeys(one for name in options.models for one in (MODELS if name == "all" else [name]))
    )
    lines, held = [HEAD], True
    print(HEAD)
    for name in names:
        with tempfile.TemporaryDirectory(prefix="zsad-parity-") as scratch:
            work = Path(scratch)
            pairs = (
                large(options.layers, work)
                if name == "large"
                else bundled(name, options.images, work, proof=options.proof)
            )
            shown = f"PromptMoE, ViT-L/14@336 of {options.layers} blocks" if name == "large" else name
            for row in compared(shown, pairs, files):
                print(row, flush=True)
                lines.append(str(row))
                held = held and row.holds
        gc.collect()
    if options.markdown:
        written = options.markdown.read_text(encoding="utf-8") if options.markdown.is_file() else ""
        new = [line for line in lines[1:] if line not in written] if HEAD in written else lines
        options.markdown.write_text(written + "\n".join(new) + "\n", encoding="utf-8")
    raise SystemExit(0 if held else 1)


if __name__ == "__main__":
    main()
