"""What `metrics.py` measures beside the package's metrics: other libraries, and the loop of the published evaluations.

Each takes maps (B, H, W) float32 and masks (B, H, W) bool and gives its values by name. Libraries are imported where
they are used, so that only those need be installed that are asked for.
"""

from __future__ import annotations

import numpy as np

Values = dict[str, float]


def pro_loop(maps: np.ndarray, masks: np.ndarray) -> Values:
    """The shape of the published evaluations: all maps and all regions once for each threshold."""
    from scipy import ndimage

    low, high = maps.min(), maps.max()
    normal = ~masks
    rates, overlaps = [], []
    for threshold in np.arange(low, high, (high - low) / 200):
        binary = maps > threshold
        covered = []
        for found, mask in zip(binary, masks, strict=True):
            labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
            for number, box in enumerate(ndimage.find_objects(labels), start=1):
                region = labels[box] == number
                covered.append(found[box][region].sum() / region.sum())
        rates.append(np.logical_and(normal, binary).sum() / normal.sum())
        overlaps.append(np.mean(covered))
    rate, overlap = np.array(rates), np.array(overlaps)
    kept = rate < 0.3
    rate, overlap = rate[kept][::-1], overlap[kept][::-1]
    rate = (rate - rate.min()) / (rate.max() - rate.min())
    return {"pro_anomalyclip": float(np.diff(rate) @ (overlap[1:] + overlap[:-1]) / 2)}


def sklearn_one(name: str, maps: np.ndarray, masks: np.ndarray) -> Values:
    """AUROC, AP or F1-max from scikit-learn."""
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    truth, scores = masks.ravel(), maps.ravel()
    if name != "f1":
        return {name: float({"auroc": roc_auc_score, "ap": average_precision_score}[name](truth, scores))}
    precision, recall, _ = precision_recall_curve(truth, scores)
    return {"f1_max": float((2 * precision * recall / np.maximum(precision + recall, 1e-300)).max())}


def torchmetrics_both(maps: np.ndarray, masks: np.ndarray, *, thresholds: int | None) -> Values:
    """torchmetrics' AUROC and AP, map by map."""
    import torch
    from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision

    auroc, ap = BinaryAUROC(thresholds=thresholds), BinaryAveragePrecision(thresholds=thresholds)
    for scores, mask in zip(maps, masks, strict=True):
        flat, truth = torch.from_numpy(scores).ravel(), torch.from_numpy(mask).ravel().long()
        auroc.update(flat, truth)
        ap.update(flat, truth)
    return {"auroc": float(auroc.compute()), "ap": float(ap.compute())}


def anomalib_aupro(maps: np.ndarray, masks: np.ndarray) -> Values:
    """anomalib's AUPRO, map by map."""
    import torch
    from anomalib.metrics.aupro import _AUPRO

    metric = _AUPRO(fpr_limit=0.3)
    for scores, mask in zip(maps, masks, strict=True):
        metric.update(torch.from_numpy(scores)[None], torch.from_numpy(mask)[None].int())
    return {"aupro": float(metric.compute())}


def anomalib_aupimo(maps: np.ndarray, masks: np.ndarray) -> Values:
    """The mean of anomalib's AUPIMO over the anomalous images."""
    import torch
    from anomalib.metrics.pimo.functional import aupimo_scores

    *_, classes, scores, _ = aupimo_scores(torch.from_numpy(maps), torch.from_numpy(masks))
    return {"aupimo": float(scores[classes == 1].mean())}
