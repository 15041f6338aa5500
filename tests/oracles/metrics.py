"""Slow forms of the metrics, from their definitions: loops over pairs, thresholds, regions and pixels."""

from __future__ import annotations

import math
from collections import deque

import numpy as np
from scipy import ndimage


def auroc(scores, labels):
    """Share of correctly ordered pairs, ties one half."""
    positives = [s for s, y in zip(scores, labels, strict=True) if y]
    negatives = [s for s, y in zip(scores, labels, strict=True) if not y]
    if not positives or not negatives:
        return math.nan
    won = sum((p > n) + 0.5 * (p == n) for p in positives for n in negatives)
    return won / (len(positives) * len(negatives))


def _confusion(scores, labels):
    """(true positives, false positives) for every distinct threshold, from the highest down."""
    for threshold in sorted(set(scores), reverse=True):
        picked = [y for s, y in zip(scores, labels, strict=True) if s >= threshold]
        yield sum(picked), len(picked) - sum(picked)


def average_precision(scores, labels):
    """Sum over thresholds of the gained recall times the precision."""
    positives = sum(labels)
    if positives in (0, len(labels)):
        return math.nan
    total, before = 0.0, 0
    for hits, misses in _confusion(scores, labels):
        total += (hits - before) / positives * hits / (hits + misses)
        before = hits
    return total


def f1_max(scores, labels):
    """Largest harmonic mean of precision and recall over thresholds."""
    positives = sum(labels)
    if positives in (0, len(labels)):
        return math.nan
    best = 0.0
    for hits, misses in _confusion(scores, labels):
        if hits:
            precision, recall = hits / (hits + misses), hits / positives
            best = max(best, 2 * precision * recall / (precision + recall))
    return best


def regions(masks):
    """Coordinates (k, 2) of every 8-connected region of every mask, as (map number, coordinates)."""
    for number, mask in enumerate(masks):
        labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
        for region in range(1, count + 1):
            yield number, np.argwhere(labels == region)


def _overlap(binary, found):
    covered = [binary[number][tuple(coords.T)].sum() / len(coords) for number, coords in found]
    return float(np.mean(covered))


def aupro(maps, masks, *, limit=0.3):
    """Trapezoids under (false positive rate, mean overlap), every score a threshold, cut at the limit."""
    found = list(regions(masks))
    normal = [~np.asarray(mask, bool) for mask in masks]
    normals = sum(int(part.sum()) for part in normal)
    if not found or not normals:
        return math.nan
    rates, overlaps = [0.0], [0.0]
    for threshold in np.unique(np.concatenate([np.ravel(m) for m in maps]))[::-1]:
        binary = [m >= threshold for m in maps]
        rates.append(sum(int((b & n).sum()) for b, n in zip(binary, normal, strict=True)) / normals)
        overlaps.append(_overlap(binary, found))
    area = 0.0
    for k in range(1, len(rates)):
        left, right = rates[k - 1], rates[k]
        if left >= limit or right == left:
            continue
        stop = min(right, limit)
        height = overlaps[k - 1] + (overlaps[k] - overlaps[k - 1]) * (stop - left) / (right - left)
        area += (stop - left) * (overlaps[k - 1] + height) / 2
    return area / limit


def pro_anomalyclip(maps, masks, *, limit=0.3, thresholds=200):
    """A full pass over all maps and all regions for each of 200 equidistant thresholds."""
    maps = np.asarray(maps)
    found = list(regions(masks))
    normal = ~np.asarray(masks, bool)
    low, high = maps.min(), maps.max()
    if not found or not normal.any() or low == high:
        return math.nan
    rates, overlaps = [], []
    for threshold in np.arange(low, high, (high - low) / thresholds):
        binary = maps > threshold
        rates.append((binary & normal).sum() / normal.sum())
        overlaps.append(_overlap(binary, found))
    rates, overlaps = np.array(rates), np.array(overlaps)
    kept = rates < limit
    rates, overlaps = rates[kept], overlaps[kept]
    if len(set(rates)) < 2:
        return math.nan
    rates = (rates - rates.min()) / (rates.max() - rates.min())
    return -float(np.trapezoid(overlaps, rates))


def label(mask):
    """Regions by flooding from every pixel, numbered in the order of their first pixel."""
    mask = np.asarray(mask, bool)
    labels, count = np.zeros(mask.shape, int), 0
    for start in map(tuple, np.argwhere(mask)):
        if labels[start]:
            continue
        count += 1
        queue = deque([start])
        labels[start] = count
        while queue:
            y, x = queue.popleft()
            for v in range(max(y - 1, 0), min(y + 2, mask.shape[0])):
                for u in range(max(x - 1, 0), min(x + 2, mask.shape[1])):
                    if mask[v, u] and not labels[v, u]:
                        labels[v, u] = count
                        queue.append((v, u))
    return labels, count
