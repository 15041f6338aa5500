"""Distances of patches to remembered ones, and which patches are worth remembering.

Features are compared by cosine: the distance is one minus it, in [0, 2]. All of it goes in chunks, so that memory does
not grow with the number of remembered patches.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_CHUNK = 1 << 24  # cosines at once


def unit(features: Tensor) -> Tensor:
    """Features (..., C) of length one, in full precision.

    Example:
        >>> unit(torch.tensor([[3.0, 4.0]])).tolist()
        [[0.6000000238418579, 0.800000011920929]]
    """
    return F.normalize(features.float(), dim=-1)


def nearest_distance(queries: Tensor, memory: Tensor) -> Tensor:
    """One minus the highest cosine to any remembered patch: (N,).

    Args:
        queries: (N, C), of length one.
        memory: (M, C), of length one, M at least 1.

    Example:
        >>> nearest_distance(torch.eye(2), torch.tensor([[1.0, 0.0]])).tolist()
        [0.0, 1.0]
    """
    best = queries.new_full((len(queries),), -2.0)
    for part in torch.split(memory, max(1, _CHUNK // max(1, len(queries)))):
        best = torch.maximum(best, (queries @ part.to(queries.dtype).T).amax(dim=1))
    return (1 - best).clamp_min(0)


def coreset(features: Tensor, count: int) -> Tensor:
    """Indices (count,) of patches that cover the others: each next one is the farthest from those taken.

    Greedy k-centre (Sener and Savarese, 2018; PatchCore, Roth et al., CVPR 2022, algorithm 1), begun at the patch
    farthest from the mean; of equal ones the first.

    Args:
        features: (M, C), of length one.
        count: patches to take, at least 1; all where there are no more.

    Example:
        >>> coreset(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), 2).tolist()
        [2, 0]
    """
    if count >= len(features):
        return torch.arange(len(features), device=features.device)
    far = 1 - features @ unit(features.mean(dim=0))
    taken = []
    for _ in range(count):
        index = int(far.argmax())
        taken.append(index)
        distance = 1 - features @ features[index]
        far = distance if len(taken) == 1 else torch.minimum(far, distance)
        far[index] = -1
    return torch.tensor(taken, device=features.device)


def lowest_mean(distances: Tensor, share: float) -> Tensor:
    """Mean of the lowest `share` of the distances (K, N) along K, at least of one: (N,).

    MuSc's interval average (Li et al., ICLR 2024, Eq. 4), whose interval is the lowest 30 %.

    Example:
        >>> lowest_mean(torch.tensor([[0.4], [0.1], [0.3], [0.2]]), 0.5).tolist()
        [0.15000000596046448]
    """
    count = max(1, int(share * len(distances)))
    return distances.topk(count, dim=0, largest=False).values.mean(dim=0)
