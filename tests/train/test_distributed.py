"""Several processes: how batches are dealt out, and two real processes that train together."""

from __future__ import annotations

import json
import os
import socket
import traceback
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import distributed

from zsad.errors import ConfigError
from zsad.nn.experts import load_balance_loss
from zsad.nn.lora import imbalance_loss
from zsad.nn.moe import balance_loss
from zsad.train.checkpoint import read_card
from zsad.train.distributed import Worker, joined
from zsad.train.features import FeatureSource, open_cache
from zsad.train.samples import prepare
from zsad.train.train_config import TrainConfig


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_average_over_processes_is_the_mean_over_the_batch(length, size):
    batch = list(range(10, 10 + length))
    values = {row: float(row**2) for row in batch}
    shares = [Worker(rank, size).share(batch) for rank in range(size)]
    average = sum(weight * sum(values[row] for row in rows) / len(rows) for rows, weight in shares) / size
    assert average == pytest.approx(sum(values.values()) / length)
    assert sorted(row for rows, weight in shares if weight for row in rows) == batch
    assert all(rows for rows, _ in shares)


def test_batch_must_be_a_multiple_of_the_processes():
    with pytest.raises(ConfigError, match="multiple of 3"):
        Worker(0, 3).check_batch(16)
    Worker(0, 4).check_batch(16)


def test_alone_nothing_is_joined():
    with joined({}, device="cpu") as device:
        assert device == torch.device("cpu") and not distributed.is_initialized()
    with pytest.raises(ConfigError, match="torchrun"), joined({"WORLD_SIZE": "2", "RANK": "0"}, device="cpu"):
        pass


def _in_two_processes(run: Callable[[int], None]) -> None:
    """Call `run` with the rank in each of two processes that have joined a group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in (0, 1):
        child = os.fork()
        if not child:
            code = 1
            try:
                place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                os.environ.update({**place, "RANK": str(rank), "LOCAL_RANK": str(rank)})
                with joined(os.environ, device="cpu"):
                    run(rank)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]


two_processes = pytest.mark.skipif(
    not distributed.is_available() or os.name != "posix", reason="gloo and fork"
)


@two_processes
def test_two_processes_train_as_one_would(fake, tmp_path):
    """Without noise, and with losses that are means over images, the averaged gradients are the batch's own."""
    data = fake.make_data(tmp_path / "data")
    config = TrainConfig(epochs=3, batch_size=4, learning_rate=0.01, warmup_epochs=1)
    out = tmp_path / "two"

    def run(rank: int) -> None:
        method = fake.FakeMethod(fake.FakeConfig(dropout=0.0))
        fake.train(method, data, config=config, out=out, card_parts=fake.PARTS)
        save_file(method.adapter_state(), out / f"rank{rank}.st")

    _in_two_processes(run)
    first, second, written = (load_file(out / name) for name in ("rank0.st", "rank1.st", "model.safetensors"))
    alone = fake.FakeMethod(fake.FakeConfig(dropout=0.0))
    fake.train(alone, data, config=config, out=tmp_path / "one", card_parts=fake.PARTS)
    for name, tensor in alone.adapter_state().items():
        assert first[name].isfinite().all()
        assert torch.equal(first[name], second[name]) and torch.equal(first[name], written[name])
        torch.testing.assert_close(first[name], tensor, rtol=1e-3, atol=1e-4)
    card = read_card(out / "model.safetensors")
    assert (card.training.samples, card.training.steps) == (9, 9)
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("two", "one")]
    for both, one in zip(*logs, strict=True):
        assert json.loads(both)["total"] == pytest.approx(json.loads(one)["total"], rel=1e-3)


BALANCE = {
    "balance": balance_loss,
    "load": lambda logits: load_balance_loss(logits, top_k=2),
    "imbalance": lambda logits: imbalance_loss(logits[:, 0]),
}


@two_processes
def test_balance_is_of_the_whole_batch(tmp_path):
    """Values, and gradients weighted by the share and averaged: as of one process, with shares of 3 and 2 images."""
    logits = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def run(rank: int) -> None:
        rows, weight = Worker(rank, 2).share(range(5))
        tensors = {}
        for name, loss in BALANCE.items():
            own = logits[rows].requires_grad_()
            value = loss(own)
            (gradient,) = torch.autograd.grad(weight * value / 2, own)
            tensors |= {f"{name}.value": value.detach(), f"{name}.gradient": gradient}
        save_file(tensors, tmp_path / f"rank{rank}.st")

    _in_two_processes(run)
    for name, loss in BALANCE.items():
        whole = logits.clone().requires_grad_()
        value = loss(whole)
        (gradient,) = torch.autograd.grad(value, whole)
        for rank in (0, 1):
            parts = load_file(tmp_path / f"rank{rank}.st")
            torch.testing.assert_close(parts[f"{name}.value"], value.detach())
            torch.testing.assert_close(parts[f"{name}.gradient"], gradient[rank::2])


def test_process_that_starts_late_deals_out_the_same_images(fake, tmp_path):
    """The second of two processes looks into the shared cache when the first has filled its part already."""
    data = fake.make_data(tmp_path / "data")
    config, method = TrainConfig(batch_size=2), fake.FakeMethod()
    training = prepare(data.samples, config=config, size=method.train_map_size)

    def extract(rank):
        cache = open_cache(method, fake.PREPROCESS, backbone_sha256="ab", config=config, out=tmp_path / "run")
        source = FeatureSource(method, fake.PREPROCESS, config=config, cache=cache)
        source._extract(training.items, cache, Worker(rank, 2), lambda done, total: None)
        return cache

    assert 0 < len(extract(0)) < 9
    last = extract(1)
    last.refresh()
    assert len(last) == 9 and all(item.digest in last for item in training.items)
