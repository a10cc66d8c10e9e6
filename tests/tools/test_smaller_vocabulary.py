"""Students with fewer tokens, from the rows that they train on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import WORDS, save_teacher, write_texts
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertForMaskedLM

import wid_hf
from wid_hf import ConfigError, WidConfig, get_wid_model
from wid_hf.planning.student_plan import plan_student
from wid_hf.tools.compress import CompressSettings, compress
from wid_hf.vocabulary import kept_tokens, smaller_tokenizer

QUICK: dict[str, Any] = {"steps": 2, "batch_size": 8, "max_length": 12, "validation_texts": 8}
LINE = " ".join(WORDS[:6])


def few_words(path: Path) -> Path:
    path.write_text("\n".join(f"{LINE} {WORDS[6 + at % 3]}" for at in range(60)) + "\n")
    return path


def used(folder: Path, rows: Path) -> set[str]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return {token for line in rows.read_text().splitlines() for token in tokenizer.tokenize(line)}


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    return save_teacher(tmp_path / "teacher", BertForMaskedLM)


def test_a_student_has_the_tokens_of_its_rows_and_loads_with_its_tokenizer(teacher: Path, tmp_path: Path) -> None:
    rows = few_words(tmp_path / "rows.txt")
    config = WidConfig(hidden_size=12, intermediate_size=24, vocabulary="corpus")

    report = compress(str(teacher), str(rows), tmp_path / "student", config, CompressSettings(**QUICK))

    student = AutoModelForMaskedLM.from_pretrained(tmp_path / "student")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    whole = AutoTokenizer.from_pretrained(teacher)
    assert set(tokenizer.get_vocab()) == used(teacher, rows) | set(whole.all_special_tokens) | _characters(whole)
    assert student.config.vocab_size == len(tokenizer) < len(whole)
    assert student.get_input_embeddings().weight.shape == (len(tokenizer), 12)
    assert tokenizer.tokenize(LINE) == whole.tokenize(LINE)
    assert report.vocabulary is not None and "0.0% of 60 texts" in report.vocabulary
    told = json.loads((tmp_path / "student" / "wid_report.json").read_text())
    assert told["requested"]["vocabulary"] == f"{len(tokenizer)} tokens"
    assert report.sizes["teacher"].total > report.sizes["student"].total
    assert "texts are divided into other tokens" in (tmp_path / "student" / "README.md").read_text()


def _characters(tokenizer: Any) -> set[str]:
    return {token for token in tokenizer.get_vocab() if len(token.removeprefix("##")) == 1}


def test_nothing_but_the_vocabulary_may_become_smaller(teacher: Path, tmp_path: Path) -> None:
    rows = few_words(tmp_path / "rows.txt")

    student, _ = wid_hf.compress(str(teacher), str(rows), WidConfig(vocabulary="corpus"), **{**QUICK, "steps": 0})

    whole = AutoModelForMaskedLM.from_pretrained(teacher).eval()
    before = AutoTokenizer.from_pretrained(teacher)
    kept = kept_tokens(before, texts=rows.read_text().splitlines())
    after = smaller_tokenizer(before, kept)
    with torch.no_grad():
        expected = whole(**before(LINE, return_tensors="pt")).logits[..., kept]
        found = student(**after(LINE, return_tensors="pt")).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_numbers_of_tokens_are_enough_without_a_tokenizer(teacher: Path, tmp_path: Path) -> None:
    model = AutoModelForMaskedLM.from_pretrained(teacher).eval()
    kept = kept_tokens(AutoTokenizer.from_pretrained(teacher), texts=[LINE])
    config = WidConfig(hidden_size=12, vocabulary=kept)

    planned = plan_student(model, config)
    student = get_wid_model(model, config, calibration_data=[{"input_ids": torch.arange(len(kept)).repeat(4, 1)}] * 2)

    assert planned.config.vocab_size == len(kept)
    assert student.merge_and_unload().config.vocab_size == len(kept)
    assert student.unload() is model and model.config.vocab_size > len(kept)


def all_words(teacher: Path, path: Path) -> Path:
    """Rows that use each token of a teacher, whose table has no other row."""
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    model = AutoModelForMaskedLM.from_pretrained(teacher)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(teacher)
    words = [token for token in tokenizer.get_vocab() if token not in tokenizer.all_special_tokens]
    path.write_text("\n".join(words[at % len(words)] + " " + LINE for at in range(2 * len(words))) + "\n")
    assert used(teacher, path) == set(words)
    return path


def test_rows_that_use_all_tokens_change_nothing_and_it_is_said(teacher: Path, tmp_path: Path) -> None:
    rows = all_words(teacher, tmp_path / "rows.txt")
    sizes: dict[str, Any] = {"hidden_size": 12, "intermediate_size": 24, "init": "identity"}
    settings = CompressSettings(**{**QUICK, "steps": 0})
    asked, plain = (
        compress(str(teacher), str(rows), tmp_path / name, WidConfig(**sizes, vocabulary=wanted), settings)
        for name, wanted in (("asked", "corpus"), ("plain", None))
    )
    assert asked.fingerprints["student"] == plain.fingerprints["student"]
    assert asked.requested == plain.requested == {"hidden_size": 12, "intermediate_size": 24}
    assert asked.scores == plain.scores
    assert asked.vocabulary is not None and "tokens stay, for they are used or must stay" in asked.vocabulary
    assert "tokens stay" in (tmp_path / "asked" / "README.md").read_text()
    assert (asked.teacher_with_all_tokens, plain.vocabulary) == (None, None)
    with pytest.raises(ConfigError, match=r"vocabulary='corpus': no token can go.*nothing else is to become smaller"):
        compress(str(teacher), str(rows), tmp_path / "none", WidConfig(vocabulary="corpus"), settings)


def test_a_report_has_the_teachers_figures_with_all_its_tokens_too(teacher: Path, tmp_path: Path) -> None:
    rows = few_words(tmp_path / "rows.txt")
    sizes: dict[str, Any] = {"hidden_size": 12, "intermediate_size": 24, "init": "identity"}
    settings = CompressSettings(**QUICK)

    cut, whole = (
        compress(str(teacher), str(rows), tmp_path / name, WidConfig(**sizes, vocabulary=wanted), settings)
        for name, wanted in (("cut", "corpus"), ("whole", None))
    )

    own = {name: value for name, value in whole.scores["teacher"].items() if name != "agreement"}
    assert cut.teacher_with_all_tokens == pytest.approx(own, rel=1e-6)
    few, every = cut.scores["teacher"]["masked_lm_loss"], own["masked_lm_loss"]
    assert every > few + 0.05  # one of few tokens is found sooner
    assert f"| masked lm loss, with all tokens | {every:.4f} |" in (tmp_path / "cut" / "README.md").read_text()
    shown = dict(zip(*(column.cells for column in cut.table().columns[:2]), strict=True))
    assert shown["masked lm loss, with all tokens"] == f"{every:.4f}" != shown["masked lm loss"]
    assert "with all tokens" not in (tmp_path / "whole" / "README.md").read_text()
    told = json.loads((tmp_path / "cut" / "wid_report.json").read_text())
    assert told["teacher_with_all_tokens"] == cut.teacher_with_all_tokens


@pytest.mark.parametrize("wanted", ["corpus", 20])
def test_words_and_sizes_need_a_tokenizer(teacher: Path, wanted: Any) -> None:
    model = AutoModelForMaskedLM.from_pretrained(teacher)

    with pytest.raises(ConfigError, match="needs a tokenizer and texts"):
        get_wid_model(model, WidConfig(vocabulary=wanted))


@pytest.mark.parametrize("wanted", ["everything", 0, [], [3, 1], [1, 1], [-1, 2], [0.5]])
def test_what_is_no_vocabulary_is_refused(wanted: Any) -> None:
    with pytest.raises(ConfigError, match="vocabulary"):
        WidConfig(vocabulary=wanted)


def test_numbers_that_lose_special_tokens_are_refused_by_name_at_each_door(teacher: Path, tmp_path: Path) -> None:
    rows, tokenizer = few_words(tmp_path / "rows.txt"), AutoTokenizer.from_pretrained(teacher)
    kept = kept_tokens(tokenizer, texts=rows.read_text().splitlines())
    without = [number for number in kept if number not in (tokenizer.cls_token_id, tokenizer.mask_token_id)]

    with pytest.raises(ConfigError, match=r"special or added tokens: \[CLS\], \[MASK\]\. Add their numbers"):
        wid_hf.compress(str(teacher), str(rows), WidConfig(vocabulary=without), **QUICK)
    with pytest.raises(ConfigError, match=r"special or added tokens: \[CLS\], \[MASK\]\. Add their numbers"):
        compress(str(teacher), str(rows), tmp_path / "s", WidConfig(vocabulary=without), CompressSettings(**QUICK))
    assert not (tmp_path / "s").exists()
    with pytest.raises(ConfigError, match="tokens that the model's config names: pad_token_id=0"):
        get_wid_model(AutoModelForMaskedLM.from_pretrained(teacher), WidConfig(vocabulary=kept[1:], init="identity"))


def test_a_size_below_what_must_stay_is_refused_before_anything_is_written(teacher: Path, tmp_path: Path) -> None:
    rows = write_texts(tmp_path / "rows.txt")

    with pytest.raises(ConfigError, match="tokens must stay"):
        compress(str(teacher), str(rows), tmp_path / "s", WidConfig(vocabulary=2), CompressSettings(**QUICK))

    assert not (tmp_path / "s").exists()
