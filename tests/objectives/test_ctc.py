"""What is heard, how it is scored on transcripts, and which transcripts are refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from media import extractor, objective_of, rows_of, teacher_of, tone, write_wav
from training_runs import HALF, arguments

from wid_hf import WidTrainer, get_wid_model
from wid_hf.errors import DataError, TeacherError
from wid_hf.inputs import SoundInputs
from wid_hf.objectives import Objective
from wid_hf.objectives.ctc import CTC

BLANK, SPACE, A, B = 0, 1, 3, 4  # classes


def scores_of(*classes: int) -> torch.Tensor:
    """Scores `(1, frames, 8)` by which each frame says one class."""
    return torch.nn.functional.one_hot(torch.tensor([classes]), 8).float()


def saying(objective: Objective, *classes: int) -> Any:
    """A model that says `classes` of every sound."""
    model = torch.nn.Linear(1, 1)
    model.forward = lambda **inputs: SimpleNamespace(logits=scores_of(*classes))  # type: ignore[method-assign]
    return model


def test_repetitions_and_blanks_are_not_heard_and_errors_are_counted_on_transcripts(tmp_path: Path) -> None:
    objective = objective_of("speech", tmp_path)
    batch = {"input_values": torch.zeros(1, 40), "labels": torch.tensor([[A, SPACE, B, -100]])}
    model = saying(objective, BLANK, A, A, SPACE, B, B, BLANK, B)
    wanted = [scores_of(A, SPACE, B, B)[0]]
    found = objective.score(model, [batch], [scores_of(BLANK, A, A, SPACE, B, B, BLANK, B)[0]])
    assert found == {
        "word_error_rate": pytest.approx(1 / 2),  # A BB instead of A B
        "character_error_rate": pytest.approx(1 / 3),
        "agreement": 1,
        "divergence": pytest.approx(0, abs=1e-6),
    }
    model = saying(objective, A, SPACE, A, A)
    found = objective.score(model, [batch], wanted)
    assert found["agreement"] == pytest.approx(1 - 1 / 3)
    gap = 2 * (torch.e - 1) / (torch.e + 7)  # two frames of four: p log(p / q) + q log(q / p) with log(p / q) = 1
    assert found["divergence"] == pytest.approx(gap / 4, rel=1e-4)


def test_transcripts_become_padded_tokens_and_the_models_loss_is_per_character(tmp_path: Path) -> None:
    objective = objective_of("speech", tmp_path)
    data = objective.features(rows_of("speech", tmp_path, 2, target=["A B", "A"]), 12)
    batch = objective.collator([dict(row) for row in data])
    assert batch["labels"].tolist() == [[A, SPACE, B], [A, -100, -100]]
    logits = objective.teacher(**batch).logits.log_softmax(-1)
    frames = [objective.teacher._get_feat_extract_output_lengths(n) for n in batch["attention_mask"].sum(1)]
    losses = [
        torch.nn.functional.ctc_loss(row[:n].unsqueeze(1), label[label >= 0][None], n[None], (label >= 0).sum()[None])
        for row, n, label in zip(logits, frames, batch["labels"], strict=True)
    ]
    assert objective.teacher(**batch).loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-4)


def test_on_transcripts_alone_the_loss_is_the_models_own(tmp_path: Path) -> None:
    objective = objective_of("speech", tmp_path)
    data = objective.features(rows_of("speech", tmp_path, 4, target=["A B", "A", "CD", "E"]), 12)
    model = get_wid_model(objective.teacher, HALF)
    args = arguments(tmp_path, max_steps=1, compactor_learning_rate=1e-3, teacher_learning_rate=0)
    trainer = WidTrainer(model, args, train_dataset=data, data_collator=objective.collator)
    own = model(**objective.collator([dict(row) for row in data])).loss.item()
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(own, rel=1e-4)


def test_a_sound_with_fewer_frames_than_its_transcript_needs_is_of_no_use(tmp_path: Path) -> None:
    objective = objective_of("speech", tmp_path)
    path = write_wav(tmp_path / "short.wav", tone(0)[:118])  # four frames
    row = {"audio": {"path": str(path), "bytes": None}}
    assert int(objective.teacher._get_feat_extract_output_lengths(118)) == 4
    assert objective.why_unusable(row) is None
    assert objective.why_unusable({**row, "target": "ABCD"}) is None
    assert objective.why_unusable({**row, "target": "ABCDE"}) == "the sound is too short for what is said"
    assert objective.why_unusable({**row, "target": "ABB"}) is None
    assert objective.why_unusable({**row, "target": "ABBA"}) == "the sound is too short for what is said"


def test_transcripts_in_other_letters_are_refused(tmp_path: Path) -> None:
    objective = objective_of("speech", tmp_path)
    with pytest.raises(DataError, match=r"does not know 4 of 5 characters .* It knows A, B, C, .*same case"):
        objective.features(rows_of("speech", tmp_path, 2, target=["a b", "ab"]), 12)
    small = teacher_of("speech", vocab_size=5)
    with pytest.raises(DataError, match="have token 7, and the model has 5 classes"):
        CTC(small, objective.inputs).features(rows_of("speech", tmp_path, 1, target=["E"]), 12)


def test_transcripts_need_a_tokenizer_and_sounds_alone_do_not(tmp_path: Path) -> None:
    objective = CTC(teacher_of("speech"), SoundInputs(extractor(), "input_values"))
    assert len(objective.features(rows_of("speech", tmp_path, 2), 12)) == 2
    with pytest.raises(
        TeacherError, match="Transcripts need a tokenizer, and there is none beside this Wav2Vec2ForCTC"
    ):
        objective.features(rows_of("speech", tmp_path, 2, target=["A", "B"]), 12)
