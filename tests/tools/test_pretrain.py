"""The recipe of the bundled backbone, on a corpus of a few small files and without its teacher's weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

RECIPE = Path(__file__).parents[2] / "tools" / "pretrain"


@pytest.fixture(scope="module", autouse=True)
def _importable():
    sys.path.insert(0, str(RECIPE))
    yield
    sys.path.remove(str(RECIPE))


@pytest.fixture
def corpus(tmp_path):
    from corpus import Corpus

    rng = np.random.default_rng(0)
    natural, textiles = tmp_path / "natural", tmp_path / "textiles"
    files = [natural / "n01_tench.jpg", natural / "n02_goldfish.jpg", natural / "n02" / "n02_0.JPEG"]
    files += [textiles / kind / "0.jpg" for kind in ("nominal", "local", "global")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (96, 120, 3), dtype=np.uint8)).save(file)
    return Corpus(natural, textiles, {"n02": "goldfish, Carassius"}, seed=3)


def test_items_depend_on_their_index_alone(corpus):
    first, again = corpus.item(5), corpus.item(5)
    assert np.array_equal(first.image, again.image) and first.caption == again.caption
    assert not np.array_equal(first.image, corpus.item(6).image)
    assert corpus.class_names == ["tench", "goldfish"]


def test_masks_agree_with_labels(corpus):
    for index in range(40):
        item = corpus.item(index)
        assert item.image.shape == (256, 256, 3)
        assert item.mask.any() == bool(item.label and item.dense), (index, item.kind)
        assert (item.kind == "good") == (item.label == 0)


def test_token_shares_are_block_means():
    from corpus import token_shares

    mask = np.zeros((32, 32), dtype=bool)
    mask[:8, :16] = True
    mask[31, 31] = True
    assert token_shares(mask, 16).tolist() == [[128, 0], [0, 1]]


def test_views_show_the_same_part_of_every_map():
    from pretrain import View

    coarse = torch.arange(64).reshape(1, 8, 8)
    fine = coarse.repeat_interleave(2, 1).repeat_interleave(2, 2)
    for seed in range(20):
        view = View.draw(np.random.default_rng(seed))
        assert torch.equal(view(fine), view(coarse).repeat_interleave(2, 1).repeat_interleave(2, 2))


def test_equal_captions_share_the_contrastive_target():
    from pretrain import _contrast

    logits = torch.tensor([[5.0, 9.0, 0.0], [9.0, 5.0, 0.0], [0.0, 0.0, 9.0]])
    assert _contrast(logits, ["a", "a", "b"]) < _contrast(logits, ["a", "c", "b"])


def test_a_step_reaches_every_trained_parameter(corpus, tmp_path):
    import vocabulary

    import pretrain

    items = [corpus.item(index) for index in range(4)]
    folder = tmp_path / "features" / "shard0000"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    np.save(folder / "maps.npy", rng.normal(size=(4, 16, 16, 400)).astype(np.float16))
    np.save(folder / "logits.npy", rng.normal(size=(4, 80)).astype(np.float16))
    np.save(folder / "last.npy", rng.normal(size=(4, 8, 8, 352)).astype(np.float16))
    np.save(folder / "shares.npy", rng.integers(0, 2, size=(4, 16, 16)).astype(np.uint8) * 200)
    fields = ("label", "kind", "name", "caption", "opposite", "dense")
    records = [{field: getattr(item, field) for field in fields} for item in items]
    (folder / "records.json").write_text(json.dumps(records))
    shards = pretrain.Shards(tmp_path / "features")
    names = [f"thing {number}" for number in range(80)]
    tokenizer = vocabulary.train([*names, *(item.caption for item in items)], tmp_path / "tokenizer.json")
    clip = pretrain.CLIP(pretrain.config(tokenizer.vocab_size))
    heads = pretrain.Heads()
    trainer = pretrain.Pretrainer(clip, heads, tokenizer, names, "cpu")
    batch = pretrain.read_batch(shards, np.arange(4), pretrain.View(side=6), "cpu")
    assert batch.maps.shape == (4, 12, 12, 400) and batch.last.shape == (4, 6, 6, 352)
    losses = trainer.losses(batch, np.random.default_rng(0))
    with pretrain.mixed("cpu", "bf16"):
        mixed = trainer.losses(batch, np.random.default_rng(0))
    # A temperature of 1/14 stretches what bf16 rounds.
    assert all(abs(mixed[name] - losses[name]) < 0.1 * abs(losses[name]) + 0.05 for name in losses)
    assert set(losses) == {"soft", "caption", "state", "dense", "image", "distil"}
    torch.stack(list(losses.values())).sum().backward()
    stages = ("visual.patch_embedding.first", "visual.patch_embedding.stages")
    untouched = [n for n, p in clip.named_parameters() if p.grad is None and not n.startswith(stages)]
    assert not untouched
    assert all(parameter.grad is not None for parameter in heads.parameters())
