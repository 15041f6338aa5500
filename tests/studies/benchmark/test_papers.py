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
from zsad.studies.benchmark.papers import PaperTable, Slip, covered, papers, papers_on, printed

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
    assert set(paper.ablations) == set(ablations("promptmoe").tables)


def test_full_rows_of_the_ablations_are_those_of_the_main_table() -> None:
    for name in ("2", "3", "4", "5", "6"):
        table = ablations("promptmoe").tables[name]
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
        settings={"image_size": 518},
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
    said = "\n".join(found.remarks)
    assert "seeds 111, 112" in said and "one seed" not in said and "another" not in said
    assert "has 962 normal and 1200 anomalous test images, ours 120 and 108" in said
    assert "prints an image AP of 88.2" in said
    other = compare(
        "promptmoe", [cell(backbone="zsad-tiny", trained_on=("VisA",), seen=True)], bundled().find("VisA")
    )
    said = "\n".join(other.remarks)
    assert "another backbone (zsad-tiny), another auxiliary set (VisA)" in said
    assert "not zero-shot" in said and "one seed" in said
    redesigned = compare(
        "mpama", [cell(method="mpama", label="mpama", provenance="re-designed")], bundled().find("VisA")
    )
    assert {entry.paper for entry in redesigned.comparisons} == {None}
    assert "no published value of mpama on VisA" in "\n".join(redesigned.remarks)


def test_reproduce_prints_paper_ours_and_difference(call, drawn: Path, tmp_path: Path, toy) -> None:
    shutil.copytree(drawn / "one" / "one", tmp_path / "data" / "BTAD" / "01")
    words = ["reproduce", "clip", "BTAD", "--data", tmp_path / "data", "--out", tmp_path / "out"]
    code, shown, said = call(*words, "--backbone", toy.backbone, "--device", "cpu", "--threads", 1)
    assert code == 0, said
    [line] = [line for line in shown.splitlines() if "image AUROC" in line]
    paper, ours, difference = map(float, re.findall(r"[-+]?\d+\.\d", line)[-3:])
    assert paper == 34.5 and difference == pytest.approx(ours - paper, abs=0.11)
    assert "not comparable: ours has another backbone (toy), another image size (64 px)" in shown
    assert "BTAD has 451 normal and 290 anomalous test images, ours" in shown
    document = json.loads((tmp_path / "out" / "reproduce.json").read_text())
    assert document["target"] == "BTAD"
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
