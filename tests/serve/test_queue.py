"""The queue, the budget of bytes and the metrics, without images."""

from __future__ import annotations

import math
import threading
import time
from concurrent.futures import Future
from itertools import chain
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from zsad.errors import ConfigError
from zsad.serve.limits import ByteBudget, Refusal, RequestLimits
from zsad.serve.metrics import Metrics
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


def test_a_budget_says_no_before_it_is_exceeded() -> None:
    budget = ByteBudget(10)
    budget.reserve(7)
    with pytest.raises(Refusal) as caught:
        budget.reserve(4)
    assert caught.value.status == 429 and caught.value.retry_after == 1
    budget.release(7)
    budget.reserve(10)
    assert budget.reserved == 10


@pytest.mark.parametrize(
    ("field", "value"), [("max_queue", 0), ("timeout", -1), ("timeout", math.inf), ("max_bytes", 3)]
)
def test_impossible_limits_name_their_option(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"--{field.replace('_', '-')} is"):
        RequestLimits.of(**{field: value})


def test_metrics_are_prometheus_text() -> None:
    metrics = Metrics()
    metrics.requests.labels('a"b\\c\nd', "200").inc()
    metrics.passes.observe(0.02)
    metrics.passes.observe(99)
    metrics.describe_model(name="m")
    metrics.watch("zsad_waiting", "Waiting.", lambda: 7)
    text = metrics.render()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert len(families) == text.count("# TYPE ")  # each once, and nothing but these
    samples = {
        (one.name, *one.labels.values()): one.value for one in chain(*(f.samples for f in families.values()))
    }
    assert samples["zsad_requests_total", 'a"b\\c\nd', "200"] == 1
    assert samples["zsad_model_seconds_bucket", "0.025"] == 1
    assert samples["zsad_model_seconds_bucket", "+Inf"] == samples["zsad_model_seconds_count",] == 2
    assert samples["zsad_model_seconds_sum",] == 99.02
    assert samples["zsad_model_info", "m"] == 1 and samples["zsad_waiting",] == 7
    assert samples["process_cpu_seconds_total",] > 0 and samples["process_start_time_seconds",] > 1e9
    assert families["process_cpu_seconds"].type == "counter" and families["zsad_model_info"].type == "gauge"
    assert families["zsad_requests"].documentation == "Requests by endpoint and status."
    assert "_created" not in text


def test_services_count_apart() -> None:
    one, other = Metrics(), Metrics()
    one.batches.observe(3)
    assert "zsad_batch_images_count 1.0" in one.render() and "zsad_batch_images_count 0.0" in other.render()


def test_a_value_on_a_border_counts_below_it() -> None:
    metrics = Metrics()
    for value in (1.0, 1.5, 2.0, 2.1):
        metrics.batches.observe(value)
    lines = [line for line in metrics.render().splitlines() if line.startswith("zsad_batch_images_bucket")]
    assert [line.split()[-1] for line in lines[:3]] == ["1.0", "3.0", "4.0"]
