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


def _trapezoid_up_to(x, y, limit):
    """Trapezoids under points with x growing, the last one cut at the limit by interpolation."""
    area = 0.0
    for k in range(1, len(x)):
        if x[k] <= limit:
            area += (x[k] - x[k - 1]) * (y[k] + y[k - 1]) / 2
        elif x[k - 1] < limit:
            height = y[k - 1] + (y[k] - y[k - 1]) * (limit - x[k - 1]) / (x[k] - x[k - 1])
            area += (limit - x[k - 1]) * (height + y[k - 1]) / 2
    return area


def aupro_mvtec(maps, masks, *, limit=0.3):
    """MVTec AD's evaluation: each pixel, from the highest score down, adds 1 / its component's size to the overlap or
    1 / normal pixels to the rate; of pixels with one score the last counts; (0, 0) and (1, 1) at the ends."""
    pixels, components = [], 0
    for score_map, mask in zip(maps, masks, strict=True):
        labels, count = label(mask)
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        components += count
        for score, number in zip(np.ravel(score_map), labels.ravel(), strict=True):
            pixels.append((score, 1 / sizes[number] if number else 0.0, int(number == 0)))
    pixels.sort(key=lambda pixel: -pixel[0])
    normals = sum(pixel[2] for pixel in pixels)
    x, y, rate, overlap = [0.0], [0.0], 0, 0.0
    for k, (score, gain, false) in enumerate(pixels):
        rate, overlap = rate + false, overlap + gain
        if k + 1 == len(pixels) or pixels[k + 1][0] != score:
            x.append(min(rate / normals, 1.0))
            y.append(min(overlap / components, 1.0))
    return _trapezoid_up_to([*x, 1.0], [*y, 1.0], limit) / limit


def aupro_mvtec3d(maps, masks, *, limit=0.3, thresholds=100):
    """MVTec 3D-AD's evaluation: thresholds are normal scores at equal distances in their order, > is anomalous."""
    components = [np.asarray(maps[k])[tuple(coords.T)] for k, coords in regions(masks)]
    normal = np.sort(
        np.concatenate([np.asarray(m)[~np.asarray(k, bool)] for m, k in zip(maps, masks, strict=True)])
    )
    x, y = [1.0], [1.0]
    for position in np.linspace(0, len(normal) - 1, num=thresholds, dtype=int):
        x.append(1.0 - (position + 1) / len(normal))
        y.append(float(np.mean([(scores > normal[position]).mean() for scores in components])))
    return _trapezoid_up_to(x[::-1], y[::-1], limit) / limit


def aupimo(maps, masks, *, bounds=(1e-5, 1e-4), steps=20_000):
    """Mean overlap of each image over log-equidistant rates of the normal images' pixels, ties broken at random.

    At rate x a tie group of the normal images' rates (a, b] lets a share (x - a) / (b - a) of its pixels pass.
    """
    clean = np.concatenate([np.ravel(m) for m, k in zip(maps, masks, strict=True) if not np.any(k)] or [[]])
    edges = np.geomspace(*bounds, steps + 1)
    rates = np.sqrt(edges[1:] * edges[:-1])
    areas = []
    for score_map, mask in zip(maps, masks, strict=True):
        scores = np.asarray(score_map)[np.asarray(mask, bool)]
        if not scores.size or not clean.size:
            areas.append(math.nan)
            continue
        overlap = np.zeros(steps)
        for score in scores:
            a, b = (clean > score).mean(), (clean >= score).mean()
            overlap += np.clip((rates - a) / (b - a), 0, 1) if b > a else rates > a
        areas.append(float(overlap.mean() / scores.size))
    return np.array(areas)
