"""Checkpoints: what is written comes back, and every broken file is refused in one line."""

from __future__ import annotations

import errno
import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from zsad import files
from zsad.card import BackboneReference, Card, Training
from zsad.errors import CheckpointError, ConfigError, StorageError
from zsad.methods.base import MapSpec
from zsad.train import checkpoint
from zsad.train.checkpoint import (
    build_method,
    bundled_models,
    load_checkpoint,
    read_card,
    resolve_model,
    save_checkpoint,
)

SHA = "ab" * 32


def make_card(**changes) -> Card:
    values = {
        "method": "fake",
        "config": {"hidden": 6},
        "backbone": BackboneReference(name="fake-clip", sha256=SHA),
        "preprocess": {"image_size": [32, 32]},
        "map_spec": MapSpec(size=(32, 32), scale=(0.2, 0.7)),
        "training": Training(datasets=("noise",), samples=9, settings={"epochs": 3}),
    }
    return Card(**{**values, **changes})


@pytest.fixture
def saved(fake, tmp_path) -> Path:
    return save_checkpoint(tmp_path / "run", fake.FakeMethod(seed=1), make_card())


def rewritten(path: Path, change) -> Path:
    """The file with another card."""
    card = json.loads(make_card().model_dump_json())
    save_file(load_file(path), path, metadata={"card": json.dumps(change(card))})
    return path


def one_line(error: BaseException) -> None:
    text = str(error)
    assert "\n" not in text and ("; " in text or ": " in text), text


def test_round_trip(fake, saved):
    other = fake.FakeMethod(seed=2)
    card = load_checkpoint(saved, other, backbone_sha256=SHA)
    assert card == make_card(created=card.created)
    assert other.map_scale == (0.2, 0.7)
    for name, tensor in fake.FakeMethod(seed=1).adapter_state().items():
        assert torch.equal(other.adapter_state()[name], tensor)
    assert json.loads((saved.parent / "card.json").read_text()) == json.loads(card.model_dump_json())
    assert not any(name.startswith("clip.") for name in load_file(saved))


def test_half_is_half_the_size_and_close(fake, saved, tmp_path):
    method = fake.FakeMethod(seed=1)
    with torch.no_grad():
        method.outer.bias.fill_(1e6)  # beyond fp16
    half = save_checkpoint(tmp_path / "half", method, make_card(), half=True)
    stored = load_file(half)
    assert stored["inner.weight"].dtype == torch.float16 and stored["outer.bias"].dtype == torch.float32
    other = fake.FakeMethod(seed=2)
    load_checkpoint(half, other)
    assert other.inner.weight.dtype == torch.float32
    assert torch.equal(other.inner.weight, method.inner.weight.half().float())
    assert torch.equal(other.outer.bias, method.outer.bias)


def test_card_is_frozen_and_strict():
    card = make_card()
    with pytest.raises(ValidationError):
        card.method = "other"
    with pytest.raises(ValidationError):
        make_card(unknown=1)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _truncate_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def _torch_pickle(path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, path)


BROKEN = {
    "missing": (Path.unlink, "does not exist"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "truncated": (_truncate, "truncated"),
    "truncated header": (_truncate_header, "truncated"),
    "text": (lambda path: path.write_text("hello " * 50), "no safetensors file"),
    "torch pickle": (_torch_pickle, "pickled PyTorch file"),
    "plain pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "pickled PyTorch file"),
    "lfs pointer": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
        "git lfs pull",
    ),
    "no card": (lambda path: save_file({"a": torch.zeros(2)}, path), "without a zsad card"),
    "card no json": (lambda path: save_file({}, path, metadata={"card": "{"}), "is not JSON"),
    "card a list": (lambda path: rewritten(path, lambda card: [card]), "cannot be used"),
    "card without backbone": (
        lambda path: rewritten(path, lambda card: {k: v for k, v in card.items() if k != "backbone"}),
        "backbone",
    ),
    "endless backbone name": (
        lambda path: rewritten(path, lambda card: {**card, "backbone": {"name": "a" * 5000, "sha256": "0"}}),
        "backbone",
    ),
    "newer format": (lambda path: rewritten(path, lambda card: {**card, "format": 99, "new": 1}), "upgrade"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_are_refused_in_one_line(saved, kind):
    spoil, expected = BROKEN[kind]
    spoil(saved)
    with pytest.raises(CheckpointError, match=expected) as caught:
        read_card(saved)
    one_line(caught.value)


def test_another_method_or_backbone_is_refused(fake, saved):
    with pytest.raises(CheckpointError, match=f"{SHA}.*{'cd' * 32}") as caught:
        load_checkpoint(saved, fake.FakeMethod(), backbone_sha256="cd" * 32)
    one_line(caught.value)
    rewritten(saved, lambda card: {**card, "method": "other"})
    with pytest.raises(CheckpointError, match="method 'other', not of 'fake'"):
        load_checkpoint(saved, fake.FakeMethod())
    with pytest.raises(CheckpointError, match="card is of method 'x'"):
        save_checkpoint(saved, fake.FakeMethod(), make_card(method="x"))


def test_tensors_that_do_not_fit_or_are_not_finite_are_refused(fake, saved):
    with pytest.raises(CheckpointError, match="shape"):
        load_checkpoint(saved, fake.FakeMethod(fake.FakeConfig(hidden=7)))
    tensors = load_file(saved)
    tensors["inner.bias"][0] = float("nan")
    save_file(tensors, saved, metadata={"card": make_card().model_dump_json()})
    method = fake.FakeMethod(seed=3)
    with pytest.raises(CheckpointError, match=r"'inner.bias' .* NaN"):
        load_checkpoint(saved, method)
    assert torch.equal(method.inner.weight, fake.FakeMethod(seed=3).inner.weight)


def test_resolve_paths(saved, tmp_path, monkeypatch):
    for spec in (saved, str(saved), saved.parent, saved.parent / "card.json"):
        assert resolve_model(spec) == saved
    with pytest.raises(CheckpointError, match=r"holds no model.safetensors; it holds run"):
        resolve_model(tmp_path)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "state.safetensors").touch()
    with pytest.raises(CheckpointError, match="has not finished"):
        resolve_model(tmp_path / "half")


def test_resolve_bundled_names(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_ASSETS", tmp_path)
    shipped = save_checkpoint(tmp_path / "promptmoe-tiny", fake.FakeMethod(), make_card(), half=True)
    (tmp_path / "zsad-tiny").mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "zsad-tiny" / "model.safetensors")
    assert bundled_models() == ["promptmoe-tiny"]
    assert resolve_model("promptmoe-tiny") == shipped
    with pytest.raises(CheckpointError, match="did you mean promptmoe-tiny") as caught:
        resolve_model("promtmoe-tiny")
    one_line(caught.value)
    with pytest.raises(CheckpointError, match=r"bundled: promptmoe-tiny\)"):
        resolve_model("zsad-tiny")


def test_a_bundled_model_is_found_without_opening_any_and_loaded_with_one_card(monkeypatch):
    opened = []
    read = checkpoint.read_safetensors

    def read_safetensors(path, **options):
        opened.append(path)
        return read(path, **options)

    monkeypatch.setattr(checkpoint, "read_safetensors", read_safetensors)
    file = resolve_model("promptmoe-tiny")
    assert len(bundled_models()) == 9 and not opened
    build_method("promptmoe-tiny")
    assert set(opened) == {file} and len(opened) == 2  # the card, then the tensors


def test_build_method_takes_the_backbone_of_the_card(fake, saved, monkeypatch):
    from zsad.clip import weights
    from zsad.methods import registry

    built = fake.FakeMethod(seed=4)
    backbone = weights.Backbone(clip=built.clip, tokenizer=None, preset=None, sha256=SHA, name="fake-clip")
    asked = []

    def load_backbone(name, **_):
        asked.append(name)
        return backbone

    monkeypatch.setattr(weights, "load_backbone", load_backbone)
    monkeypatch.setattr(registry, "build", lambda name, config, given: built)
    monkeypatch.setattr("zsad.clip.config.preset_names", lambda: ["fake-clip"])
    method, card = build_method(saved.parent)
    assert asked == ["fake-clip"] and method is built and not method.training and card.method == "fake"
    assert torch.equal(method.inner.weight, fake.FakeMethod(seed=1).inner.weight)
    build_method(saved, backbone="elsewhere")
    assert asked == ["fake-clip", "elsewhere"]
    backbone.sha256 = "cd" * 32
    with pytest.raises(CheckpointError, match=f"{SHA}.*{'cd' * 32}"):
        build_method(saved, backbone=backbone)


def test_atomic_write_keeps_the_old_file_when_the_disk_is_full(tmp_path):
    path = tmp_path / "file.txt"
    files.write_text(path, "old")

    def full(stream):
        stream.write(b"new")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageError, match=r"file.txt: the disk is full; free some space"):
        files.atomic_write(path, full)
    assert path.read_text() == "old" and [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]

    def broken(stream):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        files.atomic_write(path, broken)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]


def test_atomic_write_says_what_is_in_the_way(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write"):
        files.write_text(tmp_path / "file" / "below.txt", "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="folder"):
        files.write_text(tmp_path / "folder", "x")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_folder_that_may_not_be_written(tmp_path, monkeypatch, code):
    def refuse(*_, **__):
        raise OSError(code, "no")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(StorageError, match=r"permission denied|read-only"):
        files.write_text(tmp_path / "x", "x")


def test_leftovers_are_removed(tmp_path):
    (tmp_path / ".zsad-model.safetensors-1-ab.tmp").touch()
    (tmp_path / "mine.tmp").touch()
    files.remove_leftovers(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.tmp"]


def test_shared_tensors_are_stored_apart(fake, tmp_path):
    method = fake.FakeMethod()
    whole = torch.arange(4.0)
    fragment = SimpleNamespace(name="fake", adapter_state=lambda: {"a": whole[:2], "b": whole})
    stored = load_file(save_checkpoint(tmp_path, fragment, make_card()))
    assert stored["a"].tolist() == [0, 1] and stored["b"].tolist() == [0, 1, 2, 3]
    assert method.name == "fake"


def test_a_folder_of_results_does_not_hide_a_bundled_model(tmp_path, monkeypatch):
    from zsad.loading import load
    from zsad.train.checkpoint import bundled_models, resolve_model

    monkeypatch.chdir(tmp_path)
    for name in ("promptmoe-tiny", "clip-tiny"):
        (tmp_path / name / "overlays").mkdir(parents=True)
    assert "promptmoe-tiny" in bundled_models()
    assert resolve_model("promptmoe-tiny").is_absolute()
    assert load("clip-tiny", device="cpu").card.method == "clip"
    (tmp_path / "promptmoe-tiny" / "model.safetensors").write_bytes(b"a run of this name")
    assert not resolve_model("promptmoe-tiny").is_absolute()


def test_a_card_decides_no_network_access(saved, monkeypatch):
    def ask(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("zsad.clip.hub.fetch", ask)
    rewritten(saved, lambda card: {**card, "backbone": {"name": "stranger/tower", "sha256": "0" * 64}})
    with pytest.raises(CheckpointError, match=r"'stranger/tower', which is no preset .* --backbone"):
        build_method(saved)


@pytest.mark.parametrize(
    "sizes", [{"experts": 10**9}, {"layers": list(range(1, 1000))}, {"class_word": "a" * 10**5}]
)
def test_sizes_in_a_card_have_bounds(sizes):
    from zsad.methods.promptmoe import PromptMoEConfig

    with pytest.raises(ConfigError, match="no valid setting"):
        PromptMoEConfig(**sizes)
