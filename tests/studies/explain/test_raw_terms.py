"""What a training without an auxiliary loss logs of it, so that curves can be compared."""

from __future__ import annotations

import torch

from zsad.clip.weights import load_backbone
from zsad.methods.registry import build
from zsad.nn.moe import decouple_loss
from zsad.train.distributed import LossModule
from zsad.train.samples import TrainingBatch


def test_term_of_weight_zero_is_logged_and_not_descended(toy) -> None:
    method = build(
        "promptmoe", {"experts": 4, "top_k": 2, "heads": 4, "beta": 0}, load_backbone(toy.backbone)
    )
    method.reset_parameters(torch.Generator().manual_seed(3))
    with torch.no_grad():
        features = method.features(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(4)))
    masks = torch.zeros(2, 64, 64)
    masks[1, 8:30, 8:30] = 1
    total, terms = LossModule(method)(TrainingBatch(features, masks, torch.tensor([0.0, 1.0])))
    raw = terms.pop("raw_decouple")
    assert "raw_balance" not in terms and not raw.requires_grad and terms["decouple"] == 0
    torch.testing.assert_close(raw, sum(decouple_loss(pool) for pool in method.pools).detach())
    torch.testing.assert_close(total, torch.stack(list(terms.values())).sum())


def test_expert_embeddings_are_mean_tokens(toy) -> None:
    for sharing, names in (("none", ("normal", "abnormal")), ("pool", ("shared",))):
        settings = {"experts": 4, "top_k": 2, "heads": 4, "sharing": sharing}
        method = build("promptmoe", settings, load_backbone(toy.backbone))
        found = method.expert_embeddings()
        assert tuple(found) == names
        for pool, vectors in zip(method.pools, found.values(), strict=True):
            assert vectors.shape == (3, 4, 16) and not vectors.requires_grad
            torch.testing.assert_close(vectors[1, 2], pool[1, 2].detach().sum(0) / pool.shape[2])
