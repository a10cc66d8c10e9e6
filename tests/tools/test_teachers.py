"""What a teacher and its tokenizer must have is checked before work, and said in words."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from toys import save_teacher, word_tokenizer
from transformers import BertConfig, BertForMaskedLM, BertModel, RobertaConfig, RobertaModel

from wid_hf import TeacherError
from wid_hf.inputs import tokenize
from wid_hf.planning.teacher_check import why_not_made_of_a_config
from wid_hf.tools.teachers import load_teacher, load_tokenizer, longest_text, working_tokenizer

SIZES = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}


def bert(**sizes: int) -> BertModel:
    return BertModel(BertConfig(**{**SIZES, "vocab_size": 15, "max_position_embeddings": 32, **sizes})).eval()


def test_a_tokenizer_with_more_tokens_than_rows_is_refused() -> None:
    working_tokenizer(word_tokenizer(), bert(vocab_size=15))
    with pytest.raises(TeacherError, match=r"has 15 tokens, and BertModel has 14 rows.*resize_token_embeddings"):
        working_tokenizer(word_tokenizer(), bert(vocab_size=14))
    grown = word_tokenizer()
    grown.add_tokens(["eleven"])
    with pytest.raises(TeacherError, match="has 16 tokens, and BertModel has 15 rows"):
        working_tokenizer(grown, bert())


def test_a_tokenizer_without_mask_token_is_refused_where_tokens_are_masked() -> None:
    tokenizer = word_tokenizer()
    tokenizer.mask_token = None
    working_tokenizer(tokenizer, bert())
    with pytest.raises(TeacherError, match=r"no mask token.*Set tokenizer\.mask_token"):
        working_tokenizer(tokenizer, bert(), masks=True)


def test_a_tokenizer_without_padding_pads_with_its_end_of_text_and_stays_as_it_was() -> None:
    tokenizer = word_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(TeacherError, match="neither a padding token nor an end-of-text token"):
        working_tokenizer(tokenizer, bert())
    tokenizer.eos_token = "[SEP]"
    assert working_tokenizer(tokenizer, bert()).pad_token_id == 3
    assert tokenizer.pad_token is None


def test_tokenizing_leaves_the_tokenizer_as_it_was() -> None:
    from datasets import Dataset

    tokenizer = word_tokenizer()
    before = copy.deepcopy(tokenizer).backend_tokenizer.to_str()
    tokens = tokenize(Dataset.from_dict({"text": ["one two three four five"]}), tokenizer, 4)
    assert len(tokens["input_ids"][0]) == 4
    assert tokenizer.backend_tokenizer.to_str() == before


def test_a_text_may_have_as_many_tokens_as_the_model_looks_up() -> None:
    tokenizer = word_tokenizer()
    tokenizer.model_max_length = 10**30
    assert longest_text(bert(), tokenizer, 64) == 32
    assert longest_text(bert(), tokenizer, 20) == 20
    tokenizer.model_max_length = 12
    assert longest_text(bert(), tokenizer, 64) == 12


def test_positions_that_no_token_gets_do_not_count() -> None:
    tokenizer = word_tokenizer()
    tokenizer.model_max_length = 10**30
    config = RobertaConfig(**SIZES, vocab_size=15, max_position_embeddings=34, pad_token_id=1)
    assert longest_text(RobertaModel(config).eval(), tokenizer, 64) == 32


def test_a_class_that_needs_more_than_its_config_is_refused() -> None:
    class Needy(BertModel):
        def __init__(self, config: BertConfig, experts: int, *, deep: bool, wide: bool = False) -> None: ...

    class Easy(BertModel):
        def __init__(self, config: BertConfig, experts: int = 2, **more: bool) -> None: ...

    assert "Needy(config) cannot be made: its constructor also needs experts, deep" in why_not_made_of_a_config(Needy)
    assert why_not_made_of_a_config(Easy) is None


def test_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_teacher(tmp_path / "teacher", BertForMaskedLM)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert type(load_teacher("~/teacher")) is BertForMaskedLM
    assert len(load_tokenizer("~/teacher")) == 15
