"""The bundled model's own small vocabulary: byte-level BPE over class names, captions and prompt templates."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from zsad.clip.tokenizer import EOS, SOS, Tokenizer

WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
SIZE = 4096


def train(texts: Iterable[str], path: Path) -> Tokenizer:
    """Learns the vocabulary, writes `tokenizer.json` to `path` and reads it back."""
    backend = Backend(models.BPE(end_of_word_suffix="</w>"))
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=[SOS, EOS],
        initial_alphabet=sorted(letters),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    described = json.loads(backend.to_str())
    vocabulary = described["model"]["vocab"]
    # Bytes that no training word ends with have no ending form yet: without one they would be lost.
    for letter in sorted(letters):
        vocabulary.setdefault(f"{letter}</w>", len(vocabulary))
    backend = Backend.from_str(json.dumps(described))
    path.parent.mkdir(parents=True, exist_ok=True)
    backend.save(str(path))
    return Tokenizer.from_file(path)
