from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from zsad.errors import DataError
from zsad.metrics.table import COLUMNS, ResultRow, ResultTable
from zsad.studies.benchmark.cell_results import CellResult, ClassRow, read_cells
from zsad.studies.benchmark.summary import FEWER, OVERALL, SEEN, Summary
from zsad.studies.report.benchmark_reports import console_table
from zsad.studies.report.result_tables import (
    CSV_COLUMNS,
    MEAN,
    entry_text,
    holes,
    notes,
    to_csv,
    to_json,
    to_latex,
    to_markdown,
)


@pytest.fixture(scope="module")
def cells(benchmark_work: Path) -> list[CellResult]:
    return read_cells(benchmark_work)


@pytest.fixture(scope="module")
def summary(benchmark_work: Path, cells: list[CellResult]) -> Summary:
    return Summary(cells, work=benchmark_work, resamples=400)


def cell(label: str, target: str, values: dict[str, float | None], **changes: object) -> CellResult:
    rows = tuple(
        ClassRow(name=name, normal=5, anomalous=5, masks=0, metrics={"pixel_auroc": value})
        for name, value in values.items()
    )
    base = {"key": f"{label}{target}", "method": "clip", "backbone": "b", "backbone_sha256": "0" * 64}
    return CellResult(**{**base, "label": label, "target": target, "rows": rows, **changes})


def test_values_are_means_over_classes_then_seeds_then_sets(
    summary: Summary, cells: list[CellResult]
) -> None:
    means = {
        target: [c.mean("pixel_pro") for c in cells if (c.label, c.target) == ("promptmoe", target)]
        for target in ("bolts", "cloth", "polyps", "tiles")
    }
    for target, values in means.items():
        entry = summary.entry("promptmoe", target, "pixel_pro")
        assert entry.spread.mean == pytest.approx(np.mean(values))
        assert entry.spread.deviation == pytest.approx(np.std(values, ddof=1))
    overall = summary.entry("promptmoe", OVERALL, "pixel_pro")
    by_seed = np.mean(list(means.values()), axis=0)
    assert overall.spread.mean == pytest.approx(by_seed.mean())
    assert overall.spread.deviation == pytest.approx(by_seed.std(ddof=1))
    assert overall.parts == (4, 4) and overall.marks == ""


def test_methods_without_training_come_first(summary: Summary) -> None:
    assert summary.names == ["clip", "winclip", "moeclip", "mpama", "promptmoe", "wmoeclip"]
    assert summary.trained_on("clip") == () and summary.trained_on("mpama") == ("Auxiliary A",)


def test_seen_data_is_marked_and_left_out_of_means_and_bold_face(summary: Summary) -> None:
    seen = summary.entry("mpama", "bolts", "image_auroc")
    assert seen.marks == SEEN and not seen.bold and not seen.comparable
    standing = summary.standing("bolts", "image_auroc")
    assert standing is not None and "mpama" not in {standing.best, *standing.comparisons}
    overall = summary.entry("mpama", OVERALL, "image_auroc")
    assert overall.marks == FEWER and overall.parts == (3, 4) and not overall.bold
    others = [
        summary.entry("mpama", target, "image_auroc").spread.mean for target in ("cloth", "scans", "tiles")
    ]
    assert overall.spread.mean == pytest.approx(np.mean(others))


def test_failed_and_missing_cells_are_holes_with_reasons(summary: Summary) -> None:
    assert summary.entry("moeclip", "scans", "image_auroc").hole == "failed: CUDA out of memory"
    assert summary.entry("wmoeclip", "tiles", "image_auroc").hole == "not run"
    assert summary.entry("clip", "polyps", "image_auroc").hole == "undefined"
    assert math.isnan(summary.entry("clip", "polyps", "image_auroc").spread.mean)
    assert holes(summary) == [
        ("moeclip", "scans", "CUDA out of memory (seed 0, 1, 2)"),
        ("wmoeclip", "tiles", "not run"),
    ]
    # A mean over fewer data sets than the others' does not compete with theirs.
    assert summary.entry("moeclip", OVERALL, "image_auroc").marks == FEWER
    standing = summary.standing(OVERALL, "image_auroc")
    assert standing is not None and set(standing.comparisons) == {"clip", "winclip"}


def test_bold_face_follows_the_tests(summary: Summary) -> None:
    for target in (*summary.targets, OVERALL):
        for metric in summary.metrics:
            standing = summary.standing(target, metric)
            bold = {name for name in summary.names if summary.entry(name, target, metric).bold}
            assert bold == (set() if standing is None else standing.bold())
            if bold:
                assert standing is not None and standing.best in bold
                assert all(standing.corrected[name] < 0.05 for name in set(standing.comparisons) - bold)
    worst = summary.standing(OVERALL, "image_auroc")
    assert worst is not None and worst.best == "promptmoe" and "clip" in worst.worse()


def test_pixel_metrics_of_one_class_are_not_tested(summary: Summary) -> None:
    assert summary.compare("clip", "promptmoe", "polyps", "pixel_auroc") is None
    assert not any(summary.entry(name, "polyps", "pixel_auroc").bold for name in summary.names)
    found = summary.compare("promptmoe", "clip", "cloth", "pixel_auroc")
    assert found is not None and found.over == "classes" and found.p == pytest.approx(2 / 2**7)


def test_image_metrics_are_compared_on_the_same_images(summary: Summary) -> None:
    found = summary.compare("promptmoe", "clip", "cloth", "image_auroc")
    assert found is not None and found.over == "images and seeds" and found.interval is not None
    assert found.interval.low < found.difference < found.interval.high
    entry = summary.entry("clip", "cloth", "image_auroc")
    assert entry.interval is not None
    assert entry.interval.low < entry.spread.mean < entry.interval.high
    assert summary.class_entry("clip", "cloth", "weave_0", "image_auroc").interval is not None
    assert summary.entry("clip", "cloth", "pixel_auroc").interval is None


def test_without_scores_there_are_no_intervals(
    cells: list[CellResult], benchmark_work: Path, tmp_path: Path
) -> None:
    alone = Summary(cells)
    assert not alone.has_intervals and alone.entry("clip", "cloth", "image_auroc").interval is None
    found = alone.compare("promptmoe", "clip", "cloth", "image_auroc")
    assert found is not None and found.over == "classes"
    work = shutil.copytree(benchmark_work, tmp_path / "work")
    for path in (work / "cells").glob("cloth-clip-*.scores.npz"):
        path.write_bytes(path.read_bytes()[:300])
    broken = Summary(cells, work=work, resamples=50)
    assert broken.entry("clip", "cloth", "image_auroc").interval is None
    assert broken.entry("winclip", "cloth", "image_auroc").interval is not None


def test_scores_of_other_images_are_told(
    cells: list[CellResult], benchmark_work: Path, tmp_path: Path
) -> None:
    work = shutil.copytree(benchmark_work, tmp_path / "work")
    path = work / "cells" / "cloth-clip-None.scores.npz"
    with np.load(path) as content:
        arrays = {name: content[name][:-3] for name in content.files}
    np.savez(path, **arrays)
    fewer = Summary(cells, work=work, resamples=50)
    assert fewer.left_out("cloth") == 3 and fewer.left_out("bolts") == 0
    assert any(line.startswith("3 images of cloth") for line in notes(fewer))


def test_scores_that_contradict_the_cell_are_not_used(
    cells: list[CellResult], benchmark_work: Path, tmp_path: Path
) -> None:
    work = shutil.copytree(benchmark_work, tmp_path / "work")
    path = work / "cells" / "cloth-clip-None.scores.npz"
    with np.load(path) as content:
        arrays = {name: content[name] for name in content.files}
    np.savez(path, **{**arrays, "score": arrays["score"][::-1]})
    assert Summary(cells, work=work, resamples=50).entry("clip", "cloth", "image_auroc").interval is None


def test_undefined_classes_are_left_out_and_counted() -> None:
    cells = [
        cell("a", "set", {"x": 0.9, "y": None, "z": 0.7}),
        cell("b", "set", {"x": 0.8, "y": 0.6, "z": 0.7}),
    ]
    summary = Summary(cells)
    entry = summary.entry("a", "set", "pixel_auroc")
    assert entry.spread.mean == pytest.approx(0.8) and entry.parts == (2, 3) and entry.marks == FEWER
    assert summary.standing("set", "pixel_auroc") is None
    assert summary.metrics == ["pixel_auroc"]


def test_equal_labels_get_names_that_tell_them_apart() -> None:
    first = cell("ours", "set", {"x": 0.9}, trained_on=("A",))
    second = cell("ours", "set", {"x": 0.8}, trained_on=("B",), key="2")
    third = cell("ours", "set", {"x": 0.7}, trained_on=("B",), key="3", backbone="other")
    assert set(Summary([first, second, third]).names) == {"ours (b) (A)", "ours (b) (B)", "ours (other)"}
    twice = Summary([first, first])
    assert twice.names == ["ours"] and twice.duplicates == ["ours on set with seed None"]


def test_two_directions_stand_side_by_side() -> None:
    """Long lists of sets have letters, what the other direction measures is no hole, and a part is no best."""
    one, other = ("screws", "hazelnuts", "tyres", "colons"), ("tiles", "ball screws", "cracks", "drawn")
    cells = [
        cell("m", "tiles", {"x": 0.9}, trained_on=one, key="1"),
        cell("m", "screws", {"x": 0.8}, trained_on=other, key="2"),
        cell("free", "tiles", {"x": 0.7}, key="3"),
        cell("free", "screws", {"x": 0.6}, key="4"),
    ]
    summary = Summary(cells)
    assert summary.names == ["free", "m (A)", "m (B)"] and not holes(summary)
    assert summary.sets("m (A)", "tiles") == "A" and not summary.asked("m (A)", "screws")
    assert f"A: trained on {' + '.join(one)}." in notes(summary)
    metric = summary.metrics[0]
    assert entry_text(summary.entry("m (A)", OVERALL, metric)).endswith(FEWER)
    assert not summary.entry("free", OVERALL, metric).bold
    failed = [cell("m", "tiles", {}, trained_on=one, key="1", state="failed", reason="no memory"), *cells[1:]]
    assert [hole[:2] for hole in holes(Summary(failed))] == [("m (A)", "tiles")]


def test_within_a_protocol_auxiliary_sets_go_with_the_target() -> None:
    cells = [
        cell("m", "VisA", {"x": 0.9}, trained_on=("MVTec",), protocol="p"),
        cell("m", "MVTec", {"x": 0.8}, trained_on=("VisA",), protocol="p"),
    ]
    summary = Summary(cells)
    assert summary.names == ["m"]
    assert summary.trained_on("m", "VisA") == ("MVTec",)
    assert any(line == "Trained on VisA for MVTec; MVTec for VisA: m." for line in notes(summary))


def test_nothing_at_all_and_nothing_finished() -> None:
    empty = Summary([])
    assert to_csv(empty) == ",".join(CSV_COLUMNS) + "\n" and json.loads(to_json(empty))["results"] == []
    failed = Summary([cell("m", "set", {}, state="failed", reason="no luck")])
    assert failed.metrics == [] and holes(failed) == [("m", "set", "no luck")]


def test_csv_holds_every_value_unrounded(summary: Summary) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(summary))))
    places = 6 + 13  # five targets and their mean, and their classes
    assert len(rows) == 6 * places * len(summary.metrics)
    row = next(
        row
        for row in rows
        if (row["method"], row["target"], row["class"], row["metric"]) == ("winclip", "bolts", "", "image_ap")
    )
    entry = summary.entry("winclip", "bolts", "image_ap")
    assert entry.interval is not None
    assert float(row["value"]) == entry.spread.mean and float(row["low"]) == entry.interval.low
    holes_told = {row["hole"] for row in rows if row["method"] == "moeclip" and row["target"] == "scans"}
    assert holes_told == {"failed: CUDA out of memory"}
    assert {row["target"] for row in rows if row["class"] == ""} == {*summary.targets, MEAN}


def test_json_is_whole_and_strict(summary: Summary, cells: list[CellResult]) -> None:
    document = json.loads(to_json(summary), parse_constant=pytest.fail)
    assert len(document["cells"]) == len(cells)
    assert CellResult.model_validate(document["cells"][0]) == cells[0]
    compared = [
        c
        for c in document["comparisons"]
        if (c["target"], c["metric"], c["other"]) == (MEAN, "image_auroc", "clip")
    ]
    assert len(compared) == 1 and compared[0]["best"] == "promptmoe"
    assert 0 < compared[0]["p"] <= compared[0]["p_corrected"] < 0.05


def test_latex_tables_are_regular_and_escaped(summary: Summary) -> None:
    text = to_latex(summary)
    assert text.count(r"\begin{table}") == text.count(r"\bottomrule") == len(summary.metrics)
    for line in text.splitlines():
        if line.endswith(r"\\"):
            assert len(re.findall(r"(?<!\\)&", line)) == len(summary.names)
    odd = Summary([cell("50%_a&b", "x_1", {"c": 0.5}), cell("m", "x_1", {"c": 0.25}, key="2")])
    body = to_latex(odd).split(r"\midrule")[0] + to_latex(odd).split(r"\midrule")[1]
    assert r"50\%\_a\&b" in body and r"x\_1 & 50.0 & 25.0 \\" in body


def test_markdown_tables_are_regular(summary: Summary) -> None:
    text = to_markdown(summary, title="A | b", picture="benchmark.png")
    assert text.startswith("# A \\| b\n") and "](benchmark.png)" in text
    widths: list[int] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            widths.append(len(re.findall(r"(?<!\\)\|", line)))
        else:
            assert len(set(widths)) <= 1
            widths = []
    for title in COLUMNS.values():
        assert f"## {title}" in text
    assert "- moeclip on scans: CUDA out of memory (seed 0, 1, 2)" in text
    assert "## Classes of cloth" in text and "## Classes of polyps" not in text


def test_terminal_table_says_it_all(cells: list[CellResult], summary: Summary) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(console_table(cells))
    text = console.export_text()
    for name in summary.names:
        assert text.count(name) >= len(summary.targets)
    assert summary.entry("promptmoe", "cloth", "pixel_pro").percent() in text
    assert "hole: wmoeclip on tiles: not run" in text and f"note: {SEEN}" in text
    narrow = Console(width=60, file=io.StringIO())
    narrow.print(console_table([cell("[red]m[/]", "set", {"x": 0.5})]))
    assert "[red]m[/]" in narrow.file.getvalue()  # type: ignore[attr-defined]


def test_a_terminal_of_80_columns_loses_no_number() -> None:
    measured = dict(zip(COLUMNS, (0.911, 0.922, 0.933, 0.944, 0.955, 0.966, 0.977), strict=True))
    row = ClassRow(name="metal_nut", normal=220, anomalous=388, masks=388, metrics=measured)
    names = ("promptmoe", "anomalyclip")
    base = {"method": "clip", "backbone": "b", "backbone_sha256": "0" * 64, "target": "MagneticTile"}
    found = [CellResult(**base, key=name, label=name, rows=(row,), trained_on=("MVTec",)) for name in names]
    evaluated = ResultRow("MagneticTile", "metal_nut", "class", 220, 388, dict(measured))
    for table, rows in ((console_table(found), 2), (ResultTable([evaluated]).render(), 1)):
        console = Console(width=80, file=io.StringIO())
        console.print(table)
        text = console.file.getvalue()  # type: ignore[attr-defined]
        for value in measured.values():
            assert len(re.findall(rf" {100 * value:.1f}(?= |$)", text, re.MULTILINE)) >= rows, text
        assert max(map(len, text.splitlines())) <= 80
    assert "220 + 388" in text and "metal_nut" in text


def test_every_form_says_which_settings_are_not_the_papers(summary: Summary) -> None:
    line = next(line for line in notes(summary) if line.startswith("promptmoe does not have the settings of"))
    assert "PromptMoE (AAAI 2026, arXiv 2511.18116): backbone = " in line and "(paper: ViT-L/14@336)" in line
    pro = "PRO is the area under the whole curve up to a false positive rate of 0.3"
    shown = Console(width=20_000, file=io.StringIO())
    shown.print(console_table(summary.cells))
    forms = [to_markdown(summary), to_json(summary), shown.file.getvalue()]  # type: ignore[attr-defined]
    assert all(line in text.replace('\\"', '"') and pro in text for text in forms)
    assert to_latex(summary).count(r"promptmoe does not have the settings of") == len(summary.metrics) + 1
    listed = {entry["method"]: entry for entry in json.loads(to_json(summary))["settings"]}
    differing = {each["setting"]: each["paper"] for each in listed["promptmoe"]["not_the_papers"]}
    assert differing["backbone"] == "ViT-L/14@336" and listed["promptmoe"]["paper"].startswith("PromptMoE")


def test_results_of_two_pros_do_not_share_a_table() -> None:
    one, other = cell("a", "s", {"c": 0.5}), cell("b", "s", {"c": 0.25}, key="2", pro="anomalyclip")
    with_pro = [
        each.model_copy(
            update={"rows": (ClassRow(**{**each.rows[0].model_dump(), "metrics": {"pixel_pro": 0.5}}),)}
        )
        for each in (one, other)
    ]
    with pytest.raises(DataError, match="different PROs"):
        Summary(with_pro)
    assert Summary(with_pro[1:]).titles["pixel_pro"] == "PRO (anomalyclip)"
