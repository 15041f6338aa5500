"""How many processes `zsad remeasure` takes by itself."""

from __future__ import annotations

import pytest

from zsad.cli.remeasure import _enough
from zsad.device import available_cores


@pytest.mark.parametrize(
    ("order", "images", "several"),
    [
        ("after_softmax", 800, False),
        ("after_softmax", 1725, True),
        ("before_softmax", 400, False),
        ("before_softmax", 600, True),
    ],
)
def test_processes_are_started_where_they_shorten_the_work(order: str, images: int, several: bool) -> None:
    assert _enough({"map_spec": {"order": order}}, images) == (available_cores() if several else 1)
    assert _enough({}, 10) == 1
