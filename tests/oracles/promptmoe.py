"""Slow forms of PromptMoE, one loop for every index of its formulas, and separate 77-token text passes."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def slow_attention(
    queries: Tensor, key: Tensor, value: Tensor, tokens: Tensor, *, heads: int, scale: float
) -> Tensor:
    """Eq. 2 of one image, layer and state with K and V in full: (D,) of q (Q, D), W (C, D), tokens (N, C)."""
    width = queries.shape[-1] // heads
    projected_key, projected_value = tokens @ key, tokens @ value
    parts = []
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        scores = queries[:, own] @ projected_key[:, own].T * scale
        parts.append(scores.softmax(-1) @ projected_value[:, own])
    return torch.cat(parts, dim=-1).mean(0)


def slow_gates(logits: Tensor, k: int) -> Tensor:
    """Softmax over the k largest of (E,) numbers, zero elsewhere."""
    logits = logits.detach()
    ranked = sorted(range(len(logits)), key=lambda index: -float(logits[index]))[:k]
    total = sum(math.exp(float(logits[index])) for index in ranked)
    gates = torch.zeros_like(logits)
    for index in ranked:
        gates[index] = math.exp(float(logits[index])) / total
    return gates


def slow_balance(logits: Tensor) -> float:
    """Eq. 4 without alpha of logits (B, L, E)."""
    batch, layers, experts = logits.shape
    total = 0.0
    for layer in range(layers):
        for expert in range(experts):
            mean = sum(float(logits[image, layer].softmax(-1)[expert]) for image in range(batch)) / batch
            total += experts * mean**2
    return total


def slow_decouple(pool: Tensor) -> float:
    """Eq. 5 without beta of a pool (L, E, M, D)."""
    total = 0.0
    for experts in pool:
        means = [expert.mean(0) / expert.mean(0).norm() for expert in experts]
        for i, first in enumerate(means):
            for j, second in enumerate(means):
                total += (float(first @ second) - (i == j)) ** 2
    return total


def slow_focal(maps: Tensor, mask: Tensor) -> float:
    """The two-channel focal loss of one map (H, W), from a one-hot mask, as the field's code has it."""
    channels = torch.stack([1 - maps, maps])
    one_hot = torch.stack([1 - mask, mask]).clamp(1e-5, 1 - 1e-5)
    probability = (one_hot * channels).sum(0) + 1e-5
    return float((-((1 - probability) ** 2) * probability.log()).mean())


def slow_dice(maps: Tensor, mask: Tensor) -> float:
    """1 - (2 intersection + 1) / (sum + sum + 1) of one map (H, W)."""
    return float(1 - (2 * (maps * mask).sum() + 1) / (maps.sum() + mask.sum() + 1))


def slow_text(method, prompts: list[Tensor]) -> Tensor:
    """Embeddings (P, D) of prompts (S, D_t) without EOS cut: each padded to the full context, one pass each."""
    tower = method.clip.text
    context = tower.config.context_length
    rows = []
    for prompt in prompts:
        padded = torch.zeros(1, context, prompt.shape[-1], dtype=prompt.dtype)
        padded[0, : len(prompt)] = prompt
        x = padded + tower.position_embedding
        for block in tower.blocks:
            x = block(x, causal=True)
        rows.append(tower.ln_final(x)[0, len(prompt) - 1] @ tower.proj)
    return torch.stack(rows)


def slow_texts(method, features, tokenizer) -> tuple[Tensor, Tensor]:
    """Text embeddings (B, L, 2, D) and routing logits (B, 2, L, E) of the default prompting, index by index."""
    config, tower = method.config, method.clip.text
    words = [config.class_word] * len(features.cls) if config.names == "object" else features.object_names
    stop = torch.tensor([*tokenizer.encode(".")[1:-1], tokenizer.eos])
    sos = tower.embed(torch.tensor([tokenizer.sos]))
    width = method.context.shape[-1]
    scale = (width / config.heads) ** -0.5
    attention, router = method.attention, method.router
    texts, logits = [], []
    for patches, cls, name in zip(features.patches, features.cls, words, strict=True):
        word = torch.tensor(tokenizer.encode(name)[1:-1])
        for layer in range(len(config.layers)):
            segments = []
            for state, length in enumerate((config.normal_tokens, config.abnormal_tokens)):
                own = 0 if config.sharing in ("attention", "both") else state
                tokens = torch.cat([patches[layer], cls[None]])
                read = slow_attention(
                    attention.queries[own, layer],
                    attention.key[own, layer],
                    attention.value[own, layer],
                    tokens,
                    heads=config.heads,
                    scale=scale,
                )
                hidden = (read @ router.first[state, layer] + router.first_bias[state, layer]).relu()
                z = hidden @ router.second[state, layer] + router.second_bias[state, layer]
                logits.append(z)
                pool = method.pools[0 if config.sharing in ("pool", "both") else state][layer]
                gates = slow_gates(z, config.top_k)
                segments.append(sum(gate * expert for gate, expert in zip(gates, pool, strict=True))[:length])
            tail = [tower.embed(word), method.context[0], tower.embed(stop)]
            texts.append(torch.cat([sos, segments[0], *tail]))
            texts.append(torch.cat([sos, *segments, *tail]))
    batch, layers = len(features.cls), len(config.layers)
    text = F.normalize(slow_text(method, texts), dim=-1).view(batch, layers, 2, -1)
    return text, torch.stack(logits).view(batch, layers, 2, -1).transpose(1, 2)


def slow_output(method, features, tokenizer) -> tuple[Tensor, Tensor, Tensor]:
    """The layers' maps (B, L, H, W), scores (B,) by Eqs. 6 and 7, and routing logits, at the canonical size."""
    config = method.config
    text, routing = slow_texts(method, features, tokenizer)
    patches, cls = features.patches, features.cls
    maps, scores = [], []
    for image in range(len(cls)):
        layers = []
        for layer in range(len(config.layers)):
            cosine = F.normalize(patches[image, layer], dim=-1) @ text[image, layer].T
            grid = cosine.T.reshape(1, 2, *features.grid)
            up = F.interpolate(grid, size=method.map_spec.size, mode="bilinear", align_corners=False)
            layers.append((up / config.tau).softmax(dim=1)[0, 1])
        mean = torch.stack(layers).mean(0)
        whole = (F.normalize(cls[image], dim=-1) @ text[image, -1].T / config.tau_prime).softmax(-1)[1]
        maps.append(torch.stack(layers))
        scores.append((mean.max() + whole) / 2)
    return torch.stack(maps), torch.stack(scores), routing


@torch.no_grad()
def slow_losses(method, features, tokenizer, masks: Tensor, labels: Tensor) -> dict[str, float]:
    """The terms of Eq. 8, or with Dice and Focal of every layer and Dice of both channels where so set."""
    config = method.config
    maps, scores, routing = slow_output(method, features, tokenizer)
    terms = {"dice": 0.0, "focal": 0.0, "classify": 0.0}
    for own, score, mask, label in zip(maps, scores, masks, labels, strict=True):
        for layer in own if config.segmentation == "per_layer" else [own.mean(0)]:
            terms["dice"] += slow_dice(layer, mask) / len(maps)
            if config.dice == "both":
                terms["dice"] += slow_dice(1 - layer, 1 - mask) / len(maps)
            terms["focal"] += slow_focal(layer, mask) / len(maps)
        likelihood = float(score if label else 1 - score)
        terms["classify"] -= math.log(min(max(likelihood, 1e-6), 1 - 1e-6)) / len(maps)
    terms["balance"] = config.alpha * sum(slow_balance(routing[:, state]) for state in (0, 1))
    terms["decouple"] = config.beta * sum(slow_decouple(pool) for pool in method.pools)
    return terms
