"""Slow forms of CLIP's towers: loops and explicit attention, written from the formulas."""

from __future__ import annotations

import html
import unicodedata
from itertools import pairwise

import torch
from torch import Tensor

from zsad.clip.blocks import Block
from zsad.clip.model import CLIP


def randomised(clip: CLIP, *, seed: int) -> CLIP:
    """The model with every tensor random (norms and biases too), so that no term can hide behind a 0 or a 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in clip.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            if parameter.ndim == 0:
                continue
            if parameter.ndim == 1:
                parameter.copy_(1 + 0.2 * noise if parameter.mean() == 1 else 0.2 * noise)
            else:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
    return clip.freeze()


def explicit_attention(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V with the score matrix in memory, as the published codes do; (B, heads, S, d)."""
    scores = (query @ key.transpose(-2, -1)) * query.shape[-1] ** -0.5
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    return scores.softmax(dim=-1) @ value


def looped_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same, one head and one query at a time."""
    result = torch.zeros_like(query)
    for b in range(query.shape[0]):
        for head in range(query.shape[1]):
            for row in range(query.shape[2]):
                scores = torch.stack([query[b, head, row] @ k for k in key[b, head]]) / query.shape[-1] ** 0.5
                weights = scores.exp() / scores.exp().sum()
                result[b, head, row] = sum(w * v for w, v in zip(weights, value[b, head], strict=True))
    return result


def heads_of(block: Block, x: Tensor) -> list[Tensor]:
    """Queries, keys and values (B, heads, S, d) of normalised tokens (B, S, D)."""
    batch, length, width = x.shape
    joined = x @ block.attn.in_proj.weight.T + block.attn.in_proj.bias
    heads = block.attn.heads
    return [
        joined[..., part * width : (part + 1) * width]
        .reshape(batch, length, heads, width // heads)
        .permute(0, 2, 1, 3)
        for part in range(3)
    ]


def output_of(block: Block, mixed: Tensor) -> Tensor:
    """Heads (B, heads, S, d) joined and projected, (B, S, D)."""
    batch, heads, length, depth = mixed.shape
    joined = mixed.permute(0, 2, 1, 3).reshape(batch, length, heads * depth)
    return joined @ block.attn.out_proj.weight.T + block.attn.out_proj.bias


def activate(block: Block, x: Tensor) -> Tensor:
    """The activation from its formula."""
    if isinstance(block.act, torch.nn.GELU):
        return x * 0.5 * (1 + torch.erf(x / 2**0.5))
    return x * torch.sigmoid(1.702 * x)


def slow_block(block: Block, x: Tensor, *, allowed: Tensor | None = None) -> Tensor:
    """A pre-norm block from its formula."""
    x = x + output_of(block, explicit_attention(*heads_of(block, block.ln_1(x)), allowed))
    return x + block.proj(activate(block, block.fc(block.ln_2(x))))


def slow_value_value(
    clip: CLIP, pixels: Tensor, *, start: int, attention=explicit_attention
) -> tuple[list[Tensor], Tensor]:
    """AnomalyCLIP's dual path as its description goes: the branch behind each block, and the last class token.

    Two attentions per block from `start` on (counted from 1), each with its own score matrix.
    """
    x, _ = clip.visual.embed(pixels)
    branch, taps = None, []
    for number, block in enumerate(clip.visual.blocks, start=1):
        if number == start:
            branch = x.clone()
        if branch is not None:
            _, _, value = heads_of(block, block.ln_1(x))
            branch = branch + output_of(block, attention(value, value, value))
            taps.append(branch.clone())
        x = slow_block(block, x)
    return taps, x[:, 0]


def slow_text(clip: CLIP, embeddings: Tensor, eos: Tensor, deep: Tensor | None = None) -> Tensor:
    """The whole context through all blocks under a causal mask, then the rows at EOS (P, D)."""
    tower = clip.text
    length = embeddings.shape[1]
    x = embeddings + tower.position_embedding[:length]
    allowed = torch.ones(length, length, dtype=torch.bool).tril()
    for index, block in enumerate(tower.blocks):
        if deep is not None and 1 <= index <= len(deep):
            x = x.clone()
            for position, token in enumerate(deep[index - 1], start=1):
                x[:, position] = token
        x = slow_block(block, x, allowed=allowed)
    rows = torch.stack([tower.ln_final(x)[prompt, end] for prompt, end in enumerate(eos.tolist())])
    return rows @ tower.proj


def slow_bpe(text: str, vocabulary: dict[str, int], ranks: dict[tuple[str, str], int]) -> list[int]:
    """CLIP's byte-pair encoding as its paper's code defines it, one merge at a time; needs `regex`."""
    import regex

    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in letters:
            letters[byte] = chr(0x100 + len(letters) - len(printable))
    text = unicodedata.normalize("NFC", html.unescape(html.unescape(text)))
    # Letter by letter, as fast tokenizers do: Python's own lower() would make a final sigma of a capital one.
    text = "".join(letter.lower() for letter in regex.sub(r"\s+", " ", text).strip())
    ids = []
    for word in regex.findall(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", text):
        pieces = [letters[byte] for byte in word.encode("utf-8")]
        pieces[-1] += "</w>"
        while len(pieces) > 1:
            pairs = list(pairwise(pieces))
            best = min(pairs, key=lambda pair: ranks.get(pair, 10**9))
            if best not in ranks:
                break
            merged, index = [], 0
            while index < len(pieces):
                if tuple(pieces[index : index + 2]) == best:
                    merged.append(pieces[index] + pieces[index + 1])
                    index += 2
                else:
                    merged.append(pieces[index])
                    index += 1
            pieces = merged
        ids += [vocabulary[piece] for piece in pieces]
    return ids
