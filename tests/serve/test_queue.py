"""The queue, the places and the counters, without images."""

from __future__ import annotations

import asyncio
import math
import re
import threading
import time
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zsad.errors import ConfigError
from zsad.serve.limits import Budget, Limits, Places, Refusal
from zsad.serve.metrics import Metric, Metrics
from zsad.serve.queue import Batcher, QueueClosed, QueueFull, TooLate


class Held:
    """Work that waits for a sign; keeps the batches it saw."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.begun = threading.Event()
        self.batches: list[list[Any]] = []

    def __call__(self, items: list[Any]) -> list[Any]:
        self.batches.append(items)
        self.begun.set()
        assert self.go.wait(30)
        return [ValueError(item) if item == "bad" else item for item in items]


def test_a_batch_gathers_while_another_is_at_work() -> None:
    work = Held()
    queue: Batcher[Any, Any] = Batcher(work, depth=10, batch=4)
    first = queue.submit(0)
    assert work.begun.wait(30)
    others = [queue.submit(number) for number in range(1, 8)]
    work.go.set()
    assert [first.result(30)] + [other.result(30) for other in others] == list(range(8))
    assert work.batches == [[0], [1, 2, 3, 4], [5, 6, 7]]
    queue.close()


def test_it_never_grows_beyond_its_depth() -> None:
    work = Held()
    queue: Batcher[Any, Any] = Batcher(work, depth=2, batch=1)
    taken = [queue.submit(0)]
    assert work.begun.wait(30)
    taken += [queue.submit(number) for number in (1, 2)]
    with pytest.raises(QueueFull):
        queue.submit(3)
    assert queue.waiting == 2
    taken[1].cancel()
    late = queue.submit(4)  # the place of who has gone
    work.go.set()
    assert late.result(30) == 4
    queue.close()
    assert [1] not in work.batches


def test_closing_finishes_what_was_taken() -> None:
    work = Held()
    queue: Batcher[Any, Any] = Batcher(work, depth=10, batch=3)
    futures = [queue.submit(number) for number in range(7)]
    closing = threading.Thread(target=queue.close)
    closing.start()
    while queue.alive:
        time.sleep(0.001)
    with pytest.raises(QueueClosed):
        queue.submit(8)
    work.go.set()
    closing.join(30)
    assert [future.result(0) for future in futures] == list(range(7))


def test_failures_stay_with_their_items() -> None:
    calls: list[list[str]] = []

    def work(items: list[str]) -> list[Any]:
        calls.append(items)
        if "poison" in items:
            raise RuntimeError("out of memory")
        return [ValueError(item) if item == "bad" else item for item in items]

    gate = threading.Event()
    queue: Batcher[Any, Any] = Batcher(
        lambda items: [gate.wait(30)] if items == ["gate"] else work(items), depth=10, batch=8
    )
    queue.submit("gate")
    futures = [queue.submit(item) for item in ("good", "bad", "poison", "fine")]
    gate.set()
    assert futures[0].result(30) == "good" and futures[3].result(30) == "fine"
    assert isinstance(futures[1].exception(30), ValueError)
    assert isinstance(futures[2].exception(30), RuntimeError)
    assert calls[-4:] == [["good"], ["bad"], ["poison"], ["fine"]]
    assert queue.alive
    queue.close()


def test_an_answer_too_few_is_nobodys_answer() -> None:
    queue: Batcher[Any, Any] = Batcher(lambda items: [], depth=2, batch=1)
    assert isinstance(queue.submit(1).exception(30), RuntimeError)
    queue.close()


def test_what_is_too_late_is_not_worked_on() -> None:
    work = Held()
    queue: Batcher[Any, Any] = Batcher(work, depth=10, batch=1)
    first = queue.submit("first")
    late: Future[Any] = queue.submit("late", deadline=time.monotonic() - 1)
    work.go.set()
    assert first.result(30) == "first"
    assert isinstance(late.exception(30), TooLate)
    queue.close()
    assert work.batches == [["first"]]


@settings(max_examples=30)
@given(st.integers(1, 4), st.lists(st.sampled_from(["try", "take", "give", "leave"]), max_size=40))
def test_places_never_exceed_their_count(count: int, steps: list[str]) -> None:
    async def play() -> None:
        places, held = Places(count), 0
        waiting: list[asyncio.Task[None]] = []
        for step in steps:
            if step == "try":
                held += places.try_take()
            elif step == "take":
                waiting.append(asyncio.create_task(places.take()))
            elif step == "give" and held:
                places.give()
                held -= 1
            elif step == "leave" and waiting:
                waiting.pop().cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            for task in [one for one in waiting if one.done()]:
                waiting.remove(task)
                held += not task.cancelled()
            assert places.taken == held <= count
            assert not waiting or held == count  # nobody waits beside a free place

    asyncio.run(play())


def test_who_waits_longest_is_served_first() -> None:
    async def play() -> list[int]:
        places, order = Places(1), list[int]()
        assert places.try_take()

        async def one(number: int) -> None:
            await places.take()
            order.append(number)
            places.give()

        tasks = [asyncio.create_task(one(number)) for number in range(5)]
        await asyncio.sleep(0)
        assert not places.try_take()
        places.give()
        await asyncio.gather(*tasks)
        assert places.taken == 0
        return order

    assert asyncio.run(play()) == [0, 1, 2, 3, 4]


def test_a_budget_says_no_before_it_is_exceeded() -> None:
    budget = Budget(10)
    budget.take(7)
    with pytest.raises(Refusal) as caught:
        budget.take(4)
    assert caught.value.status == 429 and caught.value.retry_after == 1
    budget.give(7)
    budget.take(10)
    assert budget.held == 10


@pytest.mark.parametrize(
    ("field", "value"), [("max_queue", 0), ("timeout", -1), ("timeout", math.inf), ("max_bytes", 3)]
)
def test_impossible_limits_name_their_option(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"--{field.replace('_', '-')} is"):
        Limits.of(**{field: value})


def test_metrics_are_prometheus_text() -> None:
    metrics = Metrics()
    metrics.requests.add('a"b\\c\nd', "200")
    metrics.passes.observe(0.02)
    metrics.passes.observe(99)
    metrics.state("zsad_x_info", "A fact.", {"name": "m"})
    text = metrics.render()
    sample = re.compile(
        r'[a-z_]+(\{[a-z]+="(?:[^"\\\n]|\\.)*"(,[a-z]+="(?:[^"\\\n]|\\.)*")*\})? (NaN|[+-]?[0-9.e+-]+)'
    )
    for line in text.splitlines():
        assert line.startswith(("# HELP ", "# TYPE ")) or sample.fullmatch(line), line
    assert 'zsad_requests_total{endpoint="a\\"b\\\\c\\nd",status="200"} 1' in text
    assert 'zsad_model_seconds_bucket{le="0.025"} 1' in text
    assert 'zsad_model_seconds_bucket{le="+Inf"} 2' in text and "zsad_model_seconds_count 2" in text
    assert "zsad_model_seconds_sum 99.02" in text and 'zsad_x_info{name="m"} 1' in text
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names))


def test_a_value_on_a_border_counts_below_it() -> None:
    family = Metric("histogram", "h", "h", (), (1.0, 2.0))
    for value in (1.0, 1.5, 2.0, 2.1):
        family.observe(value)
    assert [line.split()[-1] for line in family.lines() if "bucket" in line] == ["1", "3", "4"]
