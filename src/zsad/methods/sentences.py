"""Embeddings of hand-written sentences by the frozen text tower, each distinct one once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from zsad.clip.model import CLIP
from zsad.clip.weights import Backbone
from zsad.methods.similarity import distinct_names, of_images

Mean = Literal["normalised", "raw"]


class SentenceBank:
    """Embeddings of sentences by the frozen text tower, cached for as long as the bank lives.

    Args:
        backbone: whose text tower and tokenizer are used.
    """

    def __init__(self, backbone: Backbone) -> None:
        # In a list, so that a method that holds the bank does not register the towers twice.
        self._towers: list[CLIP] = [backbone.clip]
        self._tokenizer = backbone.tokenizer
        self._embeddings: dict[tuple[str, bool], Tensor] = {}

    @property
    def weight(self) -> Tensor:
        """Parameter of the text tower, of the device and type of the embeddings."""
        return self._towers[0].text.proj

    @torch.no_grad()
    def embed(self, sentences: Sequence[str], *, projected: bool = True) -> Tensor:
        """Embeddings (P, D), not normalised, on the tower's device; without `projected` those (P, D_t) before
        the final projection.

        Raises:
            ConfigError: a sentence that does not fit the text tower.
        """
        tower = self._towers[0].text
        missing = [text for text in dict.fromkeys(sentences) if (text, projected) not in self._embeddings]
        if missing:
            ids = self._tokenizer.encode_batch(missing, context_length=tower.config.context_length)
            encoded = tower.encode(ids.to(tower.proj.device), eos=self._tokenizer.eos, project=projected)
            # Also in training: an inference tensor could not meet parameters that learn.
            with torch.inference_mode(mode=False):
                for text, row in zip(missing, encoded, strict=True):
                    self._embeddings[text, projected] = row.clone()
        rows = torch.stack([self._embeddings[text, projected] for text in sentences])
        return rows.to(tower.proj.device, tower.proj.dtype)

    def states(self, normal: Sequence[str], abnormal: Sequence[str], *, mean: Mean = "normalised") -> Tensor:
        """Normalised means (2, D) of each state's sentence embeddings, of length one first, or as they are ("raw")."""
        means = []
        for sentences in (normal, abnormal):
            embeddings = self.embed(sentences).float()
            means.append((embeddings if mean == "raw" else F.normalize(embeddings, dim=-1)).mean(dim=0))
        return F.normalize(torch.stack(means), dim=-1).to(self._towers[0].text.proj.dtype)


class ClassText:
    """Hand-written sentences as two embeddings for every object class, each class once.

    Args:
        backbone: whose text tower and tokenizer are used.
        sentences: normal and abnormal ones of an object's name; see `zsad.prompts`.
        names: "data" puts the images' own classes into the sentences, "object" `word` for all.
        word: such as "object".
        mean: as in `SentenceBank.states`.
    """

    def __init__(
        self,
        backbone: Backbone,
        sentences: Callable[[str], tuple[Sequence[str], Sequence[str]]],
        *,
        names: Literal["data", "object"],
        word: str = "object",
        mean: Mean = "normalised",
    ) -> None:
        self._bank = SentenceBank(backbone)
        self._sentences = sentences
        self._names = None if names == "data" else (word,)
        self._mean = mean
        self._states: dict[str, Tensor] = {}

    def __call__(self, object_names: Sequence[str] | None, *, batch: int) -> Tensor:
        """Text (B, 2, D) of length one, normal first, without gradients, for the classes of B images.

        Raises:
            ConfigError: the name of a class that does not fit the text tower.
        """
        distinct, index = distinct_names(self._names or object_names)
        # Also for training: an inference tensor could not meet parameters that learn.
        with torch.inference_mode(mode=False), torch.no_grad():
            for name in distinct:
                if name not in self._states:
                    self._states[name] = self._bank.states(*self._sentences(name), mean=self._mean)
        weight = self._bank.weight
        text = torch.stack([self._states[name] for name in distinct]).to(weight.device, weight.dtype)
        return of_images(text, index, batch=batch)
