"""`zsad bench`: shares of what the machine's products reach, with a clock of our own, and the command itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from zsad.cli.main import main
from zsad.studies import speed
from zsad.studies.speed import Peak, Products


class Clock:
    """A machine whose speed changes: each product and each pass takes as long as it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(speed.time, "perf_counter", lambda: self.now)

    def taking(self, seconds: Iterator[float]) -> Any:
        def run() -> None:
            self.now += next(seconds)

        return run


def test_a_pass_is_compared_with_the_products_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    products = Products.__new__(Products)
    products.best = {"fp32": Peak("fp32", 100.0, "torch")}
    rates = iter([50.0, 100.0, 100.0, 20.0])
    monkeypatch.setattr(Products, "rate", lambda self, precision: next(rates))
    # One pass to warm up, then three of 300 operations: at 75, 100 and 60 a second, beside 75, 100 and 60.
    watch = speed._Stopwatch(products, flops=300.0, repeats=3)
    found = watch("torch", "fp32", clock.taking(iter([9.0, 8.0, 3.0, 10.0])))
    assert found.seconds == pytest.approx(3.0)
    assert found.beside == pytest.approx(sorted([37.5 / 75, 100 / 100, 30 / 60])[1])


def test_products_keep_their_best_and_tell_what_they_keep_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    work = 2.0 * 1370 * 1024 * 4096
    products = Products.__new__(Products)
    products._seconds, products.best = 10.0, {}
    products._ways = {("fp32", "torch"): clock.taking(iter([7.0, 2.0, 4.0, 6.0, 9.0, 1.0, 9.0]))}
    assert products._run("fp32", "torch") == pytest.approx(work * 3 / 12)  # the first warms up
    assert products.best["fp32"].rate == pytest.approx(work / 2)
    assert products.rate("fp32") == pytest.approx(work * 2 / 10)
    assert products.best["fp32"].rate == pytest.approx(work)


def test_the_command_prints_floor_and_shares(
    toy: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "_SHAPE", (137, 256, 512))  # small: how fast it is, is not what is tested
    assert main(["bench", "--model", str(toy.model), "--repeats", "1", "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"promptmoe on .*64 x 64 pixels: \d\.\d\d GFLOP an image", printed)
    assert re.search(r"best product in fp32, 1 threads: \d+ GFLOP/s \((torch|numpy)\), floor \d+ ms", printed)
    row = re.search(r"^torch +fp32 +([\d.]+) +\d+ +(\d+) % +(\d+) %$", printed, re.MULTILINE)
    assert row is not None and 0 < float(row[1]) < 10_000
    assert main(["bench", "--repeats", "0"]) == 2
