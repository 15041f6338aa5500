"""The text of methods whose prompts are published sentences, without the caches and tables of the fast form."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from zsad.clip.weights import Backbone
from zsad.prompts import published_prompts


def slow_text(backbone: Backbone, word: str, paper: str, *, raw: bool = False) -> torch.Tensor:
    """(2, D): the mean of all different sentences, each read to its end and, unless raw, normalised."""
    tower, tokenizer = backbone.clip.text, backbone.tokenizer
    means = []
    for sentences in published_prompts(paper, word):
        tokens = tokenizer.encode_batch(list(dict.fromkeys(sentences)))
        each = tower.encode(tokens, eos=tokenizer.eos)
        each = each if raw else F.normalize(each, dim=-1)
        means.append(F.normalize(each.mean(0), dim=-1))
    return torch.stack(means)
