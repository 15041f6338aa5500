"""Experts as points of a plane: how compact each pool is, and how far pools lie apart.

The embeddings themselves are projected, not their directions: among unit vectors of many dimensions all pools look
equally wide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from zsad.errors import ConfigError

Projection = Literal["pca", "tsne"]
Array = npt.NDArray[np.float64]


@dataclass(slots=True)
class ExpertMap:
    """The experts of one layer in a plane.

    Attributes:
        layer: its name.
        points: for each pool (E, 2) coordinates.
        explained: shares of the variance along both axes; None for t-SNE, which keeps neighbours, not distances.
        spread: for each pool the root mean square distance of its experts from their mean, in the full space.
        cosine: mean cosine of two different experts within each pool, and, as "between", of two pools.
    """

    layer: str
    points: dict[str, Array]
    explained: tuple[float, float] | None
    spread: dict[str, float]
    cosine: dict[str, float]


def map_experts(
    embeddings: Mapping[str, Array], layers: tuple[str, ...], *, projection: Projection = "pca"
) -> list[ExpertMap]:
    """Return a map for each layer, of all pools' experts together (PromptMoE, figure 8).

    Args:
        embeddings: for each pool (L, E, D), all of one L and D.
        layers: names of the L layers.
        projection: principal components, whose distances mean something, or the paper's t-SNE (needs scikit-learn).

    Raises:
        ConfigError: t-SNE without scikit-learn or of fewer than four experts.
    """
    maps = []
    for index, layer in enumerate(layers):
        vectors_of = {
            pool: np.asarray(vectors[index], dtype=np.float64) for pool, vectors in embeddings.items()
        }
        rows = np.concatenate(list(vectors_of.values()))
        plane, explained = principal_plane(rows) if projection == "pca" else (_neighbours(rows), None)
        ends = np.cumsum([len(vectors) for vectors in vectors_of.values()])[:-1]
        points = dict(zip(vectors_of, np.split(plane, ends), strict=True))
        spread = {pool: _spread(vectors) for pool, vectors in vectors_of.items()}
        maps.append(ExpertMap(layer, points, explained, spread, cosines(vectors_of)))
    return maps


def _spread(rows: Array) -> float:
    return float(np.sqrt(rows.var(axis=0).sum()))


def _unit(rows: Array) -> Array:
    unit: Array = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit


def principal_plane(rows: Array) -> tuple[Array, tuple[float, float]]:
    """Return coordinates (n, 2) of rows (n, D) along their two principal axes, and the shares of the variance there.

    An axis points to where its greatest loading is positive, so that the map is the same on every machine.
    """
    centred = rows - rows.mean(axis=0)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    kept = min(2, len(axes))
    signs = np.sign(axes[np.arange(kept), np.abs(axes[:kept]).argmax(axis=1)])
    points = np.zeros((len(rows), 2))
    points[:, :kept] = centred @ (axes[:kept] * np.where(signs == 0, 1, signs)[:, None]).T
    variance = np.zeros(2)
    variance[:kept] = sizes[:kept] ** 2 / max(float((sizes**2).sum()), 1e-300)
    return points, (float(variance[0]), float(variance[1]))


def _neighbours(rows: Array) -> Array:
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ConfigError(
            "t-SNE needs scikit-learn: pip install scikit-learn, or take --projection pca"
        ) from error
    if len(rows) < 4:
        raise ConfigError(f"t-SNE of {len(rows)} experts says nothing: take --projection pca")
    perplexity = min(30.0, (len(rows) - 1) / 3)
    tsne = TSNE(n_components=2, init="pca", perplexity=perplexity, random_state=0)
    return np.asarray(tsne.fit_transform(rows), dtype=np.float64)


def cosines(pools: Mapping[str, Array]) -> dict[str, float]:
    """Return the mean cosine of two different experts within each pool of (E, D), and "between" two pools."""
    unit = {pool: _unit(vectors) for pool, vectors in pools.items()}
    means = {}
    for pool, vectors in unit.items():
        count = len(vectors)
        if count > 1:
            means[pool] = float(((vectors @ vectors.T).sum() - (vectors**2).sum()) / (count * (count - 1)))
    names = list(unit)
    products = [
        float((unit[first] @ unit[second].T).mean())
        for index, first in enumerate(names)
        for second in names[index + 1 :]
    ]
    if products:
        means["between"] = float(np.mean(products))
    return means
