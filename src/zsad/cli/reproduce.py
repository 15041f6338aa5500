"""`zsad reproduce`: a paper's numbers on a data set, ours, and the difference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from zsad.cli.options import DeviceOptions

if TYPE_CHECKING:
    from zsad.studies.benchmark.pairing import Pair
    from zsad.studies.benchmark.request import BenchmarkRequest

_Many = Parameter(consume_multiple=True)


def reproduce_command(
    method: str,
    dataset: str,
    /,
    *,
    data: Path | None = None,
    model: Path | None = None,
    out: Path | None = None,
    seeds: Annotated[list[int] | None, _Many] = None,
    tower: DeviceOptions | None = None,
    recipes: Path | None = None,
    allow_seen: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Measure a method on a data set and print what its papers say: paper, ours, difference.

    Measured is --model; without one, with --backbone, the method is trained as its paper does, on the auxiliary set
    below --data; with neither, the bundled model of that name. What keeps the numbers from being comparable is
    printed below them: auxiliary set, backbone, counts of images, and what is known of the paper.

    Args:
        method: Name of the method; see zsad list methods.
        dataset: Folder or manifest, or the name of a set below --data.
        data: Folder of data sets.
        model: Trained model to measure: run folder, checkpoint, or bundled name.
        out: Folder for results and trained models; default: reproduce-METHOD.
        seeds: Of the trainings; by default 111 alone.
        recipes: TOML file with settings of methods and trainings, where they are not the papers'.
        allow_seen: Measure also on what the model was trained on, and say so.
    """
    from zsad.cli.ablate import chosen_seeds
    from zsad.clip.config import TINY
    from zsad.methods.registry import find
    from zsad.runs.folder import check_place
    from zsad.studies.benchmark.pairing import find_set
    from zsad.studies.benchmark.papers import papers_on
    from zsad.studies.benchmark.request import BenchmarkRequest, read_recipes

    tower = tower or DeviceOptions()
    find(method)
    papers_on(method)
    out = Path(f"reproduce-{method}") if out is None else out
    check_place(out)
    folder = find_set(dataset, data)
    name, pair = _candidate(method, folder, dataset, model=model, backbone=tower.backbone, data=data)
    request = BenchmarkRequest(
        methods=(name,),
        pairs=(pair,),
        seeds=chosen_seeds(seeds, None),
        work=out,
        backbone=tower.backbone or TINY,
        weights=tower.weights,
        device=tower.device,
        threads=tower.threads,
        recipes={} if recipes is None else read_recipes(recipes),
        allow_seen=allow_seen,
        cost=False,
    )
    return _report(request, method, dataset, folder)


def _candidate(
    method: str, folder: Path, dataset: str, *, model: Path | None, backbone: str | None, data: Path | None
) -> tuple[str, Pair]:
    """Return the name of the candidate, and the sets to train and to measure on.

    Raises:
        ConfigError: it is to be trained, and its auxiliary set is not there; or there is no bundled model.
    """
    from zsad.errors import ConfigError
    from zsad.methods.registry import find
    from zsad.studies.benchmark.pairing import Pair, find_set
    from zsad.studies.benchmark.paper_comparison import find_entry
    from zsad.studies.benchmark.papers import papers_on
    from zsad.train.checkpoint import is_bundled, read_card, resolve_model

    test = (str(folder),)
    if model is not None:
        card_method = read_card(resolve_model(model)).method
        if card_method != method:
            raise ConfigError(
                f"--model {model} is of method {card_method}, not {method}: reproduce {card_method}, "
                "or give another one"
            )
        return f"{method}={model}", Pair(test=test)
    if not find(method).needs_training:
        return method, Pair(test=test)
    if backbone is None:
        bundled = f"{method}-tiny"
        if not is_bundled(bundled):
            raise ConfigError(f"no bundled model of {method}: give --model RUN, or --backbone to train one")
        return f"{method}={bundled}", Pair(test=test)
    entry = find_entry(dataset, folder.resolve().name)
    names = papers_on(method)[0].trained_on("" if entry is None else entry.name)
    if data is None:
        raise ConfigError(
            f"{method} is trained on {', '.join(names)} for this: say with --data ROOT where that lies, or give --model"
        )
    return method, Pair(train=tuple(str(find_set(name, data)) for name in names), test=test)


def _report(request: BenchmarkRequest, method: str, dataset: str, folder: Path) -> int:
    """Measure, print, and write what was printed.

    Raises:
        DataError: the set could not be measured.
    """
    from zsad.cli.benchmark import run_cells
    from zsad.cli.console import printable, say, say_table
    from zsad.errors import DataError
    from zsad.files import write_json
    from zsad.studies.benchmark.cell_results import read_cell
    from zsad.studies.benchmark.paper_comparison import compare, find_entry

    cells = [read_cell(path) for path in run_cells(request)]
    failed = next((cell for cell in cells if cell.state == "failed"), None)
    if failed is not None:
        raise DataError(failed.reason)
    reproduction = compare(method, cells, find_entry(dataset, folder.resolve().name))
    say_table(reproduction.table().to_rich())
    for line in reproduction.remarks:
        say(f"note: {printable(line)}")
    write_json(request.work / "reproduce.json", reproduction.to_dict())
    say(f"wrote reproduce.json into {printable(request.work)}")
    return 3 if any(cell.problems for cell in cells) else 0
