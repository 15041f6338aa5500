"""CLIP's byte-pair tokenizer, over the `tokenizers` library and the vocabulary that OpenAI published."""

from __future__ import annotations

import gzip
import html
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from tokenizers import Regex, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as _Backend
from torch import Tensor

from zsad.errors import BackboneError, ConfigError

SOS = "<|startoftext|>"
EOS = "<|endoftext|>"
_MERGES = Path(__file__).resolve().parent.parent / "assets" / "clip_bpe" / "merges.txt.gz"
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


def clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Token ids and the 48,894 merges of OpenAI's CLIP, best merge first.

    Ids are, in this order: the 256 bytes, the 256 bytes that end a word, the merges, SOS, EOS: 49,408.
    """
    lines = gzip.decompress(_MERGES.read_bytes()).decode("utf-8").split("\n")
    merges = [(first, second) for first, second in (line.split(" ") for line in lines)]
    letters = _byte_letters()
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges), SOS, EOS]
    return {token: index for index, token in enumerate(tokens)}, merges


def _byte_letters() -> list[str]:
    """The letters that stand for the 256 bytes: printable Latin-1 first, the rest moved up behind U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in printable] + [chr(0x100 + index) for index in range(256 - len(printable))]


@lru_cache(maxsize=1)
def _clip_backend() -> _Backend:
    vocabulary, merges = clip_vocabulary()
    backend = _Backend(
        models.BPE(vocab=vocabulary, merges=merges, unk_token=EOS, end_of_word_suffix="</w>", fuse_unk=False)
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.add_special_tokens([SOS, EOS])
    return backend


class Tokenizer:
    """Text to token ids, SOS first and EOS last.

    HTML entities are undone twice, as OpenAI's tokenizer does; composition (NFC), white space and case are
    cleaned as Hugging Face's fast tokenizer does. OpenAI's repair of broken encodings (ftfy) is left out,
    and a capital sigma at a word's end becomes "σ" rather than "ς".

    Args:
        backend: a tokenizer of the `tokenizers` library whose vocabulary has SOS and EOS; None: CLIP's own.

    Example:
        >>> Tokenizer().encode("a photo of a cat")
        [49406, 320, 1125, 539, 320, 2368, 49407]
    """

    def __init__(self, backend: _Backend | None = None) -> None:
        self._backend = _clip_backend() if backend is None else backend
        sos, eos = self._backend.token_to_id(SOS), self._backend.token_to_id(EOS)
        if sos is None or eos is None:
            raise BackboneError(
                f"the tokenizer's vocabulary lacks {SOS} or {EOS}, so it is not one of CLIP's kind"
            )
        self.sos: int = sos
        self.eos: int = eos

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Reads a `tokenizer.json`.

        Raises:
            BackboneError: the file is missing, broken, or lacks SOS or EOS.
        """
        try:
            backend = _Backend.from_str(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise BackboneError(f"cannot read the tokenizer {path}: {error.strerror}") from None
        except Exception as error:  # the library raises bare exceptions of its own
            reason = " ".join(str(error).split())
            raise BackboneError(
                f"{path} is not a tokenizer.json that can be read ({reason}); fetch or export it again"
            ) from None
        backend.no_padding()
        backend.no_truncation()
        return cls(backend)

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return int(self._backend.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        """Ids of a text of any length, SOS first and EOS last."""
        cleaned = html.unescape(html.unescape(text))
        return [self.sos, *self._backend.encode(cleaned, add_special_tokens=False).ids, self.eos]

    def encode_batch(
        self, texts: Sequence[str], *, context_length: int = 77, truncate: bool = False
    ) -> Tensor:
        """Ids (P, S) of P texts, S = `context_length`, padded behind EOS with 0 as OpenAI does.

        Args:
            texts: the P texts.
            context_length: S, at least 2.
            truncate: cut texts that are too long (EOS stays last) instead of refusing them.

        Raises:
            ConfigError: a text with more than S tokens, SOS and EOS included.
        """
        rows = torch.zeros(len(texts), context_length, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            ids = self.encode(text)
            if len(ids) > context_length:
                if not truncate:
                    excerpt = text if len(text) <= 40 else text[:37] + "..."
                    raise ConfigError(
                        f"text {excerpt!r} has {len(ids)} tokens with its start and end, the text tower takes "
                        f"{context_length}; shorten it or truncate"
                    )
                ids = [*ids[: context_length - 1], self.eos]
            row[: len(ids)] = torch.tensor(ids)
        return rows

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without SOS, EOS and padding behind EOS; words are separated by single spaces."""
        content = list(ids)
        if self.eos in content:
            content = content[: content.index(self.eos)]
        tokens = [self._backend.id_to_token(index) for index in content if index != self.sos]
        letters = dict(zip(_byte_letters(), _byte_order(), strict=True))
        words = "".join(token or "" for token in tokens).replace("</w>", " ").strip()
        raw = b"".join(bytes([letters[letter]]) if letter in letters else letter.encode() for letter in words)
        return raw.decode("utf-8", errors="replace")

    def save(self, path: str | Path) -> None:
        """Writes a `tokenizer.json` that `from_file` reads back."""
        self._backend.save(str(path))


def _byte_order() -> list[int]:
    """The bytes in the order of `_byte_letters`."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return printable + [byte for byte in range(256) if byte not in printable]
