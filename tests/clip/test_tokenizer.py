"""CLIP's tokenizer: equal to transformers' and to a slow form, on ordinary and on odd strings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from clip_oracles import slow_bpe

from zsad.clip.tokenizer import EOS, SOS, Tokenizer, clip_vocabulary
from zsad.errors import BackboneError, ConfigError

ODD = [
    "",
    " ",
    "a photo of a cat",
    "A Photo OF a CaT",
    "a damaged metal_nut with a scratch, in the zoom.",
    "don't 'S we'll I'd they're you've I'M it''s '",
    "tabs\tand\nnew\r\nlines \u00a0 \u3000 \u2028 wide",
    "12345678901234567890 3.14159 ½ ² Ⅷ ٣٤",
    "emoji 😀👍🏽👨‍👩‍👧‍👦🇩🇪",
    "中文字符 日本語テキスト 한국어 ไทย हिन्दी",
    "café cafe\u0301 naïve Ångström \u212b ﬁ",
    "İstanbul DİYARBAKIR ı ß ẞ ΣΑΣ ς",
    "control \x00\x01\x1f\x7f\x85 chars \ufeff\u200b\u200d",
    "punct!!! ... --- ((([[]])) @#$%^&*~` _under_score_ \\ | <> <|",
    "word" * 60,
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft",
    "x" * 300,
    "mixed123abc45 v2.0-rc1 C3PO",
    "\ud7ff \ue000 \U0010ffff",
    "zażółć gęślą jaźń Привет שלום مرحبا",
]
SPECIAL = [f"a {SOS} b", f"{EOS}", f"x{EOS}y {SOS}{SOS}", "<|startoftext", "<|ENDOFTEXT|> up"]


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return Tokenizer()


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory):
    clip = pytest.importorskip("transformers.models.clip.tokenization_clip")
    vocabulary, merges = clip_vocabulary()
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return clip.CLIPTokenizer.from_pretrained(folder)


def test_vocabulary_is_clips() -> None:
    vocabulary, merges = clip_vocabulary()
    assert len(merges) == 48894 and len(vocabulary) == 49408
    assert vocabulary["!"] == 0 and vocabulary["cat</w>"] == 2368 and vocabulary["photo</w>"] == 1125
    assert vocabulary[SOS] == 49406 and vocabulary[EOS] == 49407
    assert sorted(vocabulary.values()) == list(range(49408))


def test_known_ids(ours: Tokenizer) -> None:
    assert ours.encode("a photo of a cat") == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert ours.encode("") == [49406, 49407]
    assert (ours.sos, ours.eos, ours.vocab_size) == (49406, 49407, 49408)


@pytest.mark.parametrize("text", [*ODD, *SPECIAL], ids=range(len(ODD) + len(SPECIAL)))
def test_equals_transformers(ours: Tokenizer, theirs, text: str) -> None:
    assert ours.encode(text) == theirs(text)["input_ids"]


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_equals_one_merge_at_a_time(ours: Tokenizer, text: str) -> None:
    pytest.importorskip("regex")
    vocabulary, merges = clip_vocabulary()
    ranks = {pair: index for index, pair in enumerate(merges)}
    assert ours.encode(text)[1:-1] == slow_bpe(text, vocabulary, ranks)


def test_random_unicode_equals_transformers(ours: Tokenizer, theirs) -> None:
    generator = torch.Generator().manual_seed(0)
    planes = [
        (0x20, 0x7F),
        (0xA0, 0x250),
        (0x300, 0x370),
        (0x370, 0x600),
        (0x2000, 0x2100),
        (0x1F300, 0x1F700),
    ]
    for _ in range(200):
        text = ""
        for _ in range(12):
            low, high = planes[int(torch.randint(len(planes), (), generator=generator))]
            text += chr(int(torch.randint(low, high, (), generator=generator)))
        if "&" not in text:
            assert ours.encode(text) == theirs(text)["input_ids"], text


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("salt &amp; pepper", "salt & pepper"),
        ("a &amp;lt; b", "a < b"),
        ("&quot;scratch&quot; &#39;s", '"scratch" \'s'),
        ("caf&eacute;", "café"),
    ],
)
def test_entities_are_undone_twice(ours: Tokenizer, written: str, meant: str) -> None:
    assert ours.encode(written) == ours.encode(meant)


def test_batch_is_padded_with_zero(ours: Tokenizer) -> None:
    ids = ours.encode_batch(["a cat", "", "a photo of a cat"], context_length=9)
    assert ids.dtype == torch.long and ids.shape == (3, 9)
    assert ids.tolist()[0] == [49406, 320, 2368, 49407, 0, 0, 0, 0, 0]
    assert ids.tolist()[1] == [49406, 49407] + [0] * 7
    assert (ids == ours.eos).int().argmax(dim=-1).tolist() == [3, 1, 6]
    assert ours.encode_batch([], context_length=5).shape == (0, 5)


def test_too_long_texts_are_refused_or_cut(ours: Tokenizer) -> None:
    text = "a photo of a cat " * 20
    with pytest.raises(ConfigError, match=r"'a photo of .*\.\.\.' has 102 tokens .* takes 77"):
        ours.encode_batch(["short", text], context_length=77)
    cut = ours.encode_batch([text], context_length=77, truncate=True)[0].tolist()
    assert cut[:-1] == ours.encode(text)[:76] and cut[-1] == ours.eos
    exact = "cat " * 75
    assert ours.encode_batch([exact], context_length=77)[0, -1] == ours.eos


@pytest.mark.parametrize("text", ["a photo of a cat", "café 😀 naïve", "日本語"])
def test_decode_gives_words_back(ours: Tokenizer, text: str) -> None:
    ids = ours.encode(text)
    assert ours.decode(ids).replace(" ", "") == text.replace(" ", "")
    assert ours.decode([*ids, 0, 0]) == ours.decode(ids)


def test_file_round_trip(ours: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    ours.save(path)
    again = Tokenizer.from_file(path)
    for text in [*ODD, *SPECIAL, "a &amp; b"]:
        assert again.encode(text) == ours.encode(text)


def test_stored_padding_and_truncation_are_ignored(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend

    path = tmp_path / "tokenizer.json"
    Tokenizer().save(path)
    backend = Backend.from_file(str(path))
    backend.enable_padding(length=30)
    backend.enable_truncation(4)
    backend.save(str(path))
    assert Tokenizer.from_file(path).encode("a photo of a cat") == [49406, 320, 1125, 539, 320, 2368, 49407]


def test_small_vocabulary_from_file(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers

    words = {SOS: 0, EOS: 1, "a": 2, "scratch": 3, "?": 4}
    backend = Backend(models.WordLevel(words, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    path = tmp_path / "tokenizer.json"
    backend.save(str(path))
    tokenizer = Tokenizer.from_file(path)
    assert tokenizer.encode("a scratch here") == [0, 2, 3, 4, 1]
    assert tokenizer.vocab_size == 5


@pytest.mark.parametrize("content", ["", "{", "{}", '{"model": 1}', "[1, 2]"])
def test_broken_tokenizer_files_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(BackboneError, match=r"tokenizer\.json") as caught:
        Tokenizer.from_file(path)
    assert "\n" not in str(caught.value)


def test_missing_file_and_missing_specials(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models

    with pytest.raises(BackboneError, match="cannot read the tokenizer"):
        Tokenizer.from_file(tmp_path / "none.json")
    path = tmp_path / "tokenizer.json"
    Backend(models.WordLevel({"a": 0}, unk_token="a")).save(str(path))
    with pytest.raises(BackboneError, match="lacks"):
        Tokenizer.from_file(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BackboneError):
        Tokenizer.from_file(path)
