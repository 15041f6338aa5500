"""The papers' tables: transcribed whole, their sums checked, their slips listed; and `zsad reproduce` beside them."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from zsad.datasets.catalog import bundled
from zsad.errors import ConfigError
from zsad.methods.moeclip import MoECLIPConfig
from zsad.methods.registry import METHODS
from zsad.metrics.table import COLUMNS
from zsad.studies.ablations import ablations
from zsad.studies.benchmark.cell_results import CellResult, ClassRow
from zsad.studies.benchmark.cells import Candidate, Cell, Target, cell_key
from zsad.studies.benchmark.pairing import find_set, parse_pair, protocols, resolve
from zsad.studies.benchmark.paper_comparison import compare
from zsad.studies.benchmark.paper_tables import TableReproduction
from zsad.studies.benchmark.papers import PaperTable, Slip, covered, papers, papers_on, papers_pro, printed
from zsad.train.train_config import TrainConfig

ROUNDED = {("moeclip", "reproduction"): 0.005}  # to two digits; all else to one


def inconsistent(table: PaperTable, *, half: float = 0.05) -> Iterator[Slip]:
    """Means that cannot be those of the rows, however these were rounded, which moves a value by at most `half`."""
    for place, column in enumerate(table.columns):
        for index, metric in enumerate(table.metrics):
            defined = [row[place][index] for row in table.rows.values() if not math.isnan(row[place][index])]
            if table.mean is None or not defined:
                continue
            value, mean = table.mean[place][index], math.fsum(defined) / len(defined)
            if abs(value - mean) > 2 * half + 1e-9:
                yield Slip(column=column, metric=metric, printed=value, of_the_rows=round(mean, 2))


def test_printed_means_follow_from_the_rows_but_for_the_slips_listed() -> None:
    checked = 0
    for name, paper in papers().items():
        for table in paper.tables:
            found = tuple(inconsistent(table, half=ROUNDED.get((name, table.number), 0.05)))
            assert found == table.slips, (name, table.number, table.title)
            checked += 0 if table.mean is None else len(table.columns) * len(table.metrics)
    assert checked == 7 * 2 * 4 + 5 * 4 + 7 * 2 * 2 + 4


def test_a_wrong_digit_would_be_found() -> None:
    table = papers()["promptmoe"].tables[0]
    rows = dict(table.rows)
    (first, *rest), *others = rows["BTAD"]
    rows["BTAD"] = ((first + 2, *rest), *others)
    assert [slip.column for slip in inconsistent(table.model_copy(update={"rows": rows}))] == ["CLIP"]


def test_tables_by_class_agree_with_the_main_table() -> None:
    paper = papers()["promptmoe"]
    differing = []
    for table in paper.tables:
        if table.of is None:
            continue
        for metric, mean in zip(table.metrics, table.mean[0], strict=True):
            main = next(
                t for t in paper.tables if t.of is None and metric in t.metrics and table.of in t.rows
            )
            if main.values(table.of, "PromptMoE")[metric] != mean:
                differing.append((table.of, metric, main.values(table.of, "PromptMoE")[metric], mean))
    assert differing == [("VisA", "image_ap", 88.2, 88.1)]
    assert [t.number for t in paper.tables if t.of] == ["8", "9", "10", "11", "12"]
    assert set(paper.ablations) == set(ablations("promptmoe"))


def test_full_rows_of_the_ablations_are_those_of_the_main_table() -> None:
    for name in ("2", "3", "4", "5", "6"):
        table = ablations("promptmoe")[name]
        best = next(row for row in table.rows if row.printed == ((93.8, 83.2), (85.0, 89.2)))
        for target, cells in zip(("MVTec-AD", "VisA"), best.printed, strict=True):
            values = {}
            for place in printed("promptmoe", target):
                if place.table.number == "1":
                    values |= place.values
            assert cells == tuple(values[metric] for metric in table.metrics)


def test_sets_classes_methods_and_counts_are_the_catalogues() -> None:
    for paper in papers().values():
        assert set(paper.columns.values()) <= set(METHODS) and paper.method in METHODS
        for table in paper.tables:
            for row in table.rows:
                entry = bundled().find(row if table.of is None else table.of)
                assert entry.name in (row, table.of)
                assert table.of is None or entry.expected(row) is not None
            if table.of is not None:
                assert len(table.rows) == len(bundled().find(table.of).classes)
        for name, (classes, normal, anomalous) in paper.counts.items():
            entry = bundled().find(name)
            assert (entry.normal, entry.anomalous) == (normal, anomalous)
            assert not entry.classes or len(entry.classes) == classes
        assert {row for table in paper.tables if table.of is None for row in table.rows} <= {
            e.name for e in bundled()
        }
    assert set(papers()["promptmoe"].counts) == {
        row for table in papers()["promptmoe"].tables if table.of is None for row in table.rows
    }


def test_anchors() -> None:
    values = {place.source: place.values for place in printed("anomalyclip", "VisA")}
    assert values["AnomalyCLIP (ICLR 2024, arXiv 2310.18961), logs"]["pixel_pro"] == 86.7
    assert values["MoECLIP (CVPR 2026, arXiv 2603.03101), main"] == {"pixel_auroc": 95.5, "pixel_ap": 21.2}
    [place] = [place for place in printed("wmoeclip", "DAGM") if place.row == "DAGM"]
    assert place.values == {"pixel_auroc": 99.5}
    assert printed("mpama", "VisA") == [] and "no published numbers" in papers_on("mpama")[0].caveats[0]
    assert set(covered()) == set(METHODS)
    with pytest.raises(ConfigError, match="no published results of 'x'"):
        papers_on("x")


def test_protocols_pair_sets_of_the_catalogue_and_never_a_set_with_itself() -> None:
    for name, protocol in protocols().items():
        targets = [target for pair in protocol.pairs for target in pair.test]
        assert len(set(targets)) == len(targets), name
        for pair in protocol.pairs:
            assert not set(pair.train) & set(pair.test)
            for entry in map(bundled().find, (*pair.train, *pair.test)):
                assert entry.name in (*pair.train, *pair.test)
                assert not set(bundled().sharing(entry)) & set(pair.train) or entry.name in pair.train
        assert set(protocol.used_by) <= set(METHODS)
    assert protocols()["mvtec-first"].pairs[1].train == ("VisA",)
    assert papers()["promptmoe"].trained_on("VisA") == ("MVTec-AD",)
    assert papers()["promptmoe"].trained_on("MVTec-AD") == papers()["moeclip"].trained_on("BTAD") == ("VisA",)


def test_sets_are_found_by_their_names(tmp_path: Path) -> None:
    for name in ("mvtec_anomaly_detection", "industrial/VisA_20220922", "Mine"):
        (tmp_path / name).mkdir(parents=True)
    assert find_set("MVTec-AD", tmp_path).name == "mvtec_anomaly_detection"
    assert find_set("visa", tmp_path).name == "VisA_20220922"
    assert find_set("Mine", tmp_path).name == "Mine" and find_set(str(tmp_path / "Mine"), None).name == "Mine"
    with pytest.raises(ConfigError, match="no data set 'BTAD'"):
        find_set("BTAD", tmp_path)
    found, missing = resolve(protocols()["mvtec-first"].pairs, tmp_path, partial=True)
    assert [(Path(pair.train[0]).name, len(pair.test)) for pair in found] == [
        ("mvtec_anomaly_detection", 1),
        ("VisA_20220922", 1),
    ]
    assert "MPDD" in missing and "VisA" not in missing
    assert parse_pair("a, b>c").model_dump() == {"train": ("a", "b"), "test": ("c",)}
    for text in ("a", "a>", ">b", "a>b>c"):
        with pytest.raises(ConfigError, match="is no pair"):
            parse_pair(text)


def cell(**changes: object) -> CellResult:
    """Our PromptMoE on VisA, made up."""
    names = [entry.name for entry in bundled().find("VisA").classes]
    metrics = {**dict.fromkeys(COLUMNS), "image_auroc": 0.8, "pixel_pro": 0.9}
    rows = tuple(ClassRow(name=name, normal=10, anomalous=9, masks=9, metrics=metrics) for name in names)
    base = CellResult(
        key="k",
        method="promptmoe",
        label="promptmoe",
        backbone="ViT-L-14@336",
        backbone_sha256="0",
        settings={"image_size": 518, "oddness": "off"},
        pro="anomalyclip",
        trained_on=("mvtec_anomaly_detection",),
        target="VisA",
        seed=111,
        rows=rows,
    )
    return base.model_copy(update=changes)


def test_differences_and_what_keeps_numbers_from_being_comparable() -> None:
    found = compare("promptmoe", [cell(), cell(seed=112)], bundled().find("VisA"))
    values = {(entry.source[-7:], entry.row, entry.metric): entry for entry in found.comparisons}
    main = values["Table 1", "", "image_auroc"]
    assert (main.paper, round(main.ours, 6)) == (85.0, 80.0) and main.difference == pytest.approx(-5.0)
    assert values["Table 9", "pcb3", "image_auroc"].difference == pytest.approx(80 - 66.3)
    assert values["Table 1", "", "image_ap"].difference is None
    [(paper, differing)] = found.differences.items()
    assert paper.startswith("PromptMoE") and not differing
    assert found.document().head[0] == f"ours has the settings of {paper}."
    said = "\n".join(found.remarks)
    assert "seeds 111, 112" in said and "one seed" not in said
    assert "has 962 normal and 1200 anomalous test images, ours 120 and 108" in said
    assert "prints an image AP of 88.2" in said
    changed = cell(
        backbone="zsad-tiny",
        trained_on=("VisA",),
        seen=True,
        settings={"image_size": 518, "oddness": "fused", "score": "map"},
        training={**TrainConfig().model_dump(mode="json"), "epochs": 2, "limit_per_class": 25, "workers": 7},
    )
    other = compare("promptmoe", [changed], bundled().find("VisA"))
    [differing] = other.to_dict()["not_the_papers"].values()
    assert {each["setting"]: (each["ours"], each["paper"]) for each in differing} == {
        "backbone": ("zsad-tiny", "ViT-L/14@336"),
        "oddness": ("fused", "off"),
        "score": ("map", "map_and_global"),
        "epochs": (2, 15),
        "limit_per_class": (25, None),
        "trained_on": (["VisA"], ["MVTec-AD"]),
    }
    document = other.document()
    for text in (document.to_markdown(), document.to_latex(), document.to_html()):
        assert "epochs = 2 (paper: 15)" in text and "PRO (anomalyclip)" in text
        assert "200 equal steps of the score" in text
    said = "\n".join(other.remarks)
    assert "not zero-shot" in said and "one seed" in said
    redesigned = compare(
        "mpama", [cell(method="mpama", label="mpama", provenance="re-designed")], bundled().find("VisA")
    )
    assert {entry.paper for entry in redesigned.comparisons} == {None}
    assert "no published value of mpama on VisA" in "\n".join(redesigned.remarks)


def test_another_pro_never_stands_beside_a_papers() -> None:
    found = compare("promptmoe", [cell(pro="aupro")], bundled().find("VisA"))
    pros = [entry for entry in found.comparisons if entry.metric == "pixel_pro"]
    assert {entry.ours for entry in pros if entry.paper is not None} == {None}
    assert [entry.ours for entry in pros if entry.paper is None] == [pytest.approx(90.0)]
    assert all(paper.pro == "anomalyclip" for paper in papers().values())
    assert papers_pro(["promptmoe", "clip"]) == "anomalyclip" and papers_pro(["a plugin's"]) == "aupro"


def test_reproduce_prints_paper_ours_and_difference(call, drawn: Path, tmp_path: Path, toy) -> None:
    shutil.copytree(drawn / "one" / "one", tmp_path / "data" / "BTAD" / "01")
    words = ["reproduce", "clip", "BTAD", "--data", tmp_path / "data", "--out", tmp_path / "out"]
    code, shown, said = call(*words, "--backbone", toy.backbone, "--device", "cpu", "--threads", 1)
    assert code == 0, said
    [line] = [line for line in shown.splitlines() if "image AUROC" in line]
    paper, ours, difference = map(float, re.findall(r"[-+]?\d+\.\d", line)[-3:])
    assert paper == 34.5 and difference == pytest.approx(ours - paper, abs=0.11)
    assert "backbone = toy (paper: ViT-L/14@336)" in shown and "image_size = 64 (paper: 518)" in shown
    assert "BTAD has 451 normal and 290 anomalous test images, ours" in shown
    document = json.loads((tmp_path / "out" / "reproduce.json").read_text())
    assert document["target"] == "BTAD" and document["pro"] == "anomalyclip"
    assert any(
        math.isclose(entry["paper"] or 0, 30.6) and entry["metric"] == "pixel_auroc"
        for entry in document["values"]
    )
    code, _, said = call(
        "reproduce", "promptmoe", "BTAD", "--data", tmp_path / "data", "--backbone", toy.backbone
    )
    assert code == 2 and "no data set 'MVTec-AD'" in said
    code, _, said = call(*words[:1], "mpa", *words[2:], "--model", toy.model)
    assert code == 2 and "is of method promptmoe, not mpa" in said


def test_cells_on_medical_targets_are_measured_with_the_medical_settings_and_kept_apart():
    context = SimpleNamespace(backbone=SimpleNamespace(sha256="0"))
    keys = {}
    for domain in ("industrial", "medical"):
        candidate = Candidate("m", "moeclip", MoECLIPConfig(domain=domain), context)
        for name in ("BrainMRI", "MVTec", "mine"):
            target = Target("path", name, None, "print")
            cell = Cell(candidate, target, None, cell_key(candidate, None, target))
            assert cell.domain == {"BrainMRI": "medical", "MVTec": "industrial"}.get(name)
            keys[domain, name] = cell.key
    # One fingerprint for all three: the keys differ by what the catalogue says of the name alone.
    assert keys["industrial", "mine"] == keys["industrial", "MVTec"] != keys["industrial", "BrainMRI"]
    assert keys["medical", "mine"] == keys["medical", "BrainMRI"] != keys["medical", "MVTec"]


def test_a_table_without_data_has_the_papers_shape(call, tmp_path: Path) -> None:
    code, shown, said = call("reproduce", "promptmoe", "--table", 1, "--out", tmp_path)
    assert code == 0, said
    assert "note: no --data: no values" in shown
    assert shown.count("PRO (anomalyclip), in percent") == 2
    document = json.loads((tmp_path / "table-1.json").read_text())
    blocks = papers()["promptmoe"].blocks("1")
    assert len(document["values"]) == sum(
        len(block.rows) * len(block.columns) * len(block.metrics) for block in blocks
    )
    assert {value["ours"] for value in document["values"]} == {None}
    row = next(line.split() for line in shown.splitlines() if line.split()[:1] == ["BTAD"])
    assert row == ["BTAD", "paper", "34.5", "68.2", "73.6", "88.3", "91.6", "92.0", "93.4"]
    for name, table, what in (("moeclip", "main", "MoECLIP"), ("wmoeclip", "listing", "WMoE-CLIP")):
        code, shown, said = call("reproduce", name, "--table", table, "--out", tmp_path)
        assert code == 0 and what in shown, said
    assert call("reproduce", "promptmoe", "--table", 7, "--out", tmp_path)[0] == 0


def test_a_table_is_filled_with_what_there_is(call, drawn: Path, tmp_path: Path, toy) -> None:
    for name in ("BTAD", "Br35H"):
        shutil.copytree(drawn / "one" / "one", tmp_path / "data" / name / "01")
    words = ["reproduce", "promptmoe", "--table", 1, "--data", tmp_path / "data", "--out", tmp_path / "out"]
    words += ["--backbone", toy.backbone, "--device", "cpu", "--threads", 1, "--methods", "clip", "promptmoe"]
    code, shown, said = call(*words)
    assert code == 0, said
    document = json.loads((tmp_path / "out" / "table-1.json").read_text())
    measured = {(v["method"], v["set"]) for v in document["values"] if v["ours"] is not None}
    assert measured == {("CLIP", "BTAD"), ("CLIP", "Br35H")}  # nothing to train PromptMoE on
    differing = {each["setting"]: each["ours"] for each in document["not_the_papers"]["clip"]}
    assert differing["backbone"] == "toy" and "clip does not have the settings of PromptMoE" in shown
    [value] = [
        value["ours"]
        for value in document["values"]
        if (value["method"], value["set"], value["metric"]) == ("CLIP", "BTAD", "pixel_pro")
    ]
    [cell_file] = [
        path for path in (tmp_path / "out" / "cells").glob("*.json") if '"BTAD"' in path.read_text()
    ]
    assert value == pytest.approx(
        100 * CellResult.model_validate_json(cell_file.read_text()).mean("pixel_pro")
    )
    assert "BTAD has 451 normal and 290 anomalous test images, ours" in shown
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").glob("*.json")}
    assert call(*words)[:2] == (0, shown)
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["promptmoe"], "name a data set to measure on, or a table"),
        (["promptmoe", "BTAD", "--table", "1"], "name a data set to measure on, or a table"),
        (["promptmoe", "--table", "3"], "is an ablation: zsad ablate promptmoe --table 3"),
        (["promptmoe", "--table", "13"], "has no table '13' of results; there is 1, 8, 9, 10, 11, 12"),
        (["mpama", "--table", "1"], "there is none"),
    ],
)
def test_tables_that_are_none_are_told(call, tmp_path: Path, words: list[str], line: str) -> None:
    code, shown, said = call("reproduce", *words, "--out", tmp_path)
    assert (code, shown) == (2, "") and line in said


def test_our_mean_is_of_all_rows_or_none() -> None:
    table = TableReproduction(papers()["promptmoe"], "9")
    table.cells["promptmoe", "VisA"] = [cell(), cell(seed=112)]
    block = table.paper.blocks("9")[0]
    assert table._mean(block, "PromptMoE", "image_auroc") == pytest.approx(80.0)
    assert table._mean(block, "PromptMoE", "image_ap") is None  # our cells have none
    [shown] = table.document().tables
    assert shown.headings[2:] == [
        COLUMNS[m] if m != "pixel_pro" else "PRO (anomalyclip)" for m in block.metrics
    ]
    assert shown.rows[1][:3] == ["", "ours", "80.0"] and len(shown.rows) == 2 * 13
    table.cells["promptmoe", "VisA"] = [cell(seen=True)]
    assert table._mean(block, "PromptMoE", "image_auroc") is None
    assert table.document().tables[0].rows[1][2] == "80.0†"
