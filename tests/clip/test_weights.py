"""Loading weights: every layout, folders and shards, what is inferred, and one clear line for what is broken."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.clip.layouts import to_huggingface, to_open_clip, to_openai

from zsad.clip import convert, hub
from zsad.clip.config import PRESETS, CLIPConfig, Preset, TextConfig, VisionConfig, preset, preset_names
from zsad.clip.convert import detect_layout, infer_config, to_zsad
from zsad.clip.model import CLIP
from zsad.clip.tokenizer import Tokenizer
from zsad.clip.weights import Backbone, load_backbone
from zsad.errors import BackboneError, ConfigError, HubError


@pytest.fixture
def config() -> CLIPConfig:
    """Widths of 64 a head, so that heads can be inferred."""
    return CLIPConfig(
        embed_dim=24,
        vision=VisionConfig(image_size=32, patch_size=8, width=128, layers=4, heads=2, mlp_width=80),
        text=TextConfig(context_length=12, vocab_size=5, width=64, layers=2, heads=1, mlp_width=96),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder but for a tokenizer of five words."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers

    words = {"<|startoftext|>": 3, "<|endoftext|>": 4, "a": 1, "scratch": 2, "?": 0}
    backend = Backend(models.WordLevel(words, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def layouts(clip: CLIP) -> dict[str, dict[str, torch.Tensor]]:
    state = clip.state_dict()
    nested = {
        name if name.startswith(("visual.", "logit")) else f"text.{name}": tensor
        for name, tensor in to_open_clip(state).items()
    }
    return {
        "zsad": dict(state),
        "huggingface": to_huggingface(state),
        "open_clip": to_open_clip(state),
        "open_clip nested": nested,
        "openai": to_openai(state, clip.config),
    }


def write(path: Path, state: dict[str, torch.Tensor]) -> Path:
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, path)
    return path


def one_line(caught: pytest.ExceptionInfo[Exception]) -> str:
    message = str(caught.value)
    assert "\n" not in message and 20 < len(message) < 600
    return message


@pytest.mark.parametrize("name", ["zsad", "huggingface", "open_clip", "open_clip nested", "openai"])
def test_layouts_round_trip_bit_for_bit(clip: CLIP, name: str) -> None:
    state = layouts(clip)[name]
    assert detect_layout(state) == name.split()[0]
    back = to_zsad(state)
    assert back.keys() == clip.state_dict().keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in clip.state_dict().items())


@pytest.mark.parametrize("name", ["zsad", "huggingface", "open_clip", "open_clip nested", "openai"])
def test_files_of_every_layout_load(clip: CLIP, folder: Path, name: str) -> None:
    path = write(folder / "some-clip.safetensors", layouts(clip)[name])
    backbone = load_backbone(path)
    assert isinstance(backbone, Backbone) and backbone.name == "some-clip"
    assert backbone.preset.config == clip.config
    assert backbone.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    pixels = torch.randn(1, 3, 32, 32)
    assert torch.equal(backbone.clip.visual.encode(pixels), clip.visual.encode(pixels))
    ids = backbone.tokenizer.encode_batch(["a scratch"], context_length=12)
    assert torch.equal(backbone.clip.text.encode(ids, eos=4), clip.text.encode(ids, eos=4))
    assert not backbone.clip.training
    assert not any(parameter.requires_grad for parameter in backbone.clip.parameters())


def test_buffers_of_old_releases_are_ignored(clip: CLIP, folder: Path) -> None:
    extra = {"vision_model.embeddings.position_ids": torch.arange(17)[None]}
    load_backbone(write(folder / "h.safetensors", {**to_huggingface(clip.state_dict()), **extra}))
    extra = {"attn_mask": torch.zeros(12, 12)}
    load_backbone(write(folder / "o.safetensors", {**to_open_clip(clip.state_dict()), **extra}))


def test_half_weights_become_the_dtype_asked_for(clip: CLIP, folder: Path) -> None:
    state = {name: tensor.half() for name, tensor in to_open_clip(clip.state_dict()).items()}
    path = write(folder / "half.safetensors", state)
    single, half = load_backbone(path), load_backbone(path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in single.clip.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in half.clip.parameters()} == {torch.bfloat16}
    assert torch.equal(single.clip.visual.proj, clip.visual.proj.half().float())


def test_loaded_models_do_not_share_memory(clip: CLIP, folder: Path) -> None:
    path = write(folder / "x.safetensors", layouts(clip)["zsad"])
    first, second = load_backbone(path), load_backbone(path)
    before = path.read_bytes()
    with torch.no_grad():
        first.clip.visual.proj.zero_()
    assert torch.equal(second.clip.visual.proj, clip.visual.proj)
    assert path.read_bytes() == before


def test_folder_and_shards(clip: CLIP, folder: Path) -> None:
    state = to_huggingface(clip.state_dict())
    names = sorted(state)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, keys in parts.items():
        write(folder / file, {key: state[key] for key in keys})
    index = {"weight_map": {key: file for file, keys in parts.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    sharded = load_backbone(folder)
    assert torch.equal(sharded.clip.text.proj, clip.text.proj) and len(sharded.sha256) == 64
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(BackboneError, match=r"missing.*model-2"):
        load_backbone(folder)
    write(folder / "model.safetensors", state)
    single = load_backbone(folder)
    assert single.name == folder.name and single.sha256 != sharded.sha256


def test_an_index_cannot_reach_out_of_its_folder(clip: CLIP, folder: Path) -> None:
    inside = folder / "inside"
    inside.mkdir()
    write(folder / "outside.safetensors", layouts(clip)["zsad"])
    index = {"weight_map": {"a": "../outside.safetensors"}}
    (inside / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BackboneError, match="missing"):
        load_backbone(inside)


def test_both_towers_are_preferred_over_the_image_tower_alone(clip: CLIP, folder: Path) -> None:
    write(folder / "open_clip_model.safetensors", layouts(clip)["open_clip"])
    write(folder / "model.safetensors", {"blocks.0.attn.qkv.weight": torch.zeros(3)})
    assert torch.equal(load_backbone(folder).clip.visual.proj, clip.visual.proj)


def test_hugging_face_config_gives_heads_activation_and_colours(clip: CLIP, folder: Path) -> None:
    write(folder / "model.safetensors", layouts(clip)["huggingface"])
    config = {
        "model_type": "clip",
        "vision_config": {"num_attention_heads": 4, "hidden_act": "gelu"},
        "text_config": {"num_attention_heads": 2, "eos_token_id": 2},
    }
    (folder / "config.json").write_text(json.dumps(config))
    colours = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1]}
    (folder / "preprocessor_config.json").write_text(json.dumps(colours))
    found = load_backbone(folder).preset
    assert (found.config.vision.heads, found.config.text.heads) == (4, 2)
    # What a tower leaves out is transformers' default.
    assert (found.config.vision.activation, found.config.text.activation) == ("gelu", "quick_gelu")
    assert found.mean == (0.5, 0.4, 0.3) and found.std == (0.2, 0.2, 0.1)
    assert load_backbone(folder, activation="quick_gelu").preset.config.vision.activation == "quick_gelu"


@pytest.mark.parametrize(("flag", "expected"), [(True, "quick_gelu"), (None, "gelu")])
def test_open_clip_config_gives_heads_and_activation(
    clip: CLIP, folder: Path, flag: bool | None, expected: str
) -> None:
    write(folder / "open_clip_model.safetensors", layouts(clip)["open_clip"])
    model = {"vision_cfg": {"width": 128, "head_width": 32}, "text_cfg": {"heads": 2}}
    content = {"model_cfg": model | ({} if flag is None else {"quick_gelu": flag}), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    found = load_backbone(folder).preset.config
    assert (found.vision.heads, found.text.heads, found.vision.activation) == (4, 2, expected)


def test_our_own_folder_is_read_by_its_config(clip: CLIP, folder: Path) -> None:
    mine = Preset(name="mine", config=clip.config, detection_size=40, taps=(2, 4), value_value=False)
    (folder / "config.json").write_text(mine.model_dump_json(by_alias=True))
    write(folder / "model.safetensors", layouts(clip)["zsad"])
    backbone = load_backbone(folder)
    assert backbone.preset == mine and backbone.name == "mine"
    (folder / "config.json").write_text(json.dumps({"clip": {"embed_dim": 3}, "name": "mine"}))
    with pytest.raises(BackboneError, match=r"config\.json is no backbone config"):
        load_backbone(folder.parent / folder.name)


def test_bundled_backbone(clip: CLIP, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zsad.clip import config, weights

    for module in (config, weights):
        monkeypatch.setattr(module, "ASSETS", folder.parent)
    monkeypatch.setattr(config, "TINY", folder.name)
    monkeypatch.setattr(weights, "TINY", folder.name)
    with pytest.raises(BackboneError, match="reinstall zsad"):
        load_backbone(folder.name)
    tiny = Preset(name=folder.name, config=clip.config, detection_size=40, taps=(2, 4), value_value=False)
    (folder / "config.json").write_text(tiny.model_dump_json(by_alias=True))
    write(folder / "model.safetensors", {name: tensor.half() for name, tensor in clip.state_dict().items()})
    assert preset(folder.name) == tiny and folder.name in preset_names()
    backbone = load_backbone(folder.name)
    assert backbone.preset == tiny and backbone.tokenizer.eos == 4
    assert torch.equal(backbone.clip.text.proj, clip.text.proj.half().float())
    assert load_backbone(folder.name, random_seed=1).tokenizer.eos == 4


def test_defaults_of_an_unknown_shape(clip: CLIP, folder: Path) -> None:
    found = load_backbone(write(folder / "x.safetensors", layouts(clip)["openai"])).preset
    assert found.taps == (1, 2, 3, 4) and found.value_value_from == 1
    assert found.detection_size == 520 and found.image_size == 32


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_are_inferred_from_their_shapes(name: str) -> None:
    with torch.device("meta"):
        state = CLIP(PRESETS[name].config).state_dict()
    for layout in (to_huggingface(state), to_open_clip(state)):
        assert infer_config(to_zsad(layout)) == PRESETS[name].config


def test_preset_facts() -> None:
    large = preset("ViT-L/14@336")
    assert large.taps == (6, 12, 18, 24) and large.detection_size == 518 and large.image_size == 336
    assert large.config.vision.layers - large.value_value_from + 1 == 19
    assert large.config.vision.native_grid == 24 and large.detection_size // 14 == 37
    base = preset("ViT-B/16")
    assert base.taps == (3, 6, 9, 12) and base.detection_size == 512
    assert preset("ViT-B/32").detection_size % 32 == 0
    assert "openai/clip-vit-large-patch14-336" in large.hub_ids
    assert all(min(known.taps) >= known.value_value_from for known in PRESETS.values())
    with pytest.raises(ValueError, match="frozen"):
        large.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("ViT-B/23", "'ViT-B/32'"), ("vit-l-14", "'ViT-L/14'"), ("vit_l/14@336px", "'ViT-L/14@336'")],
)
def test_unknown_names_get_the_nearest(wrong: str, near: str) -> None:
    for load in (preset, load_backbone):
        with pytest.raises(ConfigError) as caught:
            load(wrong)
        assert near in one_line(caught)
    with pytest.raises(ConfigError) as caught:
        preset("qqq")
    assert all(name in one_line(caught) for name in preset_names())


def test_random_weights_are_seeded_and_leave_the_global_generator_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = CLIPConfig(
        embed_dim=16,
        vision=VisionConfig(image_size=32, patch_size=16, width=64, layers=4, heads=1, mlp_width=64),
        text=TextConfig(context_length=77, vocab_size=49408, width=8, layers=2, heads=1, mlp_width=16),
    )
    known = PRESETS["ViT-B/16"].model_copy(update={"config": small})
    monkeypatch.setitem(PRESETS, "ViT-B/16", known)
    state = torch.get_rng_state()
    first, same, other = (load_backbone("ViT-B/16", random_seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.sha256 == "random:0" and first.tokenizer.eos == 49407
    pixels = torch.randn(1, 3, 32, 32)
    outputs = [backbone.clip.visual.encode(pixels) for backbone in (first, same, other)]
    assert torch.equal(outputs[0], outputs[1]) and not torch.allclose(outputs[0], outputs[2])
    assert 0.01 < outputs[0].std() < 100
    with pytest.raises(ConfigError, match="random weights need a preset's name"):
        load_backbone(Path("x.safetensors"), random_seed=0)


def test_weights_of_another_shape_than_named(clip: CLIP, folder: Path) -> None:
    path = write(folder / "x.safetensors", layouts(clip)["huggingface"])
    with pytest.raises(BackboneError) as caught:
        load_backbone("ViT-B/32", weights=path)
    message = one_line(caught)
    assert "do not fit ViT-B/32" in message and "missing" in message and "of another shape" in message


def test_missing_and_unknown_tensors_are_named(clip: CLIP, folder: Path) -> None:
    state = layouts(clip)["huggingface"]
    lacking = {
        name: tensor for name, tensor in state.items() if "text_model.encoder.layers.1.mlp.fc2" not in name
    }
    with pytest.raises(BackboneError, match=r"2 tensors missing .*text\.blocks\.1\.proj\.weight"):
        load_backbone(write(folder / "a.safetensors", lacking))
    with pytest.raises(BackboneError, match=r"1 tensors unknown \(surprise\)"):
        load_backbone(write(folder / "b.safetensors", {**state, "surprise": torch.zeros(2)}))
    del state["text_model.embeddings.token_embedding.weight"]
    with pytest.raises(BackboneError, match=r"nothing for 'text\.token_embedding\.weight'"):
        load_backbone(write(folder / "c.safetensors", state))


def test_unknown_layouts_and_odd_grids_are_refused(clip: CLIP, folder: Path) -> None:
    with pytest.raises(BackboneError, match="no known layout"):
        load_backbone(
            write(folder / "a.safetensors", {"conv1.weight": torch.zeros(3), "fc.bias": torch.zeros(2)})
        )
    state = layouts(clip)["open_clip"]
    state["visual.positional_embedding"] = torch.zeros(13, 128)
    with pytest.raises(BackboneError, match="no square grid"):
        load_backbone(write(folder / "b.safetensors", state))


def broken(kind: str, good: bytes) -> bytes:
    return {
        "empty": b"",
        "truncated": good[: len(good) // 2],
        "header cut": good[:20],
        "garbage": b"\x89PNG" * 300,
        "huge header": (2**62).to_bytes(8, "little") + good[8:],
        "html": b"<!DOCTYPE html><html>404</html>",
        "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
    }[kind]


@pytest.mark.parametrize(
    "kind", ["empty", "truncated", "header cut", "garbage", "huge header", "html", "lfs"]
)
def test_broken_files_give_one_line(clip: CLIP, folder: Path, kind: str) -> None:
    path = write(folder / "x.safetensors", layouts(clip)["zsad"])
    path.write_bytes(broken(kind, path.read_bytes()))
    with pytest.raises(BackboneError) as caught:
        load_backbone(path)
    message = one_line(caught)
    assert str(path) in message and "fetch it again" in message
    assert ("git-lfs pointer" in message) == (kind == "lfs")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
def test_pickles_are_refused_unopened(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(b"not even a pickle")
    for source in (path, str(path), tmp_path):
        with pytest.raises(BackboneError) as caught:
            load_backbone(source)
        message = one_line(caught)
        assert "can run code" in message and "save_file" in message and str(path) in message
        assert ("torch.jit.load" in message) == (suffix == ".pt")


def test_advice_for_pickles_works(clip: CLIP, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import re

    torch.save(layouts(clip)["open_clip"], folder / "weights.bin")
    with pytest.raises(BackboneError) as caught:
        load_backbone(folder / "weights.bin")
    match = re.search(r'python -c "(.*)"', str(caught.value))
    assert match is not None
    monkeypatch.chdir(folder)
    exec(match[1], {})
    assert torch.equal(load_backbone(folder).clip.visual.proj, clip.visual.proj)


def test_missing_sources(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="no weights at"):
        load_backbone(tmp_path / "none.safetensors")
    with pytest.raises(BackboneError, match="no weights at"):
        load_backbone("ViT-B/32", weights=tmp_path / "none")
    with pytest.raises(BackboneError, match="holds none of"):
        load_backbone(tmp_path)
    (tmp_path / "x.npz").write_bytes(b"1")
    with pytest.raises(BackboneError, match=r"not a \.safetensors file"):
        load_backbone(tmp_path / "x.npz")
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(BackboneError, match="no index"):
        load_backbone(tmp_path)


def test_impossible_device(clip: CLIP, folder: Path) -> None:
    path = write(folder / "x.safetensors", layouts(clip)["zsad"])
    with pytest.raises(ConfigError, match="nonsense"):
        load_backbone(path, device="nonsense")


def test_vocabularies_must_fit(clip: CLIP, folder: Path) -> None:
    path = write(folder / "x.safetensors", layouts(clip)["zsad"])
    Tokenizer().save(folder / "tokenizer.json")
    with pytest.raises(BackboneError, match="do not belong together"):
        load_backbone(path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BackboneError, match="has 5 tokens, CLIP's vocabulary 49408"):
        load_backbone(path)


class TestHub:
    """The hub is stood in for: what is tested is what we make of its answers."""

    @pytest.fixture
    def package(self, monkeypatch: pytest.MonkeyPatch):
        return pytest.importorskip("huggingface_hub")

    def test_without_the_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import sys

        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        with pytest.raises(HubError) as caught:
            load_backbone("ViT-L/14")
        assert "zsad[hub]" in one_line(caught) and "--weights PATH" in one_line(caught)

    def test_unreachable(self, package, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        def refuse(self, *args, **kwargs):
            raise OSError("network is down\nreally")

        monkeypatch.setattr(package.HfApi, "model_info", refuse)
        monkeypatch.setattr(package, "try_to_load_from_cache", lambda *args: None)
        for name in ("ViT-L/14@336", "openai/clip-vit-base-patch16"):
            with pytest.raises(HubError) as caught:
                load_backbone(name)
            assert "cannot fetch" in one_line(caught) and "--weights PATH" in one_line(caught)

    def test_offline_uses_the_cache(self, package, monkeypatch, clip: CLIP, folder: Path) -> None:
        def refuse(self, *args, **kwargs):
            raise package.errors.OfflineModeIsEnabled("offline")

        write(folder / "model.safetensors", layouts(clip)["huggingface"])
        monkeypatch.setattr(package.HfApi, "model_info", refuse)
        monkeypatch.setattr(
            package,
            "try_to_load_from_cache",
            lambda repository, name: str(folder / name) if (folder / name).is_file() else None,
        )
        assert torch.equal(load_backbone("someone/some-clip").clip.visual.proj, clip.visual.proj)

    def test_download_and_its_failures(self, package, monkeypatch, clip: CLIP, folder: Path) -> None:
        from types import SimpleNamespace

        present = ["README.md", "model.safetensors", "tokenizer.json"]
        fetched: list[str] = []
        tokens: set[bool | None] = set()

        def info(self, repository, **kwargs):
            return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in present])

        def download(repository, name, *, token):
            fetched.append(name)
            tokens.add(token)
            return str(folder / name)

        monkeypatch.setattr(package.HfApi, "model_info", info)
        monkeypatch.setattr(package, "hf_hub_download", download)
        write(folder / "model.safetensors", layouts(clip)["huggingface"])
        assert torch.equal(load_backbone("someone/some-clip").clip.visual.proj, clip.visual.proj)
        assert fetched == ["model.safetensors", "tokenizer.json"] and tokens == {None}
        tokens.clear()
        with pytest.raises(BackboneError):  # a preset's repository is public: it gets no token
            load_backbone("ViT-B/16")
        assert tokens == {False}
        present.remove("model.safetensors")
        with pytest.raises(HubError, match="holds no safetensors weights"):
            hub.fetch("someone/some-clip")
        present.append("open_clip_model.safetensors")

        def break_off(repository, name, *, token):
            raise ConnectionResetError("reset")

        monkeypatch.setattr(package, "hf_hub_download", break_off)
        with pytest.raises(HubError, match="broke off"):
            hub.fetch("someone/some-clip")

    def test_no_such_repository(self, package) -> None:
        with pytest.raises(HubError, match="no public repository"):
            hub.fetch("../../etc")


def test_building_on_the_meta_device_imports_nothing() -> None:
    """Drawing random numbers for meta tensors pulls in PyTorch's symbolic stack: seconds before the first image."""
    import subprocess
    import sys

    code = (
        "import sys; from zsad.clip.config import preset; from zsad.clip.weights import empty_clip\n"
        "before = set(sys.modules)\n"
        "clip = empty_clip(preset('ViT-B/32').config)\n"
        "assert all(parameter.is_meta for parameter in clip.parameters())\n"
        "print(len(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20


def test_count_blocks_of_two_digits() -> None:
    state = {f"b.{index}.w": torch.zeros(1) for index in (0, 2, 10)}
    assert convert.count_blocks(state, "b.") == 11
    assert convert.count_blocks({}, "b.") == 0


@pytest.mark.parametrize("key", ["vocab_size", "heads", "layers"])
def test_a_negative_shape_is_no_config(key: str) -> None:
    text = {"context_length": 77, "vocab_size": 100, "width": 16, "layers": 2, "heads": 2, "mlp_width": 32}
    with pytest.raises(ValueError, match="greater than 0"):
        TextConfig(**{**text, key: -text[key]})
