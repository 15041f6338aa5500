"""Groups of alike tokens: a batched k-means without chance, and what groups say of an image.

The usual k-means draws its first centres at random and runs image by image. Here the first centres are chosen
greedily, so that the same tokens always give the same groups, and all images of a batch go together.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def kmeans(tokens: Tensor, clusters: int, *, iterations: int = 50) -> Tensor:
    """Groups (B, N) in [0, clusters) of tokens: Lloyd's algorithm from greedy first centres.

    The first centre is the token nearest to all others; each further one is the token that lowers the sum of
    squared distances most (k-means++ of Arthur and Vassilvitskii, 2007, with every token as a candidate in place
    of random draws). Groups that lose all their tokens keep their centre. Distances are taken in at least
    float32; images do not influence each other.

    Args:
        tokens: (B, N, D).
        clusters: groups wanted, at least 1; no more than N are made.
        iterations: most passes of Lloyd's algorithm; it ends earlier where no token changes its group.

    Example:
        >>> kmeans(torch.tensor([[[0.0], [9.0], [1.0], [8.0]]]), 2)
        tensor([[0, 1, 0, 1]])
    """
    tokens = tokens.float() if tokens.dtype.itemsize < 4 else tokens
    # Distances do not change with the origin; a near one keeps their digits.
    tokens = tokens - tokens.mean(dim=1, keepdim=True)
    groups = min(clusters, int(tokens.shape[1]))
    centres = tokens.gather(1, _greedy_seeds(tokens, groups).unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
    labels = _squared_distances(tokens, centres).argmin(dim=-1)
    for _ in range(iterations):
        means, counts = group_means(tokens, labels, groups)
        centres = torch.where(counts.unsqueeze(-1) > 0, means, centres)
        moved = _squared_distances(tokens, centres).argmin(dim=-1)
        # A recorded graph has no early end; to go on changes nothing any more.
        recording = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        if not recording and torch.equal(moved, labels):
            break
        labels = moved
    return labels


def group_means(values: Tensor, labels: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Means (B, clusters, C) of each group's values, 0 for empty groups, and the groups' sizes (B, clusters).

    A product with a one-hot matrix: unlike scattered sums it adds in one order, and it has a gradient.

    Args:
        values: (B, N, C).
        labels: (B, N) in [0, clusters).
        clusters: groups.

    Example:
        >>> values, labels = torch.tensor([[[1.0], [3.0], [8.0]]]), torch.tensor([[0, 0, 1]])
        >>> [part.flatten().tolist() for part in group_means(values, labels, 3)]
        [[2.0, 8.0, 0.0], [2.0, 1.0, 0.0]]
    """
    member = (labels.unsqueeze(1) == torch.arange(clusters, device=labels.device).unsqueeze(-1)).to(
        values.dtype
    )
    counts = member.sum(dim=-1)
    return member @ values / counts.clamp_min(1).unsqueeze(-1), counts


def most_anomalous_mean(tokens: Tensor, labels: Tensor, anomaly: Tensor, clusters: int) -> Tensor:
    """The mean token (B, D) of the group whose mean anomaly is highest; differentiable in the tokens.

    Args:
        tokens: (B, N, D).
        labels: (B, N) groups in [0, clusters).
        anomaly: (B, N), higher is more anomalous.
        clusters: groups.

    Example:
        >>> tokens, labels = torch.tensor([[[1.0], [3.0], [8.0]]]), torch.tensor([[0, 0, 1]])
        >>> most_anomalous_mean(tokens, labels, torch.tensor([[0.9, 0.7, 0.2]]), 2)
        tensor([[2.]])
    """
    means, counts = group_means(tokens, labels, clusters)
    height = group_means(anomaly.detach().unsqueeze(-1), labels, clusters)[0].squeeze(-1)
    chosen = height.masked_fill(counts == 0, -torch.inf).argmax(dim=-1)
    return means.gather(1, chosen.view(-1, 1, 1).expand(-1, 1, means.shape[-1])).squeeze(1)


def mean_of_means(tokens: Tensor, labels: Tensor, clusters: int) -> Tensor:
    """The mean (B, D) of the groups' mean tokens: every group counts alike, however large; empty ones do not.

    Args:
        tokens: (B, N, D).
        labels: (B, N) groups in [0, clusters).
        clusters: groups.

    Example:
        >>> mean_of_means(torch.tensor([[[1.0], [3.0], [8.0]]]), torch.tensor([[0, 0, 1]]), 2)
        tensor([[5.]])
    """
    means, counts = group_means(tokens, labels, clusters)
    return means.sum(dim=1) / (counts > 0).sum(dim=-1, keepdim=True)


def _squared_distances(tokens: Tensor, centres: Tensor) -> Tensor:
    """(B, N, K) of tokens (B, N, D) and centres (B, K, D)."""
    squares = tokens.square().sum(dim=-1).unsqueeze(-1) + centres.square().sum(dim=-1).unsqueeze(-2)
    return (squares - 2 * tokens @ centres.transpose(-1, -2)).clamp_min(0)


def _greedy_seeds(tokens: Tensor, groups: int) -> Tensor:
    """Indices (B, groups) of the first centres."""
    between = _squared_distances(tokens, tokens)
    seeds = [between.sum(dim=1).argmin(dim=-1)]
    nearest = _column(between, seeds[0])
    for _ in range(groups - 1):
        # [b, i, j]: how far token i would be from its nearest centre if token j became one.
        cost = torch.minimum(nearest.unsqueeze(-1), between).sum(dim=1)
        seeds.append(cost.argmin(dim=-1))
        nearest = torch.minimum(nearest, _column(between, seeds[-1]))
    return torch.stack(seeds, dim=-1)


def _column(between: Tensor, index: Tensor) -> Tensor:
    """(B, N): for each image b the column `index[b]` of (B, N, N)."""
    return between.gather(2, index.view(-1, 1, 1).expand(-1, between.shape[1], 1)).squeeze(-1)
