"""`zsad export`: a model as one graph that runs without PyTorch, proven against the model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from zsad.cli.options import TowerOptions


def export_command(
    model: str = "promptmoe-tiny",
    *,
    to: Literal["onnx", "openvino"] = "onnx",
    out: Path | None = None,
    int8: Annotated[bool, Parameter(negative="")] = False,
    object_: Annotated[str | None, Parameter(name="--object")] = None,
    images: Path | None = None,
    count: int = 20,
    tower: TowerOptions | None = None,
) -> int:
    """Export a model as one graph that runs without PyTorch, and prove that it is the same model.

    Text that no image changes is computed now; prompts that an image makes stay in the graph. The graph is compared
    with the model on images and is not written where scores differ by more than 0.001 or maps by more than 0.01.

    Args:
        model: Bundled model, run folder, checkpoint, or a method without training (clip, clip-tiny).
        to: The runtime: onnx for ONNX Runtime, openvino for OpenVINO's own form.
        out: Folder for the graph and its card; by default exports/MODEL.
        int8: Eight-bit weights and activations: smaller and faster, not the same; says what changes.
        object_: What the images will show, such as 'metal nut', for methods whose prompts name it.
        images: Folder of images to compare on, with labels and masks where it has them; by default drawn scenes.
        count: How many images to compare on.
    """
    from zsad.cli.console import note, printable, say
    from zsad.device import use_threads
    from zsad.errors import ConfigError
    from zsad.loading import LoadRequest, load_checkpoint_or_method
    from zsad.runs.folder import check_place

    if count < 1:
        raise ConfigError(f"--count is {count}, expected 1 or more")
    folder = out or Path("exports") / Path(model).name
    check_place(folder)
    tower = tower or TowerOptions()
    use_threads(tower.threads)
    loaded = load_checkpoint_or_method(LoadRequest(model, tower.backbone, tower.weights, "cpu"))
    from zsad.backends.graph_card import card_path
    from zsad.export.writer import export_model
    from zsad.predict.view import calibration_beside

    graph, card = export_model(
        loaded.backend,
        loaded.card,
        folder,
        name=model,
        target=to,
        int8=int8,
        object_name=object_,
        images=images,
        count=count,
        calibration=None if loaded.file is None else calibration_beside(loaded.file),
        progress=lambda step: note(f"zsad: {step}"),
    )
    proof = card.proof
    say(
        f"over {printable(proof.source)}: scores differ by up to {proof.score_error:.2g}, maps by up to "
        f"{proof.map_error:.2g}, grids agree to a cosine of {proof.cosine:.6f}"
    )
    for name, row in proof.quality.items():
        say(f"{name}: {_percent(row['model'])} with the model, {_percent(row['graph'])} with the graph")
    say(f"wrote {', '.join([*card.files, card_path(graph).name])} into {printable(folder)}")
    say(f"use it with: zsad predict FOLDER --model {printable(graph)}")
    return 0


def _percent(value: float | None) -> str:
    return "undefined" if value is None or value != value else f"{100 * value:.1f} %"
