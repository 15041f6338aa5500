"""`zsad reproduce`: a paper's numbers, ours, and the difference, on one data set or for a whole table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from zsad.cli.options import DeviceOptions

if TYPE_CHECKING:
    from zsad.studies.benchmark.pairing import Pair
    from zsad.studies.benchmark.papers import Paper
    from zsad.studies.benchmark.text_table import TableDocument

_Many = Parameter(consume_multiple=True)


def reproduce_command(
    method: str,
    dataset: str | None = None,
    /,
    *,
    table: str | None = None,
    methods: Annotated[list[str] | None, _Many] = None,
    data: Path | None = None,
    model: Path | None = None,
    out: Path | None = None,
    seeds: Annotated[list[int] | None, _Many] = None,
    tower: DeviceOptions | None = None,
    recipes: Path | None = None,
    allow_seen: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Measure a method on a data set, or all that a table of its paper is about, and print paper and ours.

    Measured is --model; without one, with --backbone, the method is trained as its paper does, on the auxiliary set
    below --data; with neither, the bundled model of that name. A table has a dash for what is not below --data, which
    may be nothing. Printed with it are the settings that are not the paper's, the PRO, counts of images, and what is
    known of the paper. What is measured is kept: killed at any moment, the same command goes on there.

    Args:
        method: Name of the method; see zsad list methods.
        dataset: Folder or manifest, or the name of a set below --data.
        table: In place of a data set, the number of a table of the method's own paper.
        methods: Of a table only the columns of these methods are measured; by default all.
        data: Folder of data sets, found by their names or by those of zsad data list.
        model: Trained model to measure: run folder, checkpoint, or bundled name.
        out: Folder for results and trained models; default: reproduce-METHOD.
        seeds: Of the trainings; by default 111 alone.
        recipes: TOML file with settings of methods and trainings, where they are not the papers'.
        allow_seen: Measure also on what the model was trained on, and say so.
    """
    from zsad.cli.ablate import chosen_seeds
    from zsad.clip.config import TINY
    from zsad.errors import ConfigError
    from zsad.files import make_folder
    from zsad.methods.registry import find
    from zsad.runs.folder import check_place
    from zsad.studies.benchmark.papers import papers_on
    from zsad.studies.benchmark.request import read_recipes

    tower = tower or DeviceOptions()
    find(method)
    paper = papers_on(method)[0]
    if (dataset is None) == (table is None):
        raise ConfigError("name a data set to measure on, or a table of the paper with --table")
    out = Path(f"reproduce-{method}") if out is None else out
    check_place(out)
    make_folder(out)
    options = {
        "seeds": chosen_seeds(seeds, None),
        "work": out,
        "backbone": tower.backbone or TINY,
        "weights": tower.weights,
        "device": tower.device,
        "threads": tower.threads,
        "recipes": {**paper.recipes, **({} if recipes is None else read_recipes(recipes))},
        "pro": paper.pro,
        "allow_seen": allow_seen,
        "cost": False,
    }
    if dataset is not None:
        return _reproduce_set(method, dataset, data, _candidate(method, model, tower.backbone), options)
    if table == paper.counts_table:
        return _count(paper, data, out)
    chosen = methods or list(dict.fromkeys(paper.columns.values()))
    candidates = {
        name: found
        for name in chosen
        if (found := _candidate(name, model if name == method else None, tower.backbone, known=True))
    }
    return _reproduce_table(paper, str(table), candidates, data, options)


def _candidate(method: str, model: Path | None, backbone: str | None, *, known: bool = False) -> str | None:
    """Return what a benchmark measures of a method: its name, or METHOD=MODEL of a trained model.

    With `known` nothing is returned in place of an error where there is no bundled model.

    Raises:
        ConfigError: a model of another method, or no bundled model.
    """
    from zsad.errors import ConfigError
    from zsad.methods.registry import find
    from zsad.train.checkpoint import is_bundled, read_card, resolve_model

    if model is not None:
        card_method = read_card(resolve_model(model)).method
        if card_method != method:
            raise ConfigError(
                f"--model {model} is of method {card_method}, not {method}: reproduce {card_method}, "
                "or give another one"
            )
        return f"{method}={model}"
    if not find(method).needs_training or backbone is not None:
        return method
    if is_bundled(f"{method}-tiny"):
        return f"{method}={method}-tiny"
    if known:
        return None
    raise ConfigError(f"no bundled model of {method}: give --model RUN, or --backbone to train one")


def _is_trained_here(candidate: str) -> bool:
    from zsad.methods.registry import find

    return "=" not in candidate and find(candidate).needs_training


def _reproduce_set(
    method: str, dataset: str, data: Path | None, candidate: str | None, options: dict[str, Any]
) -> int:
    """Measure on one data set, print, and write what was printed.

    Raises:
        ConfigError: the method is to be trained, and its auxiliary set is not there.
        DataError: the set could not be measured.
    """
    from zsad.cli.benchmark import run_cells
    from zsad.errors import DataError
    from zsad.files import write_json
    from zsad.studies.benchmark.pairing import Pair, find_set
    from zsad.studies.benchmark.paper_comparison import compare, find_entry
    from zsad.studies.benchmark.papers import papers_on
    from zsad.studies.benchmark.request import BenchmarkRequest

    folder = find_set(dataset, data)
    entry = find_entry(dataset, folder.resolve().name)
    pair = Pair(test=(str(folder),))
    if _is_trained_here(str(candidate)):
        names = papers_on(method)[0].trained_on("" if entry is None else entry.name)
        pair = Pair(train=tuple(str(find_set(name, data)) for name in names), test=pair.test)
    request = BenchmarkRequest(methods=(str(candidate),), pairs=(pair,), **options)
    cells = [result for _, result in run_cells(request)]
    failed = next((cell for cell in cells if cell.state == "failed"), None)
    if failed is not None:
        raise DataError(failed.reason)
    reproduction = compare(method, cells, entry)
    write_json(request.work / "reproduce.json", reproduction.to_dict())
    _print(reproduction.document(), request.work, "reproduce")
    return 3 if any(cell.problems for cell in cells) else 0


def _reproduce_table(
    paper: Paper, number: str, candidates: dict[str, str], data: Path | None, options: dict[str, Any]
) -> int:
    """Measure what there is of a table, print it with the paper's values, and write what was printed."""
    from zsad.cli.benchmark import run_cells
    from zsad.files import write_json
    from zsad.studies.benchmark.pairing import Pair
    from zsad.studies.benchmark.paper_tables import TableReproduction, pairs_to_train, present, sets_of
    from zsad.studies.benchmark.request import BenchmarkRequest

    names = sets_of(paper.blocks(number))
    sets = present(names, data)
    reproduction = TableReproduction(paper, number)
    if missing := [name for name in names if name not in sets]:
        reproduction.notes.append(
            f"not below {data}: {', '.join(missing)}" if data else "no --data: no values"
        )
    to_train = tuple(spec for spec in candidates.values() if _is_trained_here(spec))
    others = tuple(spec for spec in candidates.values() if spec not in to_train)
    works: list[tuple[tuple[str, ...], tuple[Pair, ...]]] = [
        (others, (Pair(test=tuple(map(str, sets.values()))),) if sets else ()),
        (to_train, pairs_to_train(paper, sets, data)),
    ]
    by_path, code = {str(path): name for name, path in sets.items()}, 0
    for specs, pairs in works:
        if not specs or not pairs:
            continue
        for cell, result in run_cells(BenchmarkRequest(methods=specs, pairs=pairs, **options)):
            code = 3 if result.state == "failed" or result.problems else code
            if result.state == "failed":
                reproduction.notes.append(f"{cell.title}: {result.reason}")
            else:
                key = (result.method, by_path[cell.target.path])
                reproduction.cells.setdefault(key, []).append(result)
    write_json(options["work"] / f"table-{number}.json", reproduction.to_dict())
    _print(reproduction.document(), options["work"], f"table-{number}")
    return code


def _count(paper: Paper, data: Path | None, out: Path) -> int:
    """Print the paper's counts of images beside those of the sets that are here."""
    from zsad.studies.benchmark.paper_tables import count_images, present

    _print(count_images(paper, present(paper.counts, data)), out, f"table-{paper.counts_table}")
    return 0


def _print(document: TableDocument, out: Path, stem: str) -> None:
    """Print a document, and write it beside STEM.json."""
    from zsad.cli.console import printable, say, say_table

    for line in document.head:
        say(printable(line))
    for table in document.tables:
        say_table(table.to_rich())
    for line in document.notes:
        say(f"note: {printable(line)}")
    written = [f"{stem}.json"] if (out / f"{stem}.json").is_file() else []
    say(f"wrote {', '.join([*written, *document.write(out, stem)])} into {printable(out)}")
