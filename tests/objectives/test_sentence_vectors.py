"""Students of sentence-transformers models learn and are judged by the vectors of the whole pipeline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from sentence_folders import SPACE, WIDTH, read_json, save_sentence_teacher, write_json
from torch import Tensor
from torch.nn import functional
from toys import texts, word_tokenizer
from training_runs import arguments
from transformers import AutoModel, AutoTokenizer, BertModel, PreTrainedModel
from wid_models import identity, turned

from wid_hf import CalibrationConfig, WidConfig, get_wid_model
from wid_hf.errors import TeacherError
from wid_hf.inputs import TextInputs
from wid_hf.objectives import find_objective
from wid_hf.objectives.sentence_vectors import SIMILARITY_WEIGHT, SentenceVectors, vectors_loss
from wid_hf.sentence_models.similarity import SIMILARITIES, cosines
from wid_hf.training.imitating_trainer import ImitatingTrainer


def strong(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """The model with weights that are large enough for its vectors to differ from text to text."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.4 * torch.randn(weight.shape, generator=generator))
    return model.eval()


def objective_of(folder: Path, *behind: str, **given: Any) -> SentenceVectors:
    save_sentence_teacher(folder, *behind, **given)
    # No dropout, whose noise hides progress.
    teacher = AutoModel.from_pretrained(folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    strong(teacher)
    found = find_objective(teacher)(teacher, TextInputs(word_tokenizer()))
    assert isinstance(found, SentenceVectors)
    return found


def rows(objective: SentenceVectors, count: int = 32) -> Dataset:
    return objective.features(Dataset.from_dict({"text": texts(count)}), 12).remove_columns("special_tokens_mask")


CASES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "mean": (("Normalize",), {}),
    "cls": (("Normalize",), {"modes": ("cls",)}),
    "several": ((), {"modes": ("cls", "mean")}),
    "max": ((), {"modes": ("max",)}),
    "dense": (("Dense", "Normalize"), {}),
    "dot": ((), {"settings": {"similarity_fn_name": "dot"}}),
    "euclidean": ((), {"settings": {"similarity_fn_name": "euclidean"}}),
    "manhattan": ((), {"settings": {"similarity_fn_name": "manhattan"}}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_teacher_agrees_with_itself_and_another_model_does_not(tmp_path: Path, case: str) -> None:
    behind, given = CASES[case]
    objective = objective_of(tmp_path, *behind, **given)
    batches = objective.scored(rows(objective), 8, 0)
    wanted = objective.wanted(batches)
    similarity = f"{case if case in SIMILARITIES else 'cosine'}_correlation"
    found = objective.score(objective.teacher, batches, wanted)
    assert found == pytest.approx({"vector_cosine": 1, similarity: 1, "top1_agreement": 1}, abs=1e-5)
    other = strong(BertModel(objective.teacher.config), seed=4)
    assert max(objective.score(other, batches, wanted).values()) < 0.95


@pytest.mark.parametrize("case", ["mean", "several", "dense"])
def test_figures_are_those_of_the_vectors_that_a_user_gets(tmp_path: Path, case: str) -> None:
    behind, given = CASES[case]
    objective = objective_of(tmp_path, *behind, **given)
    model = turned(identity(objective.teacher))
    output_map = model.base_model.output_map
    batches = objective.scored(rows(objective), 8, 0)
    found = objective.score(model, batches, objective.wanted(batches))
    pipeline = objective.pipeline.narrowed(12, output_map)
    with torch.no_grad():
        mine, theirs = (
            torch.cat(
                [pipe.vectors(m(**batch).last_hidden_state, batch["attention_mask"]) for batch in batches]
            ).double()
            for m, pipe in ((model, pipeline), (objective.teacher, objective.pipeline))
        )
    mapped = theirs if case == "dense" else (theirs.unflatten(1, (-1, WIDTH)) @ output_map.double()).flatten(1)
    assert found["vector_cosine"] == pytest.approx(float(functional.cosine_similarity(mine, mapped).mean()), abs=1e-5)
    above = torch.triu_indices(32, 32, offset=1).unbind()
    pairs = torch.stack([cosines(vectors)[above] for vectors in (mine, theirs)])
    assert found["cosine_correlation"] == pytest.approx(float(torch.corrcoef(pairs)[0, 1]), abs=1e-5)
    merged = model.merge_and_unload()
    assert objective.score(merged, batches, objective.wanted(batches)) == pytest.approx(found, abs=1e-5)


def test_the_loss_is_missed_energy_and_missed_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    student, wanted, teacher = (torch.randn(3, m, generator=generator) for m in (4, 4, 6))
    missed = sum(((s - w) ** 2).sum() for s, w in zip(student, wanted, strict=True)) / (wanted**2).sum()
    pairs = [(0, 1), (0, 2), (1, 2)]
    mine, theirs = (
        torch.stack([functional.cosine_similarity(v[i], v[j], dim=0) for i, j in pairs]) for v in (student, teacher)
    )
    variance = ((theirs - theirs.mean()) ** 2).mean()
    expected = missed + SIMILARITY_WEIGHT * ((mine - theirs) ** 2).mean() / variance
    torch.testing.assert_close(vectors_loss(student, wanted, teacher, cosines), expected)


def test_one_text_many_times_is_no_division_by_zero() -> None:
    student, wanted = torch.ones(4, 3).requires_grad_(), 2 * torch.ones(4, 3)
    loss = vectors_loss(student, wanted, wanted, cosines)
    assert loss.item() == pytest.approx(1 / 4)
    loss.backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_two_texts_have_no_spread_of_similarities() -> None:
    student, wanted = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    assert vectors_loss(student, wanted, wanted, cosines).item() == pytest.approx(4 / 10)


@pytest.mark.parametrize("case", CASES)
def test_the_loss_is_zero_for_the_teachers_states_and_does_not_see_padding(tmp_path: Path, case: str) -> None:
    behind, given = CASES[case]
    objective = objective_of(tmp_path, *behind, **given)
    wid = get_wid_model(objective.teacher, WidConfig(intermediate_size=24, init="identity")).base_model  # all outputs
    (batch,) = objective.scored(rows(objective, 8), 8, 0)
    longer = {key: functional.pad(tensor, (0, 3)) for key, tensor in batch.items()}
    losses = []
    for given_batch in (batch, longer):
        with torch.no_grad():
            mine, theirs = (m(**given_batch) for m in (wid, objective.teacher))
        assert objective.loss(wid, theirs, theirs, given_batch).item() == pytest.approx(0, abs=1e-5)
        losses.append(objective.loss(wid, mine, theirs, given_batch).item())
    assert losses[0] > 0.01
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("case", ["mean", "cls", "several"])
def test_a_student_that_is_the_turned_teacher_misses_only_what_its_map_drops(tmp_path: Path, case: str) -> None:
    behind, given = CASES[case]
    objective = objective_of(tmp_path, *behind, **given)
    model = turned(identity(objective.teacher))
    (batch,) = objective.scored(rows(objective, 8), 8, 0)
    with torch.no_grad():
        theirs = objective.teacher(**batch)
    mine = SimpleNamespace(last_hidden_state=model.base_model.map_outputs(theirs.last_hidden_state))
    left = vectors_loss(*three(objective, model, mine, theirs, batch), cosines)
    found = objective.loss(model.base_model, mine, theirs, batch)
    torch.testing.assert_close(found, left)
    student, wanted, _ = three(objective, model, mine, theirs, batch)
    torch.testing.assert_close(student, wanted)


def three(
    objective: SentenceVectors, model: PeftModel, mine: Any, theirs: Any, batch: dict[str, Tensor]
) -> list[Tensor]:
    """The vectors of a student, the teacher's as the student has them, and the teacher's, made from states."""
    mask, turned = batch["attention_mask"], theirs.last_hidden_state @ model.base_model.output_map
    return [
        objective.pipeline.vectors(states, mask)
        for states in (mine.last_hidden_state, turned, theirs.last_hidden_state)
    ]


@pytest.mark.parametrize("case", ["mean", "max", "dense", "dot"])
def test_training_brings_the_vectors_nearer_to_the_teachers(tmp_path: Path, case: str) -> None:
    behind, given = CASES[case]
    objective = objective_of(tmp_path, *behind, **given)
    model = turned(identity(objective.teacher)) if case == "dense" else identity(objective.teacher)
    batches = objective.scored(rows(objective), 8, 0)
    wanted = objective.wanted(batches)
    before = objective.score(model, batches, wanted)
    args = arguments(
        tmp_path / "run",
        max_steps=20,
        per_device_train_batch_size=16,
        compactor_learning_rate=3e-3,
        teacher_learning_rate=0,
    )
    ImitatingTrainer(
        model,
        args,
        imitation=objective.loss,
        reduction=objective.reduction,
        train_dataset=rows(objective),
        data_collator=objective.collator,
    ).train()
    after = objective.score(model, batches, wanted)
    correlation = f"{objective.pipeline.settings.similarity}_correlation"
    assert after[correlation] > before[correlation] + 0.02
    if case == "dense":
        assert objective.pipeline.narrowed(12, model.base_model.output_map).rest[0].weight.shape == (SPACE, 12)


def test_a_maximum_keeps_coordinates_of_the_teacher(tmp_path: Path) -> None:
    config = WidConfig(hidden_size=12, calibration_config=CalibrationConfig(samples=32))
    found = objective_of(tmp_path / "max", modes=("mean", "max")).configured(config)
    assert found == replace(config, calibration_config=CalibrationConfig(samples=32, output="coordinates"))
    assert objective_of(tmp_path / "mean").configured(config) is config


def test_texts_are_read_behind_the_prompt_in_lower_case_and_cut_as_the_model_does(tmp_path: Path) -> None:
    objective = objective_of(
        tmp_path,
        settings={"prompts": {"query": "ONE two "}, "default_prompt_name": "query"},
        transformer={"do_lower_case": True, "max_seq_length": 6},
    )
    made = objective.features(Dataset.from_dict({"text": ["Three FOUR five six"]}), 12)
    expected = word_tokenizer()("one two three four")["input_ids"]
    assert made["input_ids"] == [expected]
    assert objective.features(Dataset.from_dict({"text": ["Three FOUR"]}), 5)["input_ids"] == [
        word_tokenizer()("one two three")["input_ids"]
    ]


def test_tokens_of_the_prompt_are_left_out_where_the_pooling_says_so(tmp_path: Path) -> None:
    prompt = {"prompts": {"query": "one two "}, "default_prompt_name": "query"}
    objective = objective_of(tmp_path, settings=prompt, pooling={"include_prompt": False})
    (batch,) = objective.scored(rows(objective, 1), 1, 0)
    with torch.no_grad():
        states = objective.teacher(**batch).last_hidden_state
    torch.testing.assert_close(objective.wanted([batch])[0], states[0, 3:].mean(0))  # [CLS] one two


def test_a_plain_encoder_and_a_head_are_no_sentence_encoders(tmp_path: Path) -> None:
    save_sentence_teacher(tmp_path)
    (tmp_path / "modules.json").rename(tmp_path / "other.json")
    assert find_objective(AutoModel.from_pretrained(tmp_path)).name == "features"


def change_type(folder: Path, kind: str) -> None:
    entries = read_json(folder / "modules.json")
    entries[1]["type"] = kind
    write_json(folder / "modules.json", entries)


def test_modules_that_are_not_known_are_refused_and_a_user_can_leave_them_out(tmp_path: Path) -> None:
    change_type(save_sentence_teacher(tmp_path), "their.code.Attention")
    teacher = AutoModel.from_pretrained(tmp_path)
    with pytest.raises(TeacherError, match=r"of Transformer, their\.code\.Attention.*task=features"):
        find_objective(teacher)
    assert find_objective(teacher, "features").name == "features"


def test_minilm_gives_vectors_of_length_one_by_the_mean(minilm_dir: Path) -> None:
    teacher = AutoModel.from_pretrained(minilm_dir)
    kind = find_objective(teacher)
    objective = kind(teacher, TextInputs(AutoTokenizer.from_pretrained(minilm_dir)))
    sentences = ["A man is playing a guitar.", "Somebody plays the guitar.", "The stock market fell on Monday."]
    features = objective.features(Dataset.from_dict({"text": sentences}), 64)
    vectors = objective.wanted(objective.scored(features, 2, 0))
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    assert vectors[0] @ vectors[1] > 0.7
    assert vectors[0] @ vectors[2] < 0.2
