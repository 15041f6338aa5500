"""What is broken and who has to bear it: pictures, models, listings. `zsad_fuzz.service` has the requests."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from zsad_fuzz.mutations import PATHS, json_bytes, mutate_bytes, mutate_json, mutate_text
from zsad_fuzz.seeds import RECIPES, Sound, catalogue, listings, pictures
from zsad_fuzz.trial import Ledger

Target = Callable[[Ledger, Sound, int, random.Random], None]
_BATCH = 25  # pictures a run
_SUFFIXES = (".png", ".jpg", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".ppm", ".dcm", ".jp2", ".avif")
_LOOKS: tuple[tuple[str, ...], ...] = (
    (),
    (),
    ("--tile", "48"),
    ("--keep-aspect",),
    ("--levels", "span"),
    ("--levels", "0,4095"),
    ("--max-pixels", "6000"),
    ("--matte", "black"),
    ("--regions", "jsonl", "--pixel-threshold", "0.2"),
)


def _fresh(ledger: Ledger, name: str) -> Path:
    """An empty folder for inputs; `out`, so deep that a name cannot climb out of what is watched, starts anew."""
    shutil.rmtree(ledger.folder / "out", ignore_errors=True)
    (ledger.folder / "out" / "a" / "b").mkdir(parents=True)
    folder = ledger.folder / "in" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _out(ledger: Ledger) -> Path:
    return ledger.folder / "out" / "a" / "b" / "results"


def _strays(ledger: Ledger, case: str) -> None:
    """Nothing lies in `out` but in the folder that was named."""
    for place in (
        (ledger.folder / "out"),
        (ledger.folder / "out" / "a"),
        (ledger.folder / "out" / "a" / "b"),
    ):
        for entry in place.iterdir():
            if entry.name not in ("a", "b", "results", "results.json"):
                ledger.fail(case, f"{entry} was written outside the output folder")


def fuzz_images(ledger: Ledger, sound: Sound, count: int, rng: random.Random) -> None:
    """Mutated pictures, many a run: each is a row with a score or with one line that says why not."""
    whole = pictures()
    for number in range(math.ceil(count / _BATCH)):
        folder, case = _fresh(ledger, "pictures"), f"pictures {number}"
        several = min(_BATCH, count - number * _BATCH)
        for index in range(several):
            name, content = rng.choice(sorted(whole.items()))
            path = (
                folder
                / f"{index:03d}{names_of_files(rng) if rng.random() < 0.15 else ''}{_suffix(name, rng)}"
            )
            path.write_bytes(mutate_bytes(content, rng))
        look = rng.choice(_LOOKS)
        code, said = ledger.run(case, "predict", folder, "--model", sound.model, "--out", _out(ledger), *look)
        _strays(ledger, case)
        scored, refused = _check_rows(ledger, f"{case} {' '.join(look)}", code, said, several)
        ledger.count("pictures", refused=False, inputs=scored)
        ledger.count("pictures", refused=True, inputs=refused)


def _suffix(name: str, rng: random.Random) -> str:
    return Path(name).suffix if rng.random() < 0.9 else rng.choice(_SUFFIXES)


def _check_rows(ledger: Ledger, case: str, code: int, said: str, count: int) -> tuple[int, int]:
    """How many pictures were scored, and how many refused."""
    path = _out(ledger) / "predictions.jsonl"
    if not path.is_file():
        if code != 2:
            ledger.fail(case, f"exit code {code} and no results: {said}")
        return 0, count
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    bad = [row for row in rows if "error" in row]
    if len(rows) < count - said.count("ignored") and len({row["source"] for row in rows}) < count:
        ledger.fail(case, f"{len(rows)} rows for {count} pictures: {said}")
    for row in rows:
        if "error" in row:
            if not row["error"] or "\n" in row["error"]:
                ledger.fail(case, f"the reason is {row['error']!r}")
        elif not 0 <= row["score"] <= 1:
            ledger.fail(case, f"the score is {row['score']!r}")
    if bool(bad) != (code in (2, 3)):
        ledger.fail(case, f"exit code {code} with {len(bad)} bad pictures of {len(rows)}")
    return len(rows) - len(bad), count - len(rows) + len(bad)


def _safetensors(content: bytes, rng: random.Random) -> bytes:
    """Its bytes, its header or the card in it changed."""
    what = rng.random()
    size = int.from_bytes(content[:8], "little")
    if what < 0.4:
        return mutate_bytes(content, rng)
    if what < 0.5:  # of the tensors alone, so that the header fits
        return content[: 8 + size] + mutate_bytes(content[8 + size :], rng)
    header = json.loads(content[8 : 8 + size])
    if what < 0.7:
        also = ("F16", "I64", "BF16", "F8_E4M3", [0, 2**40])
        text = json_bytes(mutate_json(header, rng, also=also))
    else:
        for key, value in header["__metadata__"].items():
            card = json_bytes(mutate_json(json.loads(value), rng, also=("clip", "winclip", "zsad-tiny")))
            header["__metadata__"][key] = card.decode()
        text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def _json_file(content: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.25:
        return mutate_bytes(content, rng)
    return json_bytes(mutate_json(json.loads(content), rng))


def _rehash(folder: Path) -> None:
    """Makes the card of an exported graph fit a graph that was changed, as who changed it on purpose would."""
    import hashlib

    path = folder / "model.onnx.json"
    card = json.loads(path.read_text())
    card["files"] = {"model.onnx": hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()}
    path.write_text(json.dumps(card))


def fuzz_models(ledger: Ledger, sound: Sound, count: int, rng: random.Random) -> None:
    """Mutated files of models: they are refused in one line, or the model still gives sound scores."""
    kinds = [
        "weights",
        "weights",
        "calibration",
        "backbone config",
        "backbone weights",
        "references",
        "region",
    ]
    kinds += ["graph's card", "graph"] if sound.export else []
    for number in range(count):
        kind = kinds[number % len(kinds)]
        folder = _fresh(ledger, "model")
        shutil.copytree(sound.model, folder / "run")
        arguments: list[str | Path] = ["--model", folder / "run"]
        if kind == "weights":
            _change(folder / "run" / "model.safetensors", _safetensors, rng)
        elif kind == "calibration":
            _change(folder / "run" / "calibration.json", _json_file, rng)
        elif kind == "references":
            (folder / "memory.safetensors").write_bytes(_safetensors(sound.references.read_bytes(), rng))
            arguments += ["--references", folder / "memory.safetensors"]
        elif kind == "region":
            content = b'{"size": [64, 48], "polygons": [[[1, 2], [30, 4], [20, 40]]]}'
            (folder / "region.json").write_bytes(_json_file(content, rng))
            arguments += [rng.choice(("--roi", "--ignore")), folder / "region.json"]
        elif kind.startswith("backbone"):
            shutil.copytree(sound.backbone, folder / "backbone")
            if kind == "backbone config":
                _change(folder / "backbone" / "config.json", _json_file, rng)
            else:
                _change(folder / "backbone" / "model.safetensors", _plain_safetensors, rng)
            arguments += ["--backbone", folder / "backbone"]
        elif sound.export is not None:
            shutil.copytree(sound.export, folder / "graph")
            arguments[1] = folder / "graph"
            if kind == "graph":
                _change(folder / "graph" / "model.onnx", mutate_bytes_of, rng)
                _rehash(folder / "graph")
            else:
                _change(folder / "graph" / "model.onnx.json", _json_file, rng)
        case = f"{kind} {number}"
        pictures_ = sorted(sound.images.iterdir())[:2]
        code, said = ledger.run(
            case, "predict", *pictures_, "--out", _out(ledger), "--no-report", "--threads", "1", *arguments
        )
        _strays(ledger, case)
        ledger.count(kind, refused=code == 2)
        if code != 2:
            _check_rows(ledger, case, code, said, 2)


def mutate_bytes_of(content: bytes, rng: random.Random) -> bytes:
    """`mutate_bytes`, near the ends more often: there lie the parts of a graph that are not weights."""
    if rng.random() < 0.5:
        return mutate_bytes(content, rng)
    place = rng.choice((0, max(0, len(content) - 2000)))
    return content[:place] + mutate_bytes(content[place : place + 2000], rng) + content[place + 2000 :]


def _plain_safetensors(content: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        return mutate_bytes(content, rng)
    size = int.from_bytes(content[:8], "little")
    text = json_bytes(mutate_json(json.loads(content[8 : 8 + size]), rng, also=("F16", "I64", [0, 2**40])))
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def _change(path: Path, how: Callable[[bytes, random.Random], bytes], rng: random.Random) -> None:
    path.write_bytes(how(path.read_bytes(), rng))


def fuzz_listings(ledger: Ledger, sound: Sound, count: int, rng: random.Random) -> None:
    """Mutated manifests, catalogues and recipes, with names of files and classes that climb."""
    tables = listings(sound.data)
    kinds = [*tables, *tables, "catalogue.toml", "recipes.toml"]
    for number in range(count):
        kind = kinds[number % len(kinds)]
        folder = _fresh(ledger, "set")
        shutil.copytree(sound.data, folder / sound.data.name)
        case, path = f"{kind} {number}", folder / kind
        if kind == "catalogue.toml":
            path.write_bytes(mutate_text(catalogue(), rng))
            verb = rng.choice((["list"], ["show", "mvtec"], ["check", "own", str(folder / sound.data.name)]))
            code, _ = ledger.run(case, "data", *verb, *(() if verb[0] == "check" else ("--catalog", path)))
        elif kind == "recipes.toml":
            path.write_bytes(mutate_text(RECIPES, rng))
            code, _ = _recipes(ledger, case, path)
        else:
            path.write_bytes(_listing(tables[kind], kind, rng))
            words = rng.choice(list(_verbs(ledger, sound, path)))
            case = f"{case} {words[0]}"
            code, _ = ledger.run(case, *words)
        _strays(ledger, case)
        ledger.count(kind, refused=code == 2)


def _recipes(ledger: Ledger, case: str, path: Path) -> tuple[int, str]:
    """The reader alone: what follows a sound recipe is a training."""
    from zsad.errors import ZsadError
    from zsad.studies.benchmark.request import read_recipes

    try:
        for name, recipe in read_recipes(path).items():
            if name != "common":
                _ = recipe.training
    except ZsadError as error:
        if "\n" in str(error):
            ledger.fail(case, f"more than a line: {error}")
        return 2, str(error)
    except Exception as error:
        ledger.fail(case, f"{type(error).__name__}: {error}")
    return 0, ""


def _listing(text: str, kind: str, rng: random.Random) -> bytes:
    if kind == "list.csv" or rng.random() < 0.3:
        return mutate_text(text, rng)
    if kind == "meta.json":
        return json_bytes(mutate_json(json.loads(text), rng, also=PATHS))
    rows = [json.loads(line) for line in text.splitlines()]
    if rng.random() < 0.5:  # a whole class of that name, so that it has normal and anomalous images
        word = rng.choice(PATHS)
        for row in rows:
            row[rng.choice(("class", "class", "kind"))] = word
    else:
        rows = mutate_json(rows, rng, also=PATHS)
    if not isinstance(rows, list):
        rows = [rows]
    return b"\n".join(json_bytes(row) for row in rows)


def _verbs(ledger: Ledger, sound: Sound, path: Path) -> Iterator[list[str | Path]]:
    """Commands that read a listing; those that write name the output folder."""
    model: list[str | Path] = ["--threads", "1"]
    yield ["data", "check", "own", path]
    yield ["data", "manifest", path, "--out", ledger.folder / "out" / "a" / "b" / "results.json"]
    yield ["evaluate", sound.model, "--data", path, "--out", _out(ledger), "--allow-seen", *model]
    yield ["evaluate", sound.model, "--data", path, "--out", _out(ledger), "--allow-seen", *model]
    yield ["explain", sound.model, path, "--out", _out(ledger), *model]
    yield [
        *("calibrate", sound.model, "--labelled", path),
        *("--out", ledger.folder / "out" / "a" / "b" / "results.json"),
        *model,
    ]
    yield [
        *("train", "promptmoe", "--data", path, "--out", _out(ledger), "--backbone", sound.backbone),
        *(
            "--epochs",
            "1",
            "--limit-per-class",
            "2",
            "--set",
            "experts=4",
            "--set",
            "top_k=2",
            "--set",
            "heads=4",
        ),
        *("--no-cache", *model),
    ]


def names_of_files(rng: random.Random) -> str:
    """A word that a file system takes as a part of a file's name, but that somebody may stumble over."""
    word = rng.choice(PATHS).replace("/", "_").replace("\0", "_")
    with suppress(UnicodeEncodeError):
        return word.encode()[:180].decode("utf-8", "ignore")
    return word.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")


TARGETS: dict[str, Target] = {"images": fuzz_images, "models": fuzz_models, "listings": fuzz_listings}
