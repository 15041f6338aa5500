"""Figures of an explanation: activation, shares of pixels, patches, experts in a plane, training curves."""

from __future__ import annotations

from collections.abc import Iterator

from zsad.studies.explain.activation import activation_figure
from zsad.studies.explain.expert_planes import expert_figure
from zsad.studies.explain.explanation import Explanation
from zsad.studies.explain.figure_parts import ExplanationFigure
from zsad.studies.explain.loss_charts import curves_figure
from zsad.studies.explain.patches import patch_figures
from zsad.studies.explain.region_bars import region_figures


def all_figures(explanation: Explanation) -> Iterator[ExplanationFigure]:
    """Draw every figure for which there are numbers."""
    kinds = explanation.settings["kinds"]
    if explanation.usage and "activation" in kinds:
        yield activation_figure(explanation, "chosen")
        yield activation_figure(explanation, "weight")
    if explanation.regions and "regions" in kinds:
        yield from region_figures(explanation)
    yield from patch_figures(explanation)
    for index, maps in enumerate(explanation.maps):
        yield expert_figure(explanation, maps, index)
    if explanation.runs:
        yield curves_figure(explanation.runs)
