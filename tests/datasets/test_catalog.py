"""The catalogue says what the field's protocol says, and refuses entries that contradict themselves."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from pydantic import ValidationError

from zsad.datasets.catalog import Catalogue, bundled, catalogue
from zsad.datasets.fetch import fetch, installed_folder
from zsad.errors import DataError

# (normal, anomalous, classes, metrics) of the test parts, as the common protocol of the field has them.
PROTOCOL = {
    "MVTec-AD": (467, 1258, 15, "image pixel"),
    "VisA": (962, 1200, 12, "image pixel"),
    "MPDD": (176, 282, 6, "image pixel"),
    "BTAD": (451, 290, 3, "image pixel"),
    "SDD": (181, 74, 1, "image pixel"),
    "SDD-thirds": (286, 54, 1, "image pixel"),
    "DAGM": (6996, 1054, 10, "image pixel"),
    "DAGM-Bayes-PFL": (1350, 1350, 0, "image pixel"),
    "DTD-Synthetic": (357, 947, 12, "image pixel"),
    "RSDD": (387, 387, 1, "image pixel"),
    "KSDD2": (356, 356, 1, "image pixel"),
    "HeadCT": (100, 100, 1, "image"),
    "BrainMRI": (98, 155, 1, "image"),
    "BrainMRI-AdaCLIP": (85, 68, 1, "image"),
    "BMAD-Brain": (640, 3075, 1, "image pixel"),
    "BMAD-Liver": (833, 660, 1, "image pixel"),
    "BMAD-Retina": (1041, 764, 1, "image pixel"),
    "Br35H": (1500, 1500, 1, "image"),
    "ISIC": (0, 379, 1, "pixel"),
    "CVC-ColonDB": (0, 380, 1, "pixel"),
    "CVC-ClinicDB": (0, 612, 1, "pixel"),
    "CVC-300": (0, 60, 1, "pixel"),
    "Kvasir": (0, 1000, 1, "pixel"),
    "Endo": (0, 200, 1, "pixel"),
    "TN3K": (0, 614, 1, "pixel"),
    "DAGM-AdaCLIP": (None, None, 0, "image pixel"),
}

OWN = """
[[sets]]
name = "Nuts"
title = "Nuts"
group = "industrial"
layout = "mvtec"
folders = "as MVTec AD"
metrics = ["image"]
normal = 3
classes = [{ name = "a", normal = 1 }, { name = "b", normal = 2 }]
licence = "ours"
home = ""
citation = "-"
get = "ask us"
"""


@pytest.mark.parametrize("name", PROTOCOL)
def test_counts_are_the_protocol_s(name: str) -> None:
    entry = bundled().find(name)
    found = (entry.normal, entry.anomalous, len(entry.classes), " ".join(entry.metrics))
    assert (entry.name, found) == (name, PROTOCOL[name])


def test_counts_of_classes() -> None:
    rows = {row.name: (row.normal, row.anomalous) for row in bundled().find("DTD-Synthetic").classes}
    assert rows["Woven_127"] == (80, 80) and rows["Mesh_114"] == (36, 80) and rows["Woven_001"] == (30, 70)
    assert [rows[name] for name in ("Woven_068", "Matted_069", "Woven_125")] == [(51, 79), (20, 79), (20, 79)]
    assert sum(counts == (20, 80) for counts in rows.values()) == 6
    btad = {row.name: (row.normal, row.anomalous) for row in bundled().find("BTAD").classes}
    assert btad == {"01": (21, 49), "02": (30, 200), "03": (400, 41)}


def test_every_entry_says_what_a_reader_needs() -> None:
    for entry in bundled():
        for text in (entry.title, entry.folders, entry.licence, entry.citation, entry.get):
            assert text.strip() and "\n" not in text
        # What is not known is left out and explained, never guessed.
        if entry.normal is None or any(row.normal is None for row in entry.classes):
            assert entry.counts, entry.name
        assert set(entry.metrics) <= {"image", "pixel"}
        if entry.normal == 0:
            assert entry.metrics == ("pixel",)


def test_names_and_aliases() -> None:
    book = bundled()
    for spelling, name in [
        ("mvtec", "MVTec-AD"),
        ("mvtec_anomaly_detection", "MVTec-AD"),
        ("visa", "VisA"),
        ("ColonDB", "CVC-ColonDB"),
        ("Brain_AD", "BMAD-Brain"),
        ("brain_tumor_dataset", "BrainMRI"),
        ("elpv poly", "ELPV"),
    ]:
        assert book.find(spelling).name == name
    assert book.get("nothing of the kind") is None
    with pytest.raises(DataError, match=r"did you mean .*BrainMRI") as error:
        book.find("BrianMRI")
    assert "\n" not in str(error.value)


def test_sharing_goes_both_ways_and_not_further() -> None:
    book = bundled()
    for entry in book:
        for name in book.sharing(entry):
            assert entry.name in book.sharing(book.find(name)) and name != entry.name
    assert set(book.sharing(book.find("SDD"))) == {"SDD-thirds", "KolektorSDD"}
    assert book.sharing(book.find("BMAD-Brain")) == book.sharing(book.find("MVTec-AD")) == ()


def test_words_for_prompts() -> None:
    book = bundled()
    assert book.find("MVTec").prompt_name("metal_nut") == "metal nut"
    assert book.find("BMAD-Brain").prompt_name("Brain") == "scan"
    assert book.find("VisA").prompt_name("pipe_fryum") == "pipe fryum"
    assert book.find("DAGM").prompt_name("Class1") == "textured surface"


def test_a_catalogue_of_one_s_own_adds_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(OWN + OWN.replace('"Nuts"', '"BTAD"'))
    book = catalogue(path)
    assert book.find("nuts").normal == 3 and book.find("BTAD").get == "ask us"
    assert len(list(book)) == len(list(bundled())) + 1 and bundled().find("BTAD").normal == 451


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (("normal = 3", "normal = 4"), "its classes have 3 normal images, it says 4"),
        (("normal = 3", "normal = -3"), "Nuts: normal"),
        (("normal = 3", "norml = 3"), "Nuts: norml"),
        (('layout = "mvtec"', 'layout = "other"'), "Nuts: layout"),
        (('name = "b"', 'name = "a"'), "a class is listed twice"),
        (('get = "ask us"', 'get = "ask us"\nshares_images_with = ["Bolts"]'), "speaks of 'Bolts'"),
        (('get = "ask us"', 'get = "ask us"\naliases = ["VisA"]'), "both 'VisA'"),
        (('get = "ask us"', 'get = "ask us"\npackage = "nuts"'), "package and package_folder go together"),
        (("[[sets]]", "[[set]]"), "expected tables [[sets]]"),
        (("[[sets]]", "[[sets"), "not valid TOML"),
    ],
)
def test_nonsense_is_refused_in_one_line(tmp_path: Path, change: tuple[str, str], part: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(OWN.replace(*change))
    with pytest.raises(DataError) as error:
        catalogue(path)
    assert part in str(error.value) and "\n" not in str(error.value)


def test_missing_catalogue_and_frozen_entries(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        catalogue(tmp_path / "none.toml")
    with pytest.raises(ValidationError, match="frozen"):
        bundled().find("VisA").normal = 1  # type: ignore[misc]


def test_some_classes_alone() -> None:
    entry = bundled().find("MVTec-AD").restricted(["screw", "Metal Nut"])
    assert (entry.normal, entry.anomalous) == (41 + 22, 119 + 93)
    assert bundled().find("MPDD").restricted(["tubes"]).normal is None
    with pytest.raises(DataError, match="no class 'bolt'"):
        bundled().find("MVTec-AD").restricted(["bolt"])


# what may be had freely


@pytest.fixture
def entry(tmp_path: Path):
    path = tmp_path / "mine.toml"
    extra = 'package = "nuts-data"\npackage_folder = "no_such_nuts_data/data"\n'
    path.write_text(
        OWN.replace('normal = 3\nclasses = [{ name = "a", normal = 1 }, { name = "b", normal = 2 }]\n', extra)
    )
    return catalogue(path).find("Nuts")


def wheel_of(names: list[str]):
    def download(package: str, folder: Path) -> Path:
        assert package == "nuts-data"
        path = folder / "nuts_data-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, name)
        return path

    return download


def test_fetch_takes_the_images_alone(entry, tmp_path: Path) -> None:
    assert installed_folder(entry) is None
    names = [
        "no_such_nuts_data/data/good/1.png",
        "no_such_nuts_data/data/../evil",
        "no_such_nuts_data/code.py",
    ]
    target = fetch(entry, tmp_path / "out", download=wheel_of(names))
    assert target == tmp_path / "out" / "Nuts"
    assert [path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()] == [
        "good/1.png"
    ]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["Nuts"]
    with pytest.raises(DataError, match="is there already"):
        fetch(entry, tmp_path / "out", download=wheel_of(names))


def test_fetch_that_fails_leaves_nothing(entry, tmp_path: Path) -> None:
    def offline(package: str, folder: Path) -> Path:
        raise DataError("no network")

    for download in (offline, wheel_of(["another_module/data/1.png"])):
        with pytest.raises(DataError):
            fetch(entry, tmp_path / "out", download=download)
        assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(DataError, match="not to be had freely"):
        fetch(bundled().find("VisA"), tmp_path / "out")


def test_fetch_copies_an_installed_package(entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "site" / "no_such_nuts_data"
    (module / "data" / "good").mkdir(parents=True)
    (module / "__init__.py").touch()
    (module / "data" / "good" / "1.png").write_bytes(b"1")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert installed_folder(entry) == module / "data"
    target = fetch(entry, tmp_path / "out")
    assert (target / "good" / "1.png").read_bytes() == b"1" and (module / "data" / "good" / "1.png").is_file()


def test_the_installed_textiles_are_the_catalogue_s() -> None:
    pytest.importorskip("conformal_clip_data")
    from zsad.datasets.manifest import discover
    from zsad.datasets.overlap import names_of

    textiles = bundled().find("Textiles")
    folder = installed_folder(textiles)
    assert folder is not None
    data = discover(folder)
    labels = [sample.label for sample in data.samples]
    assert (labels.count(0), labels.count(1)) == (textiles.normal, textiles.anomalous)
    assert bundled().get(names_of(data)[-1]) is textiles


def test_two_entries_of_one_name() -> None:
    with pytest.raises(DataError, match="rename one"):
        Catalogue([bundled().find("VisA"), bundled().find("VisA").model_copy(update={"name": "Visa"})])
