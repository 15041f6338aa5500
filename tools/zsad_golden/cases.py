"""All cases, by verb."""

from __future__ import annotations

from typing import Any

from zsad_golden.api import API_CASES
from zsad_golden.case import Case, commands
from zsad_golden.compare import Tolerance
from zsad_golden.saying import SAYING_CASES
from zsad_golden.service import SERVICE_CASES
from zsad_golden.workspace import Workspace

BUNDLED = (
    "adaclip",
    "anomalyclip",
    "aprilgan",
    "faprompt",
    "moeclip",
    "mpa",
    "mpama",
    "promptmoe",
    "wmoeclip",
)
# Small steps of an optimiser make much of small differences; graphs are other programs.
TRAINED = Tolerance(0.05, 0.01)
GRAPH = Tolerance(2e-3, 2e-3)
END = "--out {out} --threads 1"
PLAIN = f"--no-overlay --no-report {END}"


def _models() -> list[Case]:
    """Each model on the same pictures, with nothing else."""
    names = [f"{name}-tiny" for name in BUNDLED] + ["clip-tiny", "winclip-tiny"]
    cases = [
        commands(f"predict-{name}", "models", f"predict in/parts --model {name} {PLAIN}") for name in names
    ]
    objects = ("winclip", "moeclip", "adaclip")
    cases += [
        commands(
            f"predict-{name}-object",
            "models",
            f"predict in/parts --model {name}-tiny --object 'metal nut' {PLAIN}",
            quick=name == "winclip",
        )
        for name in objects
    ]
    return cases


def _cards(space: Workspace) -> dict[str, Any]:
    """The whole card and identity of each model, as run.json keeps them."""
    cards = {}
    for name in (*BUNDLED, "clip", "winclip"):
        space.command(f"predict in/parts/part0.png --model {name}-tiny --overwrite {PLAIN}")
        cards[name] = space.outputs(whole=True)["run.json"]
    return cards


PREDICT = [
    *_models(),
    Case("cards", "models", _cards, quick=False),
    commands("predict-kinds", "predict", f"predict in/kinds {END}", charts=True),
    commands(
        "predict-calibrated",
        "predict",
        f"predict in/mini --calibration {{calibration}} --regions jsonl csv coco labelstudio {END}",
        charts=True,
    ),
    commands(
        "predict-again",
        "predict",
        f"predict in/parts/part0.png in/parts/part1.png {PLAIN}",
        f"predict in/parts/part0.png in/parts/part1.png {PLAIN}",
        f"predict in/parts/part2.png {PLAIN}",
        f"predict in/parts/part2.png --overwrite {PLAIN}",
    ),
    commands(
        "predict-pixel-threshold",
        "predict",
        f"predict in/mini --pixel-threshold 0.45 --min-area 40 --regions csv --no-overlay {END}",
    ),
    commands(
        "predict-roi",
        "predict",
        f"predict 'in/mini/*/test/*/*.png' --roi in/roi.json --ignore in/ignored.png --pixel-threshold 0.45 {PLAIN}",
    ),
    commands(
        "predict-roi-size", "predict", f"predict in/parts/part0.png --roi in/ignored.png {PLAIN}", quick=False
    ),
    commands(
        "predict-tile",
        "predict",
        f"predict in/large --tile auto --pixel-threshold 0.5 --max-overlay-side 256 --no-report {END}",
    ),
    commands(
        "predict-tile-size",
        "predict",
        f"predict in/large --model clip-tiny --tile 400 --overlap 0.1 {PLAIN}",
        quick=False,
    ),
    commands("predict-large", "predict", f"predict in/large {PLAIN}"),
    commands(
        "predict-aspect",
        "predict",
        f"predict in/parts in/kinds/turned.jpg --keep-aspect --batch-size 3 {PLAIN}",
    ),
    commands(
        "predict-reading",
        "predict",
        f"predict in/kinds/deep.png in/kinds/transparent.png --levels full --matte black {PLAIN}",
        f"predict in/kinds/deep.png --levels 1,99 --overwrite {PLAIN}",
    ),
    commands("predict-max-pixels", "predict", f"predict in/parts --max-pixels 6400 {PLAIN}"),
    commands("predict-mixed", "predict", f"predict in/mixed in/kinds/pages.tif {PLAIN}"),
    commands("predict-references", "predict", f"predict in/parts --references in/normals {PLAIN}"),
    commands(
        "predict-references-kept",
        "predict",
        f"predict in/parts --references {{references}}/references.safetensors {PLAIN}",
        quick=False,
    ),
    commands(
        "predict-references-coreset",
        "predict",
        f"predict in/parts --model aprilgan-tiny --references in/normals --remember 400 --coreset {PLAIN}",
        quick=False,
    ),
    commands("predict-mutual", "predict", f"predict in/parts --mutual {PLAIN}"),
    commands(
        "predict-mutual-tile",
        "predict",
        f"predict in/parts in/large --mutual --tile 320 {PLAIN}",
        quick=False,
    ),
    commands(
        "predict-video",
        "predict",
        f"predict in/film/belt.mkv in/parts/part0.png --every 2 --pixel-threshold 0.5 {END}",
        needs=("av",),
    ),
    commands(
        "predict-dicom",
        "predict",
        f"predict in/dicom --window 40,300 {PLAIN}",
        f"predict in/dicom --overwrite {PLAIN}",
        needs=("pydicom",),
    ),
    commands("predict-batches", "predict", f"predict in/mini --batch-size 3 --model mpama-tiny {PLAIN}"),
    commands("predict-bf16", "predict", f"predict in/parts --precision bf16 {PLAIN}", quick=False),
    commands(
        "predict-ray",
        "predict",
        f"predict in/parts --engine ray --workers 1 --pixel-threshold 0.5 {END}",
        needs=("ray", "pyarrow"),
        quick=False,
    ),
    commands("demo", "predict", f"demo --count 6 {END}", needs=("elpv_dataset", "jinja2"), charts=True),
]

CALIBRATE = [
    commands(
        "calibrate",
        "calibrate",
        "calibrate promptmoe-tiny --normals in/normals --out {out}/strict.json --threads 1",
        "calibrate promptmoe-tiny --normals in/mini --target-fpr 0.1 --pixel-fpr 0.2 --confidence 0 "
        "--pixel-rule pixels --out {out}/calibration.json --threads 1",
    ),
    commands(
        "calibrate-labelled",
        "calibrate",
        "calibrate winclip-tiny --labelled in/mini --object part --out {out}/f1.json --threads 1",
        "calibrate winclip-tiny --labelled in/mini --goal recall=0.9 --out {out}/recall.json --threads 1",
        "calibrate clip-tiny --normals in/normals --labelled in/mini --out {out}/both.json --threads 1",
    ),
    commands(
        "calibrate-roi",
        "calibrate",
        "calibrate promptmoe-tiny --normals in/normals --roi in/roi.json --target-fpr 0.2 --confidence 0 "
        "--out {out}/calibration.json --threads 1",
        "predict in/mini/disc --calibration {out}/calibration.json --no-overlay --no-report "
        "--out {out}/run --threads 1",
    ),
    commands(
        "calibrate-compared",
        "calibrate",
        "calibrate promptmoe-tiny --normals in/normals --references in/parts --target-fpr 0.2 --confidence 0 "
        "--out {out}/calibration.json --threads 1",
        "predict in/mini/disc --references in/parts --calibration {out}/calibration.json --no-overlay --no-report "
        "--out {out}/run --threads 1",
        quick=False,
    ),
    commands(
        "calibrate-beside", "calibrate", "calibrate {trained} --normals in/normals --threads 1", quick=False
    ),
    commands(
        "monitor",
        "calibrate",
        "monitor {calibration} {run}",
        "monitor {calibration} {drifted} --json",
        "monitor {calibration} {drifted} --last 4 --alarm-rate 0.2",
        "monitor {calibration} in/parts --model promptmoe-tiny --threads 1 --json",
    ),
]

MEASURE = [
    commands("evaluate", "measure", f"evaluate promptmoe-tiny --data in/mini {END}"),
    commands(
        "evaluate-metrics",
        "measure",
        f"evaluate winclip-tiny --data in/mini --metrics exact --pro anomalyclip --pro-limit 0.2 --also aupimo "
        f"--also aupro@0.05 --micro {END}",
    ),
    commands(
        "evaluate-class", "measure", f"evaluate clip-tiny --data in/mini --classes disc --pro mvtec3d {END}"
    ),
    commands(
        "evaluate-transductive", "measure", f"evaluate moeclip-tiny --data in/mini --transductive {END}"
    ),
    commands(
        "evaluate-faulty",
        "measure",
        f"evaluate clip-tiny --data in/holes {END}",
        f"evaluate clip-tiny --data in/faulty {END}",
    ),
    commands(
        "evaluate-again",
        "measure",
        f"evaluate clip-tiny --data in/mini --classes disc {END}",
        f"evaluate clip-tiny --data in/mini {END}",
        quick=False,
    ),
    commands(
        "remeasure",
        "measure",
        "remeasure {evaluation} --data in/mini --out {out} --processes 1 --metrics exact --also aupro_mvtec3d --micro",
        "remeasure {evaluation} --data in/mini --out {out}/two --processes 2 --pro anomalyclip",
    ),
]

STUDY = [
    commands(
        "train-promptmoe",
        "study",
        f"train promptmoe --data in/auxiliary --epochs 2 --batch-size 4 --set experts=4 --set top_k=2 {END}",
        "evaluate {out} --data in/target --out {out}/evaluation --threads 1",
        tolerance=TRAINED,
        whole=True,
    ),
    commands(
        "train-moeclip",
        "study",
        "train moeclip --data in/auxiliary --epochs 2 --batch-size 2 --set experts=2 --augment moeclip --no-cache "
        f"{END}",
        tolerance=TRAINED,
        whole=True,
    ),
    *(
        commands(
            f"train-{name}",
            "study",
            f"train {name} --data in/auxiliary --epochs 2 --batch-size 2 --watch in/target {END}",
            tolerance=TRAINED,
            quick=False,
            whole=True,
        )
        for name in ("mpama", "wmoeclip", "aprilgan", "anomalyclip", "adaclip", "faprompt")
    ),
    commands(
        "ablate",
        "study",
        f"ablate moeclip --table components --train-on in/auxiliary --test-on in/target --epochs 1 --batch-size 2 "
        f"--set experts=2 --seeds 112 {END}",
        tolerance=TRAINED,
        quick=False,
    ),
    commands(
        "ablate-promptmoe",
        "study",
        f"ablate promptmoe --table 4 --train-on in/auxiliary --test-on in/target --epochs 1 --batch-size 2 {END}",
        tolerance=TRAINED,
        quick=False,
    ),
    commands(
        "benchmark",
        "study",
        f"benchmark --methods clip winclip aprilgan ours=promptmoe-tiny --train-on in/auxiliary "
        f"--test-on in/target in/mini --epochs 1 --batch-size 2 --seeds 1 2 --no-cost {END}",
        "benchmark --report-only --out {out}",
        tolerance=TRAINED,
        quick=False,
    ),
    commands(
        "benchmark-ray",
        "study",
        "benchmark --pair 'in/auxiliary>in/target,in/faulty' --methods clip adaclip --epochs 1 --batch-size 2 "
        f"--no-cost --address local {END}",
        tolerance=TRAINED,
        needs=("ray", "pyarrow"),
        quick=False,
    ),
    commands(
        "benchmark-clip", "study", f"benchmark --methods clip winclip --test-on in/target --no-cost {END}"
    ),
    commands("reproduce", "study", f"reproduce winclip in/mini {END}"),
    commands("reproduce-bundled", "study", f"reproduce promptmoe in/target {END}", quick=False),
    commands("explain", "study", f"explain promptmoe-tiny --data in/mini --images 2 {END}", quick=False),
    commands(
        "explain-patches",
        "study",
        f"explain moeclip-tiny --data in/mini --images 2 --kind patches regions activation --patch-rule majority {END}",
    ),
    commands(
        "explain-curves",
        "study",
        f"explain {{trained}} --compare {{trained}} --kind curves embeddings {END}",
        tolerance=TRAINED,
        quick=False,
    ),
]

EXPORT = [
    commands(
        "export-onnx",
        "export",
        f"export winclip-tiny --to onnx --object bottle --images in/mini --count 3 {END}",
        "predict in/parts --model {out}/model.onnx --no-overlay --no-report --out {out}/run --threads 1",
        needs=("onnx", "onnxruntime"),
        tolerance=GRAPH,
        inexact=True,
        quick=False,
    ),
    commands(
        "predict-graph",
        "export",
        f"predict in/mini --model {{graph}}/model.onnx --pixel-threshold 0.5 {PLAIN}",
        f"predict in/parts --model {{graph}}/model.onnx --keep-aspect --overwrite {PLAIN}",
        needs=("onnx", "onnxruntime"),
        tolerance=GRAPH,
        inexact=True,
        quick=False,
    ),
    commands(
        "export-int8",
        "export",
        f"export clip-tiny --to onnx --int8 --images in/mini --count 8 {END}",
        needs=("onnx", "onnxruntime"),
        tolerance=GRAPH,
        inexact=True,
        quick=False,
    ),
    commands(
        "predict-openvino",
        "export",
        f"predict in/parts --model {{openvino}} --precision fp32 {PLAIN}",
        needs=("openvino", "onnx", "onnxruntime"),
        tolerance=GRAPH,
        inexact=True,
        quick=False,
    ),
]


CASES: list[Case] = [
    *PREDICT, *CALIBRATE, *MEASURE, *STUDY, *EXPORT, *SERVICE_CASES, *API_CASES, *SAYING_CASES,
]  # fmt: skip
