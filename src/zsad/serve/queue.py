"""A queue that never grows beyond its depth, and one thread that takes batches from it.

Nothing waits for a batch to fill: while one is in the model the next gathers by itself. Knows nothing of images.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class QueueFull(Exception):
    """Error: the queue holds as many items as it may."""


class QueueClosed(Exception):
    """Error: the queue takes no more items."""


class TooLate(Exception):
    """Error: the time limit of an item passed before its turn came."""


@dataclass(slots=True)
class _Ticket(Generic[Item, Answer]):
    item: Item
    deadline: float
    future: Future[Answer] = field(default_factory=Future)


class Batcher(Generic[Item, Answer]):
    """One thread that works through items in their order, several at a time.

    Args:
        work: answers a batch, in order; an exception among the answers is that item's own failure. Where it raises
            on several, each is tried alone, so that one cannot spoil the others.
        depth: items that may wait.
        batch: items a pass at most.
        observe: called after each pass with its size and seconds.
    """

    def __init__(
        self,
        work: Callable[[list[Item]], Sequence[Answer | Exception]],
        *,
        depth: int,
        batch: int,
        observe: Callable[[int, float], None] | None = None,
    ) -> None:
        self._work, self._observe = work, observe
        self._depth, self._batch = depth, batch
        self._waiting: deque[_Ticket[Item, Answer]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="zsad-model", daemon=True)
        self._thread.start()

    def submit(self, item: Item, *, deadline: float = float("inf")) -> Future[Answer]:
        """Put an item at the end.

        Args:
            item: for `work`.
            deadline: of `time.monotonic()`, after which nobody wants the answer any more: `TooLate`.

        Raises:
            QueueFull: as many wait already as may.
            QueueClosed: after `close`.
        """
        ticket: _Ticket[Item, Answer] = _Ticket(item, deadline)
        with self._changed:
            if self._closed:
                raise QueueClosed
            if len(self._waiting) >= self._depth:
                self._waiting = deque(one for one in self._waiting if not one.future.cancelled())
            if len(self._waiting) >= self._depth:
                raise QueueFull
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket.future

    def close(self) -> None:
        """Take no more, finish what was taken, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    @property
    def waiting(self) -> int:
        """Number of items that wait."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """True while the thread is there and takes items."""
        return self._thread.is_alive() and not self._closed

    def _run(self) -> None:
        while batch := self._take():
            pending = [ticket for ticket in batch if _is_pending(ticket)]
            if pending:
                self._answer(pending)

    def _take(self) -> list[_Ticket[Item, Answer]]:
        """Return the next batch; empty once the queue is closed and worked off."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            return [self._waiting.popleft() for _ in range(min(self._batch, len(self._waiting)))]

    def _answer(self, tickets: list[_Ticket[Item, Answer]]) -> None:
        start = time.perf_counter()
        try:
            answers = self._work([ticket.item for ticket in tickets])
            if len(answers) != len(tickets):
                raise RuntimeError(f"{len(answers)} answers to {len(tickets)} items")
        except BaseException as error:  # whatever it is, the thread lives on and each item gets the error
            if len(tickets) == 1:
                tickets[0].future.set_exception(error)
                return
            for ticket in tickets:
                self._answer([ticket])
            return
        if self._observe is not None:
            with suppress(Exception):
                self._observe(len(tickets), time.perf_counter() - start)
        for ticket, answer in zip(tickets, answers, strict=True):
            if isinstance(answer, Exception):
                ticket.future.set_exception(answer)
            else:
                ticket.future.set_result(answer)


def _is_pending(ticket: _Ticket[Item, Answer]) -> bool:
    if not ticket.future.set_running_or_notify_cancel():
        return False
    if time.monotonic() > ticket.deadline:
        ticket.future.set_exception(TooLate())
        return False
    return True
