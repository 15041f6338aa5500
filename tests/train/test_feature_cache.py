"""The feature cache: exact, content-addressed, safe to kill, bounded."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import pytest
import torch

from zsad.errors import DataError, StorageError
from zsad.files import content_hash
from zsad.methods.base import ImageFeatures
from zsad.train.feature_cache import FeatureCache
from zsad.train.train_config import TrainConfig

KEY = {"backbone": "x", "settings": {"layers": [1, 2]}}


def features(count: int, *, seed: int = 0, width: int = 4) -> ImageFeatures:
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(count, 2, 6, width, generator=generator)
    return ImageFeatures(patches, torch.randn(count, width, generator=generator), (2, 3))


def same(read: ImageFeatures, wanted: ImageFeatures, rows: list[int]) -> None:
    assert read.grid == wanted.grid
    assert torch.equal(read.patches, wanted.patches[rows].half().float())
    assert torch.equal(read.cls, wanted.cls[rows].half().float())


def test_reads_what_was_written_in_any_order(tmp_path):
    wanted = features(5)
    cache = FeatureCache(tmp_path, key_parts=KEY)
    cache.add(list("abc"), ImageFeatures(wanted.patches[:3], wanted.cls[:3], wanted.grid))
    same(cache.read(["b"]), wanted, [1])
    cache.add(list("de"), ImageFeatures(wanted.patches[3:], wanted.cls[3:], wanted.grid))
    same(cache.read(list("dabe")), wanted, [3, 0, 1, 4])
    cache.close()
    again = FeatureCache(tmp_path, key_parts=KEY)
    same(again.read(list("edcba")), wanted, [4, 3, 2, 1, 0])
    assert len(again) == 5 and again.record_bytes == 2 * 4 * 13


def test_other_settings_do_not_see_each_other(tmp_path):
    cache = FeatureCache(tmp_path, key_parts=KEY)
    cache.add(["a"], features(1))
    other = FeatureCache(tmp_path, key_parts={**KEY, "backbone": "y"})
    assert "a" in cache and "a" not in other
    other.add(["a"], features(1, width=8))
    assert other.read(["a"]).cls.shape == (1, 8)


def test_bytes_behind_the_last_commit_are_ignored(tmp_path):
    """What a process killed while appending leaves: part of a record, not yet listed."""
    wanted = features(3)
    cache = FeatureCache(tmp_path, key_parts=KEY)
    cache.add(list("abc"), wanted)
    cache.close()
    shard = next(cache.folder.glob("*.bin"))
    with shard.open("ab") as stream:
        stream.write(b"\1" * (cache.record_bytes + 7))
    reopened = FeatureCache(tmp_path, key_parts=KEY)
    assert len(reopened) == 3
    reopened.add(["d"], features(1, seed=4))
    same(reopened.read(list("cd")[:1]), wanted, [2])
    same(reopened.read(["d"]), features(1, seed=4), [0])


def test_listed_records_that_are_cut_off_count_as_missing(tmp_path):
    cache = FeatureCache(tmp_path, key_parts=KEY)
    cache.add(list("abc"), features(3))
    cache.close()
    shard = next(cache.folder.glob("*.bin"))
    os.truncate(shard, 2 * cache.record_bytes + 5)
    reopened = FeatureCache(tmp_path, key_parts=KEY)
    assert "b" in reopened and "c" not in reopened


@pytest.mark.parametrize("garbage", [b"", b"{", b'{"a": 1}', b"\xff\xfe"])
def test_broken_lists_count_as_missing(tmp_path, garbage):
    cache = FeatureCache(tmp_path, key_parts=KEY)
    cache.add(["a"], features(1))
    cache.close()
    for index in cache.folder.glob("*.json"):
        index.write_bytes(garbage)
    reopened = FeatureCache(tmp_path, key_parts=KEY)
    assert "a" not in reopened
    reopened.add(["a"], features(1))
    same(reopened.read(["a"]), features(1), [0])


def test_two_writers_share_a_folder(tmp_path):
    first, second = (FeatureCache(tmp_path, key_parts=KEY) for _ in range(2))
    first.add(["a", "b"], features(2, seed=1))
    second.add(["b", "c"], features(2, seed=1))
    first.add(["d"], features(1, seed=2))
    first.refresh()
    assert all(name in first for name in "abcd")
    same(first.read(["c"]), features(2, seed=1), [1])
    same(first.read(["a", "d"][:1]), features(2, seed=1), [0])
    same(first.read(["d"]), features(1, seed=2), [0])


def test_known_images_are_not_written_twice(tmp_path):
    cache = FeatureCache(tmp_path, key_parts=KEY)
    cache.add(["a", "a"], features(2))
    cache.add(["a"], features(1, seed=9))
    assert sum(file.stat().st_size for file in cache.folder.glob("*.bin")) == cache.record_bytes
    same(cache.read(["a", "a"]), features(2), [0, 0])


def test_limit_and_disk_are_checked_up_front(tmp_path, monkeypatch):
    cache = FeatureCache(tmp_path, key_parts=KEY, max_bytes=1000)
    cache.add(["a"], features(1))
    cache.check_space(8)
    with pytest.raises(StorageError, match=r"limit is .*raise cache_limit_gb to .*turn the cache off"):
        cache.check_space(9)
    with pytest.raises(StorageError, match="raise cache_limit_gb"):
        FeatureCache(tmp_path, key_parts={"other": 1}, max_bytes=1000).check_space(1, record_bytes=900)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 2 * 10**8 + 100)
    )
    FeatureCache(tmp_path, key_parts=KEY).check_space(0)
    with pytest.raises(StorageError, match=r"the disk has 0.20 GB free: free some space"):
        FeatureCache(tmp_path, key_parts=KEY).check_space(1)


def test_features_that_fp16_cannot_hold_are_refused(tmp_path):
    cache = FeatureCache(tmp_path, key_parts=KEY)
    wild = features(2)
    wild.patches[1, 0, 0, 0] = 1e5
    with pytest.raises(DataError, match=r"1 images exceed what fp16 holds"):
        cache.add(["a", "b"], wild)
    assert "a" not in cache


def test_other_shape_is_refused(tmp_path):
    cache = FeatureCache(tmp_path, key_parts=KEY)
    cache.add(["a"], features(1))
    with pytest.raises(DataError, match="do not fit the cache"):
        cache.add(["b"], features(1, width=8))


def test_hash_is_of_the_content(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"abc")
    other.write_bytes(b"abc")
    assert content_hash(one) == content_hash(other) is not None
    assert content_hash(one).startswith("ba7816bf8f01cfea")
    other.write_bytes(b"abd")
    assert content_hash(one) != content_hash(other)
    assert content_hash(tmp_path / "gone") is None


def test_second_run_computes_nothing_and_a_stopped_one_only_the_rest(fake, tmp_path):
    data = fake.make_data(tmp_path / "data")
    config = TrainConfig(epochs=1, batch_size=2, cache_folder=tmp_path / "shared")

    def stop(event):
        if event.stage == "features" and event.done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="run the same again"):
        fake.run(tmp_path / "one", data, config, progress=stop)
    method, first = fake.run(tmp_path / "one", data, config)
    assert method.seen_pixels == 9 - 4
    method, second = fake.run(tmp_path / "two", data, config)
    assert method.seen_pixels == 0
    assert first.read_bytes()[-100:] == second.read_bytes()[-100:]
    changed = data.samples[0].image
    fake.Image.open(data.samples[1].image).rotate(90).save(changed)
    method, _ = fake.run(tmp_path / "three", data, config)
    assert method.seen_pixels == 2  # the batch with the changed image


def test_run_that_cannot_fit_stops_before_writing(fake, tmp_path):
    data = fake.make_data(tmp_path / "data")
    config = TrainConfig(epochs=1, batch_size=2, cache_limit_gb=1e-6)
    with pytest.raises(StorageError, match="raise cache_limit_gb"):
        fake.run(tmp_path / "run", data, config)
    assert not (tmp_path / "run").exists()
    fake.run(tmp_path / "run", data, TrainConfig(epochs=1, batch_size=2, cache_limit_gb=1e-6, cache=False))


def test_lists_are_plain_json(tmp_path):
    cache = FeatureCache(tmp_path, key_parts=KEY)
    cache.add(["a"], features(1))
    listed = [json.loads(file.read_text()) for file in cache.folder.glob("*.json")]
    assert sorted(listed, key=str) == [["a"], [2, 6, 4, 2, 3, 0]]


def test_cues_are_kept_beside_the_features(tmp_path):
    cues = torch.rand(2, 3, 6, generator=torch.Generator().manual_seed(3)).half().float()
    cache = FeatureCache(tmp_path, key_parts=KEY)
    given = replace(features(2), cues=cues)
    cache.add(["a", "b"], given)
    back = FeatureCache(tmp_path, key_parts=KEY).read(["b", "a"])
    torch.testing.assert_close(back.cues, cues.flip(0))
    torch.testing.assert_close(back.cls, given.cls.half().float().flip(0))
    with pytest.raises(DataError, match="do not fit the cache"):
        cache.add(["c"], features(1))


def test_caches_without_cues_of_before_are_still_read(tmp_path):
    cache = FeatureCache(tmp_path, key_parts=KEY)
    cache.add(["a"], features(1))
    layout = cache.folder / "layout.json"
    layout.write_text(json.dumps(json.loads(layout.read_text())[:5]))
    old = FeatureCache(tmp_path, key_parts=KEY)
    assert "a" in old and old.read(["a"]).cues is None
