"""Hand-written sentences through the frozen text tower, each distinct one once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from zsad.clip.model import CLIP
from zsad.clip.weights import Backbone


class SentenceBank:
    """Embeddings of sentences by the frozen text tower, kept for as long as the bank lives.

    Args:
        backbone: whose text tower and tokenizer are used.
    """

    def __init__(self, backbone: Backbone) -> None:
        # In a list, so that a method that holds the bank does not register the towers twice.
        self._towers: list[CLIP] = [backbone.clip]
        self._tokenizer = backbone.tokenizer
        self._kept: dict[tuple[str, bool], Tensor] = {}

    @torch.no_grad()
    def embed(self, sentences: Sequence[str], *, projected: bool = True) -> Tensor:
        """Embeddings (P, D), not normalised, on the tower's device; without `projected` those (P, D_t) before
        the final projection.

        Raises:
            ConfigError: a sentence that does not fit the text tower.
        """
        tower = self._towers[0].text
        missing = [text for text in dict.fromkeys(sentences) if (text, projected) not in self._kept]
        if missing:
            ids = self._tokenizer.encode_batch(missing, context_length=tower.config.context_length)
            found = tower.encode(ids.to(tower.proj.device), eos=self._tokenizer.eos, project=projected)
            # Kept in training, too: an inference tensor could not meet parameters that learn.
            with torch.inference_mode(mode=False):
                for text, row in zip(missing, found, strict=True):
                    self._kept[text, projected] = row.clone()
        rows = torch.stack([self._kept[text, projected] for text in sentences])
        return rows.to(tower.proj.device, tower.proj.dtype)

    def states(self, normal: Sequence[str], abnormal: Sequence[str]) -> Tensor:
        """(2, D): for each state the normalised mean of its sentences' normalised embeddings."""
        means = [
            F.normalize(self.embed(sentences).float(), dim=-1).mean(dim=0) for sentences in (normal, abnormal)
        ]
        return F.normalize(torch.stack(means), dim=-1).to(self._towers[0].text.proj.dtype)


def distinct_words(words: Sequence[str] | None, *, batch: int) -> tuple[list[str], Tensor]:
    """The distinct object classes of a batch, and for each image the index (B,) of its own.

    Args:
        words: of `ImageFeatures.words`; None counts as "object" throughout.
        batch: images B.
    """
    given = list(words) if words is not None else ["object"] * batch
    known = list(dict.fromkeys(given))
    return known, torch.tensor([known.index(word) for word in given])
