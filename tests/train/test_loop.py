"""The loop: what it computes, that it can be stopped anywhere, what it refuses."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from zsad.errors import CheckpointError, ConfigError, DataError, LockedError, TrainingError
from zsad.methods.base import Stage
from zsad.train.checkpoint import read_card
from zsad.train.precision import amp_dtype
from zsad.train.schedule import Schedule
from zsad.train.state import StepLog
from zsad.train.train_config import TrainConfig
from zsad.types import Sample

SMALL = {"epochs": 3, "batch_size": 4, "warmup_epochs": 1, "checkpoint_every": 2, "learning_rate": 0.01}


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def without_time(records: list[dict]) -> list[dict]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def same_bits(one: Path, other: Path) -> None:
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.fixture(scope="module")
def reference(fake, tmp_path_factory):
    """An uninterrupted run and its data."""
    root = tmp_path_factory.mktemp("reference")
    data = fake.make_data(root / "data")
    method, model = fake.run(root / "run", data, TrainConfig(**SMALL))
    return data, method, model


def test_reference_matches_a_plain_loop(fake, reference):
    """The same training written out: Adam, warm-up, batches by the seed, dropout by the step."""
    from zsad.train.samples import prepare, start_generator, step_seed

    data, trained, _ = reference
    config = TrainConfig(**SMALL)
    training = prepare(data.samples, config=config, size=fake.SIZE)
    cached = []
    frozen = fake.FakeMethod()
    for start in range(0, 9, 4):
        pixels = [fake.PREPROCESS(fake.Image.open(s.image)) for s in data.samples[start : start + 4]]
        features = frozen.features(torch.from_numpy(fake.np.stack(pixels)))
        cached += [
            (features.patches[i].half().float(), features.cls[i].half().float()) for i in range(len(pixels))
        ]
    method = fake.FakeMethod(seed=8).train()
    method.reset_parameters(start_generator(111, torch.device("cpu")))
    parameters = [*method.inner.parameters(), *method.outer.parameters()]
    adam = torch.optim.Adam(parameters, betas=(0.6, 0.999))
    for step in range(9):
        rows = training.order(config, step // 3)[step % 3 * 4 :][:4]
        adam.param_groups[0]["lr"] = 0.01 * min(1, (step + 1) / 3)
        patches, cls = (torch.stack([cached[row][part] for row in rows]) for part in (0, 1))
        torch.manual_seed(step_seed(111, step, 0))
        losses = method.losses(
            fake.ImageFeatures(patches, cls, (4, 4)), training.masks(rows), training.labels(rows)
        )
        adam.zero_grad()
        sum(losses.values()).backward()
        adam.step()
    for name, tensor in method.adapter_state().items():
        torch.testing.assert_close(trained.adapter_state()[name], tensor, rtol=1e-5, atol=1e-7)


def test_every_image_once_an_epoch_and_another_order_each(fake, reference):
    from zsad.train.samples import prepare

    config = TrainConfig(**SMALL)
    training = prepare(reference[0].samples, config=config, size=fake.SIZE)
    orders = [training.order(config, epoch) for epoch in range(3)]
    assert all(sorted(order) == list(range(9)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert orders == [training.order(config, epoch) for epoch in range(3)]
    assert orders[0] != training.order(TrainConfig(**SMALL, seed=112), 0)


def test_balanced_sampling_shows_groups_equally_often(fake, tmp_path):
    from zsad.train.samples import prepare

    data = fake.make_data(tmp_path, normal=16, anomalous=4)
    config = TrainConfig(**SMALL, balance="class")
    training = prepare(data.samples, config=config, size=fake.SIZE)
    drawn = [training.items[row].group for epoch in range(100) for row in training.order(config, epoch)]
    shares = [drawn.count(group) / len(drawn) for group in set(drawn)]
    assert len(shares) == 4 and all(abs(share - 0.25) < 0.04 for share in shares)


def test_limit_per_class(fake, tmp_path):
    from zsad.train.samples import prepare

    data = fake.make_data(tmp_path, normal=8, anomalous=6)
    training = prepare(data.samples, config=TrainConfig(limit_per_class=2), size=fake.SIZE)
    groups = [item.group for item in training.items]
    assert len(groups) == 8 and all(groups.count(group) == 2 for group in groups)


def test_log_and_card(fake, reference):
    _, method, model = reference
    records = lines(model.parent)
    assert [record["step"] for record in records] == list(range(1, 10))
    assert [record["epoch"] for record in records] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert all(abs(record["pixel"] + record["image"] - record["total"]) < 1e-5 for record in records)
    assert [record["lr"] for record in records[:4]] == pytest.approx([0.01 / 3, 0.02 / 3, 0.01, 0.01])
    card = read_card(model)
    assert (card.training.normal, card.training.anomalous, card.training.steps) == (5, 4, 9)
    assert card.training.classes == ("tile", "wood") and card.training.datasets == ("noise",)
    assert card.map_spec.scale == method.map_scale
    low, high = card.map_spec.scale
    assert 0 < low < high and high - low >= 0.02 - 1e-9
    assert not (model.parent / "state.safetensors").exists()


def test_colour_scale_is_the_quantiles(fake, reference):
    from zsad.nn.filters import render_map

    data, method, _ = reference
    pixels = torch.from_numpy(
        fake.np.stack([fake.PREPROCESS(fake.Image.open(s.image)) for s in data.samples])
    )
    with torch.no_grad():
        maps = render_map(method(method.features(pixels)).logits, method.map_spec)
    masks = (
        torch.stack([torch.from_numpy(fake.np.array(fake.Image.open(s.mask))) for s in data.samples[5:]]) > 0
    )
    low, high = maps[:5].quantile(0.99).item(), maps[5:][masks].quantile(0.75).item()
    assert method.map_scale[0] == pytest.approx(low, abs=5e-4)
    assert method.map_scale[1] == pytest.approx(max(high, low + 0.02), abs=1e-3)


class Stop(Exception):
    pass


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("kind", [Stop, KeyboardInterrupt])
def test_stopped_and_resumed_equals_uninterrupted(fake, reference, tmp_path, kind, cache):
    data, _, model = reference
    config = TrainConfig(**SMALL, cache=cache)
    if not cache:
        _, model = fake.run(tmp_path / "whole", data, config)
    for stop_at in (2, 5, 7):

        def stop(event, stop_at=stop_at):
            if event.stage == "train" and event.done == stop_at:
                raise kind

        with pytest.raises(kind) as caught:
            fake.run(tmp_path / "run", data, config, progress=stop)
        if kind is KeyboardInterrupt:
            assert f"step {stop_at} of 9" in str(caught.value) and "run the same again" in str(caught.value)
    _, resumed = fake.run(tmp_path / "run", data, config)
    same_bits(model, resumed)
    assert without_time(lines(resumed.parent)) == without_time(lines(model.parent))


@pytest.mark.skipif(os.name != "posix", reason="fork and SIGKILL")
def test_killed_at_random_moments_equals_uninterrupted(fake, tmp_path):
    data = fake.make_data(tmp_path / "data", normal=20, anomalous=12)
    config = TrainConfig(**{**SMALL, "epochs": 20, "checkpoint_every": 3})
    _, whole = fake.run(tmp_path / "whole", data, config)
    out, chance, left_at = tmp_path / "run", random.Random(3), []
    for attempt in range(10):
        child = os.fork()
        if not child:
            try:
                fake.run(out, data, config)
            finally:
                os._exit(0)
        # First while features are computed, then some time after a state was saved.
        watched = [out / "features", out / "state.safetensors"][min(attempt, 1)]
        before = watched.stat().st_mtime_ns if watched.exists() else None
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not (out / "model.safetensors").exists():
            if watched.exists() and watched.stat().st_mtime_ns != before:
                break
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.06) * (1 + attempt))  # a slow machine gets on only with later attempts
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if (out / "log.jsonl").exists():
            left_at.append((out / "log.jsonl").read_bytes().count(b"\n"))
    # A busy machine may let most attempts finish.
    assert sum(0 < steps < 160 for steps in left_at) >= 1, left_at
    _, model = fake.run(out, data, config)
    same_bits(whole, model)
    assert without_time(lines(out)) == without_time(lines(whole.parent))
    assert not list(out.glob(".*.tmp")) and not (out / "state.safetensors").exists()


def test_a_run_killed_when_its_model_was_written_removes_its_state(fake, reference, tmp_path):
    data, _, model = reference
    out = tmp_path / "run"
    shutil.copytree(model.parent, out)
    (out / "state.safetensors").write_bytes(b"left behind")
    (out / ".zsad-model.safetensors-1-ab.tmp").touch()
    fake.run(out, data, TrainConfig(**SMALL))
    assert not (out / "state.safetensors").exists() and not list(out.glob(".*.tmp"))


def test_finished_run_says_so_and_is_left_alone(fake, reference):
    data, _, model = reference
    before, events = model.read_bytes(), []
    method, again = fake.run(model.parent, data, TrainConfig(**SMALL), progress=events.append)
    assert again == model and model.read_bytes() == before and method.seen_pixels == 0
    assert [event.stage for event in events] == ["finished"] and "finished before" in events[0].notes[0]


def test_other_settings_in_a_run_folder_are_refused_by_name(fake, reference, tmp_path):
    data, _, model = reference
    other = TrainConfig(**{**SMALL, "learning_rate": 0.5, "seed": 7})
    with pytest.raises(ConfigError, match=r"training.learning_rate \(0.01 there, 0.5 now\), training.seed"):
        fake.run(model.parent, data, other)
    fake.run(model.parent, data, TrainConfig(**{**SMALL, "workers": 1, "checkpoint_every": 99}))


def test_other_data_in_a_run_folder_is_refused_and_starting_over_works(fake, tmp_path):
    data = fake.make_data(tmp_path / "data")

    def stop(event):
        if event.stage == "train":
            raise Stop

    with pytest.raises(Stop):
        fake.run(tmp_path / "run", data, TrainConfig(**SMALL), progress=stop)
    fewer = fake.DataSet(data.samples[1:], "folders", data.root, "noise")
    with pytest.raises(ConfigError, match="differs in data"):
        fake.run(tmp_path / "run", fewer, TrainConfig(**SMALL))
    _, model = fake.run(tmp_path / "run", fewer, TrainConfig(**SMALL), resume=False)
    assert read_card(model).training.samples == 8
    assert len(lines(model.parent)) == 6


def test_bad_images_are_skipped_and_logged(fake, tmp_path):
    data = fake.make_data(tmp_path / "data")
    broken = tmp_path / "data" / "broken.png"
    broken.write_bytes(data.samples[0].image.read_bytes()[:700])
    samples = [Sample(broken, "wood", 0), *data.samples, Sample(tmp_path / "gone.png", "wood", 0)]
    samples += [Sample(data.samples[0].image, "wood", 1), Sample(data.samples[1].image, "wood", None)]
    mixed = fake.DataSet(samples, "folders", data.root, "noise")
    events = []
    _, model = fake.run(tmp_path / "run", mixed, TrainConfig(**SMALL), progress=events.append)
    skipped = {Path(record["skipped"]).name for record in lines(model.parent) if "skipped" in record}
    assert skipped == {"broken.png", "gone.png", "00.png", "01.png"}
    assert read_card(model).training.samples == 9
    notes = next(event.notes for event in events if event.stage == "samples")
    assert "5 normal and 4 anomalous images" in notes and len(notes) == 5
    # Two files are broken; the other two are merely not known well enough.
    assert [event.broken for event in events if event.stage == "samples"] == [2]
    _, uncached = fake.run(tmp_path / "uncached", mixed, TrainConfig(**SMALL, cache=False))
    assert read_card(uncached).training.data_fingerprint == read_card(model).training.data_fingerprint


def test_settings_that_cannot_work_write_and_remove_nothing(fake, reference, tmp_path):
    data, _, model = reference
    before = sorted(model.parent.iterdir())
    with pytest.raises(ConfigError, match="needs CUDA"):
        fake.run(model.parent, data, TrainConfig(**SMALL, amp="fp16"), resume=False)
    assert sorted(model.parent.iterdir()) == before
    with pytest.raises(ConfigError, match="needs CUDA"):
        fake.run(tmp_path / "run", data, TrainConfig(**SMALL, amp="fp16"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("setting", [{"betas": (2, 0.9)}, {"betas": (0.9, 1)}, {"learning_rate": math.inf}])
def test_impossible_settings(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        TrainConfig(**setting)


@pytest.mark.skipif(sys.platform == "win32", reason="locks of POSIX")
@pytest.mark.parametrize("existed", [False, True])
def test_second_run_into_the_same_folder_is_refused(fake, tmp_path, existed):
    data, refused = fake.make_data(tmp_path / "data"), []

    def meanwhile(event):
        if event.stage == "train" and not refused:
            for resume in (True, False):
                with pytest.raises(LockedError, match="another zsad is writing"):
                    fake.run(tmp_path / "run", data, TrainConfig(**SMALL), resume=resume)
            refused.append(event.done)

    if existed:
        (tmp_path / "run").mkdir()
    _, model = fake.run(tmp_path / "run", data, TrainConfig(**SMALL), progress=meanwhile)
    assert refused == [1] and model.is_file() and len(lines(model.parent)) == 9
    fake.run(tmp_path / "run", data, TrainConfig(**SMALL), resume=False)


def test_broken_state_says_how_to_go_on(fake, tmp_path):
    data = fake.make_data(tmp_path / "data")

    def stop(event):
        if event.stage == "train":
            raise Stop

    with pytest.raises(Stop):
        fake.run(tmp_path / "run", data, TrainConfig(**SMALL), progress=stop)
    (tmp_path / "run" / "state.safetensors").write_bytes(b"half a file")
    with pytest.raises(CheckpointError, match="start over with --overwrite"):
        fake.run(tmp_path / "run", data, TrainConfig(**SMALL))


def test_nothing_to_learn_from(fake, tmp_path):
    data = fake.make_data(tmp_path, anomalous=0)
    with pytest.raises(DataError, match="needs images with label 1 and a mask"):
        fake.run(tmp_path / "run", data, TrainConfig(**SMALL))


def test_nan_loss_stops_naming_step_and_term(fake, tmp_path, monkeypatch):
    data, calls = fake.make_data(tmp_path / "data"), []
    honest = fake.FakeMethod.losses

    def losses(self, *arguments):
        calls.append(1)
        terms = honest(self, *arguments)
        return {**terms, "image": terms["image"] * float("nan")} if len(calls) == 4 else terms

    monkeypatch.setattr(fake.FakeMethod, "losses", losses)
    with pytest.raises(TrainingError, match=r"step 4 of 9, image = nan, total = nan: lower learning_rate"):
        fake.run(tmp_path / "run", data, TrainConfig(**SMALL))
    state = load_file(tmp_path / "run" / "state.safetensors")
    assert all(tensor.isfinite().all() for tensor in state.values())


def test_callers_random_numbers_are_left_alone(fake, tmp_path):
    data = fake.make_data(tmp_path / "data")
    method = fake.FakeMethod()
    torch.manual_seed(42)
    expected = torch.rand(3)
    torch.manual_seed(42)
    fake.train(method, data, config=TrainConfig(**SMALL), out=tmp_path / "run", card_parts=fake.PARTS)
    assert torch.equal(torch.rand(3), expected)


def test_bf16_on_cpu_trains(fake, reference, tmp_path):
    _, model = fake.run(tmp_path / "run", reference[0], TrainConfig(**SMALL, amp="bf16"))
    full, mixed = load_file(reference[2]), load_file(model)
    assert any(not torch.equal(full[name], mixed[name]) for name in full)
    for name in full:
        torch.testing.assert_close(full[name], mixed[name], atol=0.05, rtol=0.1)


def test_precision_of_devices():
    cpu = torch.device("cpu")
    assert amp_dtype("auto", cpu) is None and amp_dtype("bf16", cpu) is torch.bfloat16
    with pytest.raises(ConfigError, match="needs CUDA"):
        amp_dtype("fp16", cpu)


def test_learning_rate_rises_then_stays():
    config = TrainConfig(warmup_epochs=2, learning_rate=1.0)
    schedule = Schedule.of((Stage("only"),), config, steps_per_epoch=2)
    assert [schedule.learning_rate(config, step) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    config = TrainConfig(warmup_epochs=0, milestones=(2, 3), decay=0.5)
    assert [schedule.learning_rate(config, step) for step in range(4)] == [1e-3, 1e-3, 5e-4, 2.5e-4]


def test_stages_share_the_epochs_and_warm_up_apart() -> None:
    stages = (Stage("text", share=0.75), Stage("experts", share=0.25, learning_rate=0.5))
    config = TrainConfig(epochs=20, learning_rate=1.0, warmup_epochs=1)
    schedule = Schedule.of(stages, config, steps_per_epoch=2)
    assert [schedule.stage(epoch) for epoch in (0, 14, 15, 19)] == [0, 0, 1, 1]
    assert [schedule.learning_rate(config, step) for step in (0, 1, 29, 30, 31)] == [0.5, 1, 1, 0.25, 0.5]
    assert Schedule.of(stages, TrainConfig(epochs=2), steps_per_epoch=1).ends == (1, 2)
    with pytest.raises(ConfigError, match="2 stages"):
        Schedule.of(stages, TrainConfig(epochs=1), steps_per_epoch=1)


def test_log_drops_half_lines_and_later_steps(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 0, "skipped": "x"}\n{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    log = StepLog(path, step=2)
    log.write({"step": 3, "again": True})
    log.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 0, "skipped": "x"},
        {"step": 1},
        {"step": 2},
        {"step": 3, "again": True},
    ]
