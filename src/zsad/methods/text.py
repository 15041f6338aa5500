"""Hand-written sentences through the frozen text tower, each distinct one once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from zsad.clip.model import CLIP
from zsad.clip.weights import Backbone
from zsad.prompts import published_prompts


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

    @property
    def weight(self) -> Tensor:
        """A parameter of the text tower: it tells the device and the type of embeddings."""
        return self._towers[0].text.proj

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


class ClassText:
    """A paper's hand-written sentences as two embeddings for every object class, each class once.

    Args:
        backbone: whose text tower and tokenizer are used.
        paper: whose sentences; see `zsad.prompts.published_prompts`.
        names: "data" puts the images' own classes into the sentences, "object" that word for all.
    """

    def __init__(self, backbone: Backbone, paper: str, *, names: Literal["data", "object"]) -> None:
        self._bank = SentenceBank(backbone)
        self._paper = paper
        self._names = names
        self._kept: dict[str, Tensor] = {}

    def __call__(self, words: Sequence[str] | None, *, batch: int) -> Tensor:
        """(B, 2, D) of length one, normal first, without gradients, for the classes of B images.

        Raises:
            ConfigError: the name of a class that does not fit the text tower.
        """
        known, index = distinct_words(words if self._names == "data" else None)
        # Kept for training, too: an inference tensor could not meet parameters that learn.
        with torch.inference_mode(mode=False), torch.no_grad():
            for word in known:
                if word not in self._kept:
                    self._kept[word] = self._bank.states(*published_prompts(self._paper, word))
        weight = self._bank.weight
        text = torch.stack([self._kept[word] for word in known]).to(weight.device, weight.dtype)
        return of_images(text, index, batch=batch)


def distinct_words(words: Sequence[str] | None) -> tuple[list[str], Tensor]:
    """The distinct object classes of a batch, and for each image the index (B,) of its own.

    Where all images are of one class there is no index to look up: it is empty, whatever the batch.

    Args:
        words: of `ImageFeatures.words`; None counts as "object" throughout.
    """
    given = ["object"] if words is None else words
    known = list(dict.fromkeys(given))
    index = [known.index(word) for word in given] if len(known) > 1 else []
    return known, torch.tensor(index, dtype=torch.long)


def of_images(text: Tensor, index: Tensor, *, batch: int) -> Tensor:
    """Text (B, ...) of B images, of text (W, ...) of the classes and the index that `distinct_words` gives."""
    if not len(index):
        return text.expand(batch, *text.shape[1:])
    return text[index.to(text.device)]
