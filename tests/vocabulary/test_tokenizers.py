"""Which tokens stay, and that a text of kept tokens is divided as before: each kind of tokenizer, tiny and real."""

from __future__ import annotations

import pickle
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from vocabularies import KINDS, SENTENCES, SPECIAL, tiny_tokenizer

from wid_hf.errors import ConfigError, DataError, TeacherError
from wid_hf.vocabulary import changed_texts, kept_tokens, smaller_tokenizer

STRANGE = "Zyx ß 漢字 \N{SNOWMAN} qqq thethe catlog"


def maps_one_to_one(
    before: PreTrainedTokenizerBase, after: PreTrainedTokenizerBase, kept: list[int], text: str
) -> bool:
    return [kept[number] for number in after(text).input_ids] == before(text).input_ids


def is_of(kept: list[int], tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    return set(tokenizer(text).input_ids) <= set(kept)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_of_kept_tokens_is_divided_into_the_same_tokens(kind: str) -> None:
    tokenizer = tiny_tokenizer(kind)
    for chosen in (SENTENCES[:1], SENTENCES[2:5], SENTENCES):
        kept = kept_tokens(tokenizer, texts=chosen, any_text=False)
        smaller = smaller_tokenizer(tokenizer, kept)
        assert len(smaller) == len(kept) < len(tokenizer) or chosen == SENTENCES
        assert all(maps_one_to_one(tokenizer, smaller, kept, text) for text in chosen)
        same = [word for word in " ".join(SENTENCES).split() if is_of(kept, tokenizer, word)]
        assert len(same) > 5
        assert all(maps_one_to_one(tokenizer, smaller, kept, word) for word in same)
    assert not changed_texts(tokenizer, smaller, kept, SENTENCES).changed


@pytest.mark.parametrize("kind", KINDS)
def test_any_size_gives_a_tokenizer_that_finds_its_tokens(kind: str) -> None:
    tokenizer = tiny_tokenizer(kind)
    for size in range(len(tokenizer) - 24, len(tokenizer) + 1, 6):
        kept = kept_tokens(tokenizer, texts=SENTENCES[:3], size=size, any_text=kind == "byte-level BPE")
        assert len(kept) == size
        smaller = smaller_tokenizer(tokenizer, kept)
        for word in " ".join(SENTENCES).split():
            assert maps_one_to_one(tokenizer, smaller, kept, word) or not is_of(kept, tokenizer, word)


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_what_could_be_divided_still_can_be(kind: str) -> None:
    tokenizer = tiny_tokenizer(kind)
    kept = kept_tokens(tokenizer, texts=["the cat"])
    smaller = smaller_tokenizer(tokenizer, kept)
    unknown = [used(STRANGE).input_ids.count(used.unk_token_id) for used in (tokenizer, smaller)]
    assert unknown[0] == unknown[1]
    for text in SENTENCES:
        assert smaller.unk_token_id not in smaller(text).input_ids
        assert smaller.decode(smaller(text).input_ids) == tokenizer.decode(tokenizer(text).input_ids)


def test_without_any_text_only_characters_of_the_texts_stay() -> None:
    tokenizer = tiny_tokenizer("WordPiece")
    few, all_characters = (kept_tokens(tokenizer, texts=["the cat"], any_text=choice) for choice in (False, True))
    assert len(few) < len(all_characters)
    smaller = smaller_tokenizer(tokenizer, few)
    assert smaller.unk_token_id not in smaller("hate tact", add_special_tokens=False).input_ids
    assert smaller("dog", add_special_tokens=False).input_ids == [smaller.unk_token_id]
    listed = kept_tokens(tokenizer, tokens=["the"], any_text=False)
    assert set(tokenizer.convert_ids_to_tokens(listed)) == {*SPECIAL, "<added>", "the", *"the", "##t", "##h", "##e"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_smaller_tokenizer_survives_saving(kind: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(kind)
    tokenizer.truncation_side = "left"
    kept = kept_tokens(tokenizer, texts=SENTENCES[:2], any_text=False)
    smaller = smaller_tokenizer(tokenizer, kept)
    assert smaller.truncation_side == "left"
    smaller.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    names = tokenizer.convert_ids_to_tokens(kept)
    for used in (smaller, loaded):
        assert used.get_vocab() == {name: place for place, name in enumerate(names)}
        assert used.special_tokens_map == tokenizer.special_tokens_map
        assert used.chat_template == tokenizer.chat_template
        assert (used.model_max_length, used.padding_side) == (77, "left")
        assert [kept[number] for number in used("the cat", "sat <added>").input_ids] == (
            tokenizer("the cat", "sat <added>").input_ids
        )
        padded = used(["the", "the cat sat on the mat"], padding=True)
        assert padded.input_ids[0][0] == used.pad_token_id == names.index("<pad>")


@pytest.mark.parametrize("again", [lambda used: used, deepcopy, lambda used: pickle.loads(pickle.dumps(used))])
def test_a_file_of_a_smaller_tokenizer_cuts_and_pads_as_its_teachers_after_any_call(again: Any, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer("WordPiece")
    tokenizer.truncation_side, tokenizer.padding_side = "left", "right"
    tokenizer.backend_tokenizer.enable_truncation(6, direction="left")
    tokenizer.backend_tokenizer.enable_padding(length=9, pad_id=tokenizer.pad_token_id, pad_token="<pad>")
    kept = kept_tokens(tokenizer, texts=SENTENCES[:2])
    smaller = again(smaller_tokenizer(tokenizer, kept))
    assert len(smaller(SENTENCES[:2], truncation=True, max_length=3, padding="longest").input_ids[0]) == 3
    smaller.save_pretrained(tmp_path)
    raw, loaded = Tokenizer.from_file(str(tmp_path / "tokenizer.json")), AutoTokenizer.from_pretrained(tmp_path)
    for text in (SENTENCES[0], "the"):
        found, wanted = raw.encode(text).tokens, tokenizer.backend_tokenizer.encode(text).tokens
        assert found == wanted
        assert len(found) == 9
    assert (loaded.truncation_side, loaded.padding_side) == ("left", "right")
    assert smaller.backend_tokenizer.truncation["max_length"] == 3  # as the call left it


REACTIONS = ["CC(=O)O>>CCO", "c1ccccc1Br>>c1ccccc1", "[Na+].[Cl-]>O>[Na+]", "CC(=O)Cl.N>>CC(N)=O"]


@pytest.mark.parametrize("name", ["minilm", "smollm2", "tagger", "reaction_bert"])
def test_a_real_tokenizer_divides_texts_of_its_kept_tokens_as_before(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(request.getfixturevalue(f"{name}_dir"))
    texts = REACTIONS if name == "reaction_bert" else SENTENCES
    before = tokenizer.backend_tokenizer.to_str()
    kept = kept_tokens(tokenizer, texts=texts[:-1])
    smaller = smaller_tokenizer(tokenizer, kept)
    assert tokenizer.backend_tokenizer.to_str() == before
    assert len(smaller) == len(kept) < len(tokenizer) / 5
    assert all(maps_one_to_one(tokenizer, smaller, kept, text) for text in texts[:-1])
    smaller.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(texts).input_ids == smaller(texts).input_ids
    assert loaded.special_tokens_map == tokenizer.special_tokens_map
    assert (loaded.chat_template, loaded.model_max_length) == (tokenizer.chat_template, tokenizer.model_max_length)
    truncation = tokenizer.backend_tokenizer.truncation
    assert loaded.backend_tokenizer.truncation == truncation


def test_merges_on_the_way_to_a_token_stay() -> None:
    tokenizer = word_of_merges(("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc"), ("abc", "d"))
    kept = kept_tokens(tokenizer, tokens=["abcd"], any_text=False)
    assert set(tokenizer.convert_ids_to_tokens(kept)) == {"[UNK]", "a", "b", "c", "d", "ab", "abc", "abcd"}
    assert smaller_tokenizer(tokenizer, kept).tokenize("abcd") == ["abcd"]


def word_of_merges(*merges: tuple[str, str]) -> PreTrainedTokenizerFast:
    names = dict.fromkeys(["[UNK]", *"abcde", *("".join(pair) for pair in merges)])
    model = models.BPE({name: number for number, name in enumerate(names)}, list(merges), unk_token="[UNK]")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), unk_token="[UNK]")


def test_the_least_likely_token_stays_since_what_is_unknown_is_scored_by_it() -> None:
    pieces = [("<unk>", 0.0), ("ab", -2.0), ("c", -1.0), ("d", -30.0), ("a", -16.0), ("b", -16.0), ("x", -1.0)]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.Unigram(pieces, 0, False)), unk_token="<unk>")
    kept = kept_tokens(tokenizer, texts=["abc"], any_text=False)
    assert tokenizer.convert_ids_to_tokens(kept) == ["<unk>", "ab", "c", "d", "a", "b"]


def test_special_numbers_follow_in_every_kind_of_post_processor() -> None:
    tokenizer = tiny_tokenizer("WordPiece")
    pair = [("</s>", 3), ("<s>", 2)]
    for around in (
        processors.BertProcessing(*pair),
        processors.Sequence([processors.ByteLevel(trim_offsets=False), processors.RobertaProcessing(*pair)]),
    ):
        tokenizer.backend_tokenizer.post_processor = around
        kept = kept_tokens(tokenizer, texts=SENTENCES[:1])
        shifted = sorted({*kept, 7}) if 7 not in kept else kept
        smaller = smaller_tokenizer(tokenizer, shifted)
        assert maps_one_to_one(tokenizer, smaller, shifted, SENTENCES[0])


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("BPE with bytes", r"bytes and others .*: <0x00>, <0x01>, <0x02>, <0x03>, <0x04> and 251 more"),
        ("byte-level BPE", r"bytes and others .*: !, "),
        ("Unigram", r"bytes and others .*: \S+\. Add"),  # the least likely token, by which what is unknown is scored
        ("WordPiece", r"special or added tokens: </s>, <added>, <mask>, <pad>, <s> and 1 more"),
    ],
)
def test_numbers_without_tokens_that_every_text_may_need_are_refused_by_name(kind: str, said: str) -> None:
    tokenizer = tiny_tokenizer(kind)
    special = {tokenizer.convert_tokens_to_ids(name) for name in [*SPECIAL, "<added>"]}
    always = {*kept_tokens(tokenizer, tokens=["<s>"], any_text=False)}
    left_out = special if kind == "WordPiece" else always - special
    kept = [number for number in kept_tokens(tokenizer, texts=SENTENCES) if number not in left_out]
    with pytest.raises(ConfigError, match=said):
        smaller_tokenizer(tokenizer, kept)


def test_changed_texts_are_counted() -> None:
    tokenizer = tiny_tokenizer("WordPiece")
    kept, texts = kept_tokens(tokenizer, texts=["the cat"]), ["the cat", "the students", "the"]
    counts = changed_texts(tokenizer, smaller_tokenizer(tokenizer, kept), kept, texts)
    assert (counts.texts, counts.changed) == (3, 1)
    assert counts.tokens_after > counts.tokens_before == sum(map(len, tokenizer(texts).input_ids))
    assert "33.3% of 3 texts" in str(counts)
    with pytest.raises(DataError, match="at least one"):
        changed_texts(tokenizer, tokenizer, kept, [])


def test_what_cannot_be_kept_is_refused_with_what_is_legal() -> None:
    tokenizer = tiny_tokenizer("BPE")
    with pytest.raises(ConfigError, match="Nothing says"):
        kept_tokens(tokenizer)
    with pytest.raises(ConfigError, match="Nothing says"):
        kept_tokens(tokenizer, tokens=["t"], size=50)
    with pytest.raises(ConfigError, match="'nope', 'never'"):
        kept_tokens(tokenizer, tokens=["t", "nope", "never"])
    with pytest.raises(ConfigError, match=r"size=8 is not possible: \d+ tokens must stay \(fewer with any_text=False"):
        kept_tokens(tokenizer, texts=SENTENCES, size=8)
    with pytest.raises(DataError, match="single text"):
        kept_tokens(tokenizer, texts="the cat")
    kept = kept_tokens(tokenizer, texts=SENTENCES[:1])
    with pytest.raises(ConfigError, match="special or added tokens: <pad>"):
        smaller_tokenizer(tokenizer, kept[1:])
    with pytest.raises(ConfigError, match="no token"):
        smaller_tokenizer(tokenizer, [*kept, 100_000])
    with pytest.raises(ConfigError, match="ascending"):
        smaller_tokenizer(tokenizer, kept[::-1])
    with pytest.raises(TeacherError, match="slow tokenizer"):
        kept_tokens(ByT5Tokenizer(), texts=SENTENCES)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(object())
    with pytest.raises(TeacherError, match="in Python"):
        kept_tokens(tokenizer, texts=SENTENCES)
