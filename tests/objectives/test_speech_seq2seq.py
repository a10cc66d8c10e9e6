"""Encoder-decoders that hear: transcripts as targets, words that are written freely, and short trainings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from imitations import imitating_trainer
from transformers import WhisperTokenizer
from whispers import EMPTY, END, HALF_WHISPER, START, TOKENS, processor, sounds, whisper

from wid_hf import get_wid_model
from wid_hf.errors import TeacherError
from wid_hf.inputs import SoundInputs
from wid_hf.objectives import find_objective
from wid_hf.objectives.generated_targets import written
from wid_hf.objectives.speech_seq2seq import SpeechSeq2Seq

A, B, C, SPACE = (TOKENS[letter] for letter in ("a", "b", "c", "Ġ"))


def objective(seed: int = 0) -> SpeechSeq2Seq:
    teacher = whisper(seed)
    kind = find_objective(teacher)
    assert kind is SpeechSeq2Seq
    return kind(teacher, SoundInputs(processor(), "input_features"))


def test_transcripts_are_targets_after_the_token_that_decoding_starts_with(tmp_path: Path) -> None:
    made = objective()
    (batch,) = made.scored(made.features(sounds(tmp_path, 2, True), 12), 2, 0)
    assert batch["input_features"].shape == (2, 8, 100)
    start, empty, end = (TOKENS[token] for token in (START, EMPTY, END))
    assert batch["labels"].tolist() == [[empty, A, B, SPACE, A, end], [empty, C, end, -100, -100, -100]]
    assert batch["decoder_input_ids"].tolist() == [[start, empty, A, B, SPACE, A], [start, empty, C, end, end, end]]
    with torch.no_grad():
        own = made.teacher(input_features=batch["input_features"], labels=batch["labels"]).loss.item()
    assert made.score(made.teacher, [batch], made.wanted([batch]))["loss"] == pytest.approx(own, rel=1e-5)


def test_words_are_those_that_a_model_writes_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = objective()
    batches = made.scored(made.features(sounds(tmp_path, 2, True), 12), 1, 0)
    start, empty, end = (TOKENS[token] for token in (START, EMPTY, END))
    texts = iter([[start, empty, TOKENS["A"], TOKENS[","], SPACE, C, end], [start, C, end]])
    asked = []

    def write(model: object, batch: object, max_length: int) -> list[list[int]]:
        asked.append(max_length)
        return [next(texts)]

    monkeypatch.setattr("wid_hf.objectives.speech_seq2seq.written", write)
    found = made.score(made.teacher, batches, made.wanted(batches))
    assert found["word_error_rate"] == pytest.approx(2 / 3)  # "a c" for "ab a", and "c" for "c"
    assert asked == [12, 6]


@pytest.mark.parametrize(
    ("language", "rate"), [(None, 0), ("en", 0), ("german", 1.5)]
)  # in other languages the words are other ones
def test_numbers_may_be_words_or_digits_where_the_tokenizer_knows(
    language: str | None, rate: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = objective()
    assert isinstance(made.tokenizer, WhisperTokenizer)
    made.tokenizer.english_spelling_normalizer = {}
    made.teacher.generation_config.language = language
    texts = iter([[" 3.", "Twenty one"], ["three", "21"]])
    monkeypatch.setattr(SpeechSeq2Seq, "_texts", lambda made, tokens: next(texts))
    monkeypatch.setattr("wid_hf.objectives.speech_seq2seq.written", lambda *_: [[END]] * 2)  # a tiny one knows no other
    batches = made.scored(made.features(sounds(tmp_path, 2, True), 12), 2, 0)
    assert made.score(made.teacher, batches, None)["word_error_rate"] == rate


def test_without_transcripts_the_teacher_writes_them_and_a_student_is_judged_by_these(tmp_path: Path) -> None:
    made, other = objective(), whisper(1)
    features = made.features(sounds(tmp_path, 4, False), 6)
    batches = made.scored(features, 4, 0)
    assert features["decoder_input_ids"][:] == written(made.teacher, batches[0], 6)
    assert all(row[0] == TOKENS[START] and len(row) <= 7 for row in features["decoder_input_ids"])
    wanted = made.wanted(batches)
    best = made.score(made.teacher, batches, wanted)
    assert best["agreement"] == 1
    assert made.score(other, batches, wanted)["agreement"] < 1


def test_a_wid_model_writes_what_its_merged_student_writes(tmp_path: Path) -> None:
    made = objective()
    (batch,) = made.scored(made.features(sounds(tmp_path, 4, True), 6), 4, 0)
    wid = get_wid_model(made.teacher, HALF_WHISPER)
    folded = written(wid, batch, 6)
    assert folded == written(wid.merge_and_unload().eval(), batch, 6)


@pytest.mark.parametrize("label_weight", [0.0, 0.5])
def test_the_loss_of_a_step_does_not_depend_on_how_it_is_split(label_weight: float, tmp_path: Path) -> None:
    first = []
    for accumulation in (1, 4):
        made = objective()
        data = made.features(sounds(tmp_path, 8, bool(label_weight)), 8)
        trainer = imitating_trainer(
            made, tmp_path, data, HALF_WHISPER, accumulation=accumulation, label_weight=label_weight
        )
        trainer.train()
        first.append(trainer.state.log_history[0]["loss"])
    assert first[0] > 0.01
    assert first[1] == pytest.approx(first[0], rel=1e-4)


def test_a_processor_without_tokenizer_is_refused() -> None:
    with pytest.raises(TeacherError, match=r"writes needs a tokenizer.* Save the whole processor"):
        SpeechSeq2Seq(whisper(), SoundInputs(processor().feature_extractor, "input_features"))
