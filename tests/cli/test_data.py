"""`zsad data` as it is called: what it prints, what it writes, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zsad.cli.main import main
from zsad.datasets.catalog import bundled
from zsad.datasets.manifest import discover


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]):
    def run(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def photo(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def screws(tmp_path: Path) -> Path:
    """A little of MVTec's layout: one class, two normal and two anomalous images."""
    root = tmp_path / "MVTec"
    for number in range(2):
        photo(root / "screw" / "train" / "good" / f"{number:03d}.png", number)
        photo(root / "screw" / "test" / "good" / f"{number:03d}.png", 10 + number)
        photo(root / "screw" / "test" / "scratch" / f"{number:03d}.png", 20 + number)
        mask = Image.new("L", (24, 20))
        mask.paste(255, (4, 4, 15, 15))
        path = root / "screw" / "ground_truth" / "scratch" / f"{number:03d}_mask.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        mask.save(path)
    return root


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """A catalogue that calls those screws whole."""
    path = tmp_path / "mine.toml"
    path.write_text(
        '[[sets]]\nname = "Screws"\ntitle = "Screws"\ngroup = "industrial"\nlayout = "mvtec"\nfolders = "as MVTec AD"\n'
        'metrics = ["image", "pixel"]\nnormal = 2\nanomalous = 2\n'
        'classes = [{ name = "screw", normal = 2, anomalous = 2 }]\n'
        'licence = "ours"\nhome = ""\ncitation = "-"\nget = "ask us"\n'
    )
    return path


def test_list(call) -> None:
    code, printed, said = call("data", "list")
    lines = printed.splitlines()
    assert (code, said, len(lines)) == (0, "", len(list(bundled())) + 3)  # two headings, one empty line
    assert max(map(len, lines)) <= 80
    assert {line.split()[0] for line in lines if line.endswith("licence")} == {"industrial", "medical"}
    row = next(line for line in lines if line.startswith("MVTec-AD "))
    assert row.split() == [
        "MVTec-AD",
        "15",
        "467",
        "1,258",
        "image",
        "+",
        "pixel",
        "CC",
        "BY-NC-SA",
        "4.0",
    ]
    medical = call("data", "list", "--group", "medical")[1]
    assert "BMAD-Liver" in medical and "MVTec" not in medical
    facts = json.loads(call("data", "list", "--json")[1])
    assert [entry["name"] for entry in facts] == [entry.name for entry in bundled()]


def test_show(call) -> None:
    code, printed, _ = call("data", "show", "brain_tumor_dataset")
    assert code == 0 and "98 normal, 155 anomalous" in printed
    assert "not       BrainMRI-AdaCLIP, BMAD-Brain: other sets of that name" in printed
    assert "shares    images with BrainMRI-AdaCLIP, Br35H" in printed and "in prompts: scan" in printed
    facts = json.loads(call("data", "show", "Br35H", "--json")[1])
    assert facts["shares_images_with"] == ["BrainMRI", "BrainMRI-AdaCLIP"] and facts["normal"] == 1500
    assert facts["classes"] == [{"name": "brain", "normal": 1500, "anomalous": 1500, "in_prompts": "scan"}]
    code, printed, said = call("data", "show", "MVTek")
    assert (code, printed) == (2, "") and "did you mean MVTec-AD" in said and said.count("\n") == 1


def test_own_catalogue(call, book: Path, screws: Path) -> None:
    assert "Screws" in call("data", "list", "--catalog", book)[1]
    assert "ask us" in call("data", "show", "screws", "--catalog", book)[1]
    code, printed, said = call("data", "check", "Screws", screws, "--catalog", book)
    assert (code, said) == (0, "") and printed.splitlines()[-1] == "nothing is wrong"
    assert call("data", "show", "screws")[0] == 2


def test_check_names_each_problem_and_fails(call, screws: Path) -> None:
    (screws / "screw" / "ground_truth" / "scratch" / "001_mask.png").unlink()
    (screws / "screw" / "test" / "good" / "000.png").write_bytes(b"")
    code, printed, said = call("data", "check", "MVTec", screws, "--classes", "screw")
    assert code == 2 and "2 (expected 41)" in printed
    lines = said.splitlines()
    assert all(line.startswith("zsad: problem: ") for line in lines)
    text = "\n".join(lines)
    assert f"{screws / 'screw' / 'test' / 'good' / '000.png'}: is empty (0 bytes)" in text
    assert f"{screws / 'screw' / 'test' / 'scratch' / '001.png'}: anomalous image without a mask" in text
    assert f"{screws}: class screw has 2 normal images, expected 41" in text
    code, _, said = call("data", "check", "MVTec", screws)
    assert code == 2 and f"{screws}: class bottle is missing" in said


def test_check_of_one_s_own_as_json(call, screws: Path, tmp_path: Path) -> None:
    code, printed, said = call("data", "check", "own", screws, "--json")
    report = json.loads(printed)
    assert (code, said) == (0, "") and report["problems"] == [] and not report["known"]
    assert report["classes"][0]["masks"] == 2 and report["mask_values"] == {"0": 718, "255": 242}
    copy = photo(tmp_path / "auxiliary" / "good" / "x.png", 10)
    code, printed, said = call(
        "data", "check", "own", screws, "--against", copy.parents[1], "--json", "--near", 3
    )
    report = json.loads(printed)
    first = str(screws / "screw" / "test" / "good" / "000.png")
    assert code == 2 and report["overlaps"] == [{"path": first, "other": str(copy), "bits": 0}]
    assert said == f"zsad: problem: {first}: the same image as {copy}\n"


def test_check_says_what_vanishes_and_what_is_there_twice(call, screws: Path) -> None:
    photo(screws / "screw" / "test" / "good" / "009.png", 10)
    code, printed, _ = call("data", "check", "own", screws, "--image-size", 1)
    assert code == 0 and "empty at 1 px: " in printed and "twice: " in printed and "255: 242" in printed


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["nope", "DIR"], "no data set 'nope'"),
        (["own", "DIR/none"], "does not exist"),
        (["own", "DIR", "--near", "65"], "--near 65"),
        (["own", "DIR", "--image-size", "0"], "--image-size 0"),
        (["own", "DIR", "--classes", "bolt"], "no class 'bolt' in MVTec; it has screw"),
        (["own", "DIR", "--split", "val"], "no folder 'val'"),
    ],
)
def test_check_refuses_nonsense(call, screws: Path, words: list[str], part: str) -> None:
    code, printed, said = call("data", "check", *(word.replace("DIR", str(screws)) for word in words))
    assert (code, printed) == (2, "") and part in said and said.count("\n") == 1


def test_manifest_is_read_back_as_it_was(call, screws: Path) -> None:
    before = discover(screws)
    out = screws / "meta.json"
    code, printed, said = call("data", "manifest", screws, "--out", out)
    assert (code, printed) == (0, f"wrote {out}\n") and "train: 2 images in 1 class" in said
    meta = json.loads(out.read_text())
    assert list(meta) == ["train", "test"] and [len(meta[part]["screw"]) for part in meta] == [2, 4]
    assert meta["test"]["screw"][2] == {
        "img_path": "screw/test/scratch/000.png",
        "mask_path": "screw/ground_truth/scratch/000_mask.png",
        "cls_name": "screw",
        "specie_name": "scratch",
        "anomaly": 1,
    }
    assert meta["train"]["screw"][0]["mask_path"] == ""
    after = discover(screws)
    assert after.layout == "meta.json" and after.samples == before.samples
    assert call("data", "manifest", screws, "--out", out)[0] == 2
    assert call("data", "manifest", screws, "--out", out, "--overwrite")[0] == 0


def test_manifest_elsewhere_and_of_what_has_no_labels(call, screws: Path, tmp_path: Path) -> None:
    out = tmp_path / "lists" / "meta.json"
    assert call("data", "manifest", screws, "--out", out)[0] == 0
    assert len(discover(out).samples) == 4
    photo(tmp_path / "flat" / "1.png", 0)
    code, _, said = call("data", "manifest", tmp_path / "flat", "--out", tmp_path / "flat" / "meta.json")
    assert code == 2 and "1.png has no label" in said and not (tmp_path / "flat" / "meta.json").exists()
    assert "no name of a JSON file" in call("data", "manifest", screws, "--out", tmp_path)[2]


def test_fetch_tells_how_a_human_gets_it(call, tmp_path: Path) -> None:
    code, printed, said = call("data", "fetch", "mvtec", "--out", tmp_path / "out")
    assert code == 2 and not (tmp_path / "out").exists()
    assert "https://www.mvtec.com" in printed and "zsad data check MVTec-AD DIR" in printed
    assert said == "zsad: error: MVTec-AD cannot be fetched by zsad: do what is said above\n"


def test_fetch_of_what_is_installed_or_not(call, monkeypatch: pytest.MonkeyPatch) -> None:
    import zsad.datasets.fetch as fetching

    pytest.importorskip("elpv_dataset")
    code, printed, _ = call("data", "fetch", "elpv")
    assert code == 0 and "to cite: Deitsch" in printed and "zsad data check ELPV" in printed
    monkeypatch.setattr(fetching, "find_spec", lambda name: None)
    code, printed, said = call("data", "fetch", "elpv")
    assert (code, printed) == (2, "") and "pip install elpv-dataset" in said and said.count("\n") == 1


def test_fetch_without_a_network_is_one_line(call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zsad.datasets.fetch as fetching

    monkeypatch.setattr(fetching, "installed_folder", lambda entry: None)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    code, printed, said = call("data", "fetch", "elpv", "--out", tmp_path / "out")
    assert (code, printed) == (2, "") and "pip install elpv-dataset" in said and said.count("\n") == 1
    assert list((tmp_path / "out").iterdir()) == []
