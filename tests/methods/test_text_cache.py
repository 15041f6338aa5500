"""What is kept is made anew exactly where something it is made of has changed, or a gradient may be asked."""

from __future__ import annotations

import torch

from zsad.methods.similarity import TextCache


def test_kept_until_a_source_is_written_moved_or_replaced():
    kept, calls = TextCache(), []
    source, other = torch.nn.Parameter(torch.ones(2)), torch.zeros(1)

    def get(*sources: torch.Tensor, name: str = "") -> torch.Tensor:
        def make() -> torch.Tensor:
            calls.append(name)
            return sum(own.sum() for own in sources).reshape(1)

        return kept.get(make, sources=sources, name=name)

    with torch.inference_mode():
        first = get(source, other)
        assert get(source, other) is first and len(calls) == 1 and not first.is_inference()
    with torch.no_grad():
        assert get(source, other) is first
        other.add_(3)
        assert float(get(source, other)) == 5 and len(calls) == 2
        assert float(get(source, other.clone())) == 5 and len(calls) == 3
        assert get(source, other.double()).dtype == torch.float64 and len(calls) == 4
        assert float(get(source, name="own")) == 2 and get(source, name="own") is get(source, name="own")
        assert len(calls) == 5
    assert get(source).requires_grad and get(source) is not get(source), "with gradients nothing is kept"
    source.requires_grad_(False)
    assert get(source) is get(source)
