"""Losses of two-way (normal, abnormal) probability maps and of scores, as in AnomalyCLIP and its kin."""

from __future__ import annotations

from torch import Tensor


def focal_loss(abnormal: Tensor, mask: Tensor, *, gamma: float = 2.0, smooth: float = 1e-5) -> Tensor:
    """Mean over everything of `-(1 - p_t)^gamma log p_t`, the multi-class focal loss of two channels.

    `p_t = sum_c onehot_c P_c + smooth`, the one-hot mask clamped to [smooth, 1 - smooth] (Lin et al., 2017,
    with the label smoothing that the field's code has). The two channels add up to one, so one is stored.

    Args:
        abnormal: (...) probability of abnormal, in [0, 1].
        mask: (...) in {0, 1}, of a shape that broadcasts.
        gamma: how much less easy pixels count.
        smooth: clamp of the mask, and what keeps the logarithm finite.

    Example:
        >>> import torch
        >>> round(float(focal_loss(torch.tensor([0.5]), torch.tensor([1.0]))), 3)  # log(2) / 4
        0.173
    """
    target = mask.clamp(smooth, 1 - smooth)
    probability = target * abnormal + (1 - target) * (1 - abnormal) + smooth
    # The probability may exceed 1 by `smooth`; an even gamma does not mind, others would.
    return -((1 - probability).abs() ** gamma * probability.log()).mean()


def dice_loss(probability: Tensor, mask: Tensor, *, smooth: float = 1.0) -> Tensor:
    """`1 - (2 sum(P m) + smooth) / (sum P + sum m + smooth)`, one number (...) a map (Milletari et al., 2016).

    Args:
        probability: (..., H, W) in [0, 1].
        mask: (..., H, W) in {0, 1}, of a shape that broadcasts.
        smooth: keeps empty masks finite.

    Example:
        >>> import torch
        >>> dice_loss(torch.full((2, 3, 3), 0.5), torch.ones(3, 3))  # 1 - (9 + 1) / (4.5 + 9 + 1)
        tensor([0.3103, 0.3103])
    """
    both = (probability * mask).sum(dim=(-2, -1))
    either = probability.sum(dim=(-2, -1)) + mask.sum(dim=(-2, -1))
    return 1 - (2 * both + smooth) / (either + smooth)


def score_loss(score: Tensor, label: Tensor, *, margin: float = 1e-6) -> Tensor:
    """Binary cross-entropy of scores (B,), clamped to [margin, 1 - margin], with labels (B,) in {0, 1}.

    Example:
        >>> import torch
        >>> round(float(score_loss(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0]))), 3)  # log(2)
        0.693
    """
    # Not `F.binary_cross_entropy`, which autocast refuses.
    score = score.float() if score.dtype.itemsize < 4 else score
    score = score.clamp(margin, 1 - margin)
    return -(label * score.log() + (1 - label) * (1 - score).log()).mean()
