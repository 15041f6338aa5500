"""Fusion of a method's output with cues of how odd a patch is within its own picture.

A method compares patches with text; that says what looks like damage. The cues of `nn/oddness.py` say what does not
belong into this picture. Neither needs another image. They are brought to one scale by the training's normal images
alone, then added: to the maps `logit + s_m (a_1 z_rarity + a_2 z_contrast + a_3 z_asymmetry)`, with s_m the deviation
of the method's own logits on normal patches; to the image score `v_method + b_1 v_rarity + b_2 v_contrast + b_3
v_asymmetry`, each a bounded value `v = z / sqrt(1 + (z / c)^2)` of the mean of its highest patches, through a logistic
curve fitted on the training's labels. Bounded, because in pictures of another world (a scan, after metal parts) a
cue can be far off its scale on all of them: then it says nothing, and must not drown those that do.
Not part of any of the papers: a setting, off by default.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zsad.errors import ConfigError
from zsad.nn.oddness import CUES, top_mean

TOP_SHARE = 0.025
"""Share of a picture's patches whose mean is the picture's value."""
VALUE_LIMIT = 0.5
"""Largest size c of a picture's value, in deviations of normal pictures, before its weight."""
_NEWTON_STEPS = 50
_RIDGE = 1e-2  # keeps the curve finite where the labels are separated perfectly
_LEAST_SLOPE = 0.05  # of the standardised sum: a higher sum never lowers a score


@dataclass(slots=True)
class FusionData:
    """Training images that a fusion is fitted to.

    Attributes:
        logits: (B, N) the method's logits, mean over layers.
        cues: (B, J, N).
        labels: (B,) in {0, 1}.
    """

    logits: Tensor
    cues: Tensor
    labels: Tensor


class OddnessFusion(nn.Module):
    """Scales of a method's logits and of the cues, and the curve of the image score: buffers, nothing learned by steps.

    Args:
        map_weights: (a_1, a_2, a_3) of the cues in the maps, in the order of `CUES`.
        score_weights: (b_1, b_2, b_3) of the cues in the image score.
    """

    patch: Tensor
    """(1 + J, 2) mean and deviation of logits and cues over normal patches."""
    top: Tensor
    """(1 + J, 2) mean and deviation of their picture values over normal pictures."""
    map_weights: Tensor
    score_weights: Tensor
    curve: Tensor
    """(2,) slope and offset of the image score."""

    def __init__(
        self, *, map_weights: tuple[float, float, float], score_weights: tuple[float, float, float]
    ) -> None:
        super().__init__()
        neutral = torch.tensor([[0.0, 1.0]]).repeat(1 + len(CUES), 1)
        self.register_buffer("patch", neutral.clone())
        self.register_buffer("top", neutral.clone())
        self.register_buffer("curve", torch.tensor([1.0, 0.0]))
        self.register_buffer("map_weights", torch.tensor(map_weights), persistent=False)
        self.register_buffer("score_weights", torch.tensor((1.0, *score_weights)), persistent=False)

    def reset(self) -> None:
        """Forget what was fitted."""
        with torch.no_grad():
            for scale in (self.patch, self.top):
                scale.copy_(torch.tensor([0.0, 1.0]).expand_as(scale))
            self.curve.copy_(torch.tensor([1.0, 0.0]))

    def forward(self, logits: Tensor, cues: Tensor) -> tuple[Tensor, Tensor]:
        """Fused grids (B, L, h, w) and scores (B,) of the method's grids and the cues (B, J, h * w)."""
        cues = cues.to(logits.dtype)
        patch = self.patch.to(logits.dtype)
        standard = (cues - patch[1:, 0, None]) / patch[1:, 1, None]
        shift = patch[0, 1] * (self.map_weights.to(logits.dtype)[:, None] * standard).sum(dim=1)
        values = self._picture_values(logits.mean(dim=1).flatten(1), cues)
        score = (self.curve[0] * values + self.curve[1]).sigmoid()
        return logits + shift.reshape(-1, 1, *logits.shape[-2:]), score

    @torch.no_grad()
    def fit(self, data: FusionData) -> None:
        """Take scales from the normal images, and the curve from all.

        Raises:
            ConfigError: not a single normal image.
        """
        normal = data.labels == 0
        if not bool(normal.any()):
            raise ConfigError(
                "oddness = 'fused' needs normal images to learn what is ordinary, and the training has none; "
                "add some, or set oddness to 'off'"
            )
        joined = torch.cat([data.logits.unsqueeze(1), data.cues], dim=1).double()
        self.patch.copy_(_mean_and_deviation(joined[normal].transpose(0, 1).flatten(1)))
        self.top.copy_(_mean_and_deviation(top_mean(joined[normal], TOP_SHARE).T))
        values = self._picture_values(joined[:, 0], joined[:, 1:])
        self.curve.copy_(fit_curve(values, data.labels))

    def _picture_values(self, logits: Tensor, cues: Tensor) -> Tensor:
        """Weighted sum (B,) of the bounded picture values of logits (B, N) and cues (B, J, N)."""
        tops = top_mean(torch.cat([logits.unsqueeze(1), cues], dim=1).float(), TOP_SHARE)
        # A sum, not a product of matrices: graphs in eight bits leave it as it is.
        return (bounded((tops - self.top[:, 0]) / self.top[:, 1]) * self.score_weights).sum(dim=1)


def bounded(standard: Tensor, *, limit: float = VALUE_LIMIT) -> Tensor:
    """Standardised values, each brought between -`limit` and `limit`: monotone, and the identity around 0.

    Example:
        >>> [round(float(value), 3) for value in bounded(torch.tensor([-100.0, 0.0, 0.01, 1.0, 100.0]))]
        [-0.5, 0.0, 0.01, 0.447, 0.5]
    """
    return standard / (1 + (standard / limit).square()).sqrt()


def _mean_and_deviation(values: Tensor) -> Tensor:
    """Mean and deviation (V, 2) of values (V, ...); a deviation of nothing counts as 1."""
    deviation = values.std(dim=1, correction=0)
    return torch.stack(
        [values.mean(dim=1), torch.where(deviation > 1e-9, deviation, torch.ones_like(deviation))], dim=1
    )


def fit_curve(values: Tensor, labels: Tensor) -> Tensor:
    """Slope and offset (2,) of the logistic curve from values (B,) to labels (B,), both labels counting the same.

    The slope is never below a small positive number: a higher value never lowers a score. With one label only, the
    curve puts one half at two units above the mean.

    Example:
        >>> slope, offset = fit_curve(torch.tensor([-1.0, 0.0, 2.0, 3.0]), torch.tensor([0, 0, 1, 1]))
        >>> bool(slope > 0), bool(-offset / slope > 0.5)
        (True, True)
    """
    mean, deviation = values.double().mean(), values.double().std(correction=0).clamp_min(1e-9)
    if not bool((labels == 0).any()) or not bool((labels == 1).any()):
        return torch.stack([torch.ones_like(mean), -mean - 2.0]).float()
    slope, offset = _logistic((values.double() - mean) / deviation, labels.double())
    return torch.stack([slope / deviation, offset - slope * mean / deviation]).float()


def _logistic(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and offset of the balanced logistic regression of y on standardised x, by Newton's method."""
    weights = torch.where(y == 1, 0.5 / y.sum(), 0.5 / (1 - y).sum())
    inputs = torch.stack([x, torch.ones_like(x)], dim=1)
    penalty = torch.diag(x.new_tensor([_RIDGE, 1e-9]))
    beta = x.new_zeros(2)
    for _ in range(_NEWTON_STEPS):
        chance = (inputs @ beta).sigmoid()
        gradient = inputs.T @ (weights * (chance - y)) + penalty @ beta
        curvature = (inputs * (weights * chance * (1 - chance)).unsqueeze(1)).T @ inputs + penalty
        step = torch.linalg.solve(curvature, gradient).clamp(-2.0, 2.0)
        beta = beta - step
        if float(step.abs().max()) < 1e-12:
            break
    if float(beta[0]) < _LEAST_SLOPE:
        return x.new_tensor(_LEAST_SLOPE), x.new_zeros(())
    return beta[0], beta[1]
