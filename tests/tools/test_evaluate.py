"""From a model's folder to figures: what is trained, kept, gone on with and refused."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from toys import SPECIAL, WORDS, save_teacher, texts, word_tokenizer, write_texts
from transformers import BertForMaskedLM, BertModel, GPT2Config, GPT2LMHeadModel
from transformers.trainer_utils import PredictionOutput, TrainOutput
from typer.testing import CliRunner

from wid_hf.errors import ConfigError, DataError, MissingExtraError, OutputError, TeacherError, TrainingError
from wid_hf.tools import evaluate as evaluate_module
from wid_hf.tools.evaluate import EvalSettings, evaluate
from wid_hf.tools.evaluation.tasks import DataPlaces, FineTuning
from wid_hf.tools.evaluation.tasks.fine_tuning import Trainer
from wid_hf_cli.app import app

QUICK = FineTuning(learning_rates=(1e-3,), seeds=(0,), steps=2, batch_size=8)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_teacher(tmp_path_factory.mktemp("models") / "encoder", BertModel)


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_teacher(tmp_path_factory.mktemp("models") / "masked", BertForMaskedLM)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "decoder"
    config = GPT2Config(
        vocab_size=len(SPECIAL) + len(WORDS),
        n_positions=32,
        n_embd=16,
        n_layer=1,
        n_head=2,
        bos_token_id=2,
        eos_token_id=3,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer = word_tokenizer()
    tokenizer.pad_token, tokenizer.eos_token = None, "[SEP]"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")

    def write(path: str, rows: list[dict[str, Any]]) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("".join(json.dumps(row) + "\n" for row in rows))

    some = texts(48)
    # the class is whether the text begins with one of the first five words
    single = [{"text": text, "label": int(text.split()[0] in WORDS[:5])} for text in some]
    pairs = [{"text_a": a, "text_b": b, "label": float(len(a.split()) % 6)} for a, b in itertools.pairwise(some)]
    for split, part in (("train", slice(0, 32)), ("dev", slice(32, 48))):
        write(f"glue/sst2/{split}.jsonl", single[part])
        write(f"glue/stsb/{split}.jsonl", pairs[part])
    places = [{"text": "three four", "answer_start": 8}]
    questions = [{"id": "0", "question": "six", "answers": places}, {"id": "1", "question": "nine", "answers": []}]
    article = {"title": "t", "paragraphs": [{"context": "one two three four five", "qas": questions}]}
    (folder / "squad").mkdir()
    for split in ("train", "dev"):
        (folder / f"squad/{split}-v2.0.json").write_text(json.dumps({"version": "v2.0", "data": [article]}))
    return folder


def settings(data: Path | None, how: FineTuning = QUICK, **places: Any) -> EvalSettings:
    return EvalSettings(DataPlaces(data, **places), how, max_length=16)


def trained_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the steps of every training from now on."""
    seen, train = [], Trainer.train

    def counted(self: Trainer, *args: Any, **kwargs: Any) -> TrainOutput:
        result = train(self, *args, **kwargs)
        seen.append(self.state.global_step)
        return result

    monkeypatch.setattr(Trainer, "train", counted)
    return seen


@pytest.mark.slow
def test_every_kind_of_task_in_one_call(encoder: Path, data: Path, tmp_path: Path) -> None:
    report = evaluate(
        str(encoder), ["sst2", "stsb", "squad_v2", "stsb-zero-shot"], tmp_path, settings(data), command="wid-hf eval x"
    )
    assert set(report.tasks["sst2"].mean["dev"]) == {"accuracy"}
    assert set(report.tasks["stsb"].mean["dev"]) == {"spearman", "pearson"}
    assert set(report.tasks["squad_v2"].mean["dev"]) == {"f1", "exact_match"}
    assert report.tasks["stsb-zero-shot"].best_learning_rate is None
    stored = json.loads((tmp_path / "eval_report.json").read_text())
    assert stored["command"] == ["wid-hf eval x"]
    assert stored["size"]["total"] == sum(p.numel() for p in BertModel.from_pretrained(encoder).parameters())
    (run,) = stored["tasks"]["sst2"]["runs"]
    assert (run["learning_rate"], run["seed"], run["steps"]) == (1e-3, 0, 2)
    assert run["versions"]["scikit-learn"] and run["hardware"] and run["seconds"] > 0
    assert run["made_from"]["fine_tuning"]["batch_size"] == 8
    assert run["made_from"]["examples"] == {"train": 32, "dev": 16}


def test_fine_tuning_learns_and_the_better_learning_rate_is_reported(encoder: Path, data: Path, tmp_path: Path) -> None:
    how = FineTuning(learning_rates=(1e-9, 5e-3), seeds=(0, 1), steps=40, batch_size=16)
    found = evaluate(str(encoder), ["sst2"], tmp_path, settings(data, how)).tasks["sst2"]
    assert found.best_learning_rate == 5e-3
    assert found.mean["dev"]["accuracy"] > 0.8
    still = [run["scores"]["dev"]["accuracy"] for run in found.runs if run["learning_rate"] == 1e-9]
    assert max(still) < 0.8


@pytest.mark.slow
def test_a_finished_run_is_not_repeated_and_other_tasks_are_kept(
    masked: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = trained_steps(monkeypatch)
    first = evaluate(str(masked), ["sst2"], tmp_path, settings(data))
    more = FineTuning(learning_rates=(1e-3,), seeds=(0, 1), steps=2, batch_size=8)
    second = evaluate(str(masked), ["sst2"], tmp_path, settings(data, more))
    assert seen == [2, 2]  # one run each: the second call found the first one's
    assert second.tasks["sst2"].runs[0] == first.tasks["sst2"].runs[0]
    third = evaluate(str(masked), ["stsb"], tmp_path, settings(data))
    assert set(third.tasks) == {"sst2", "stsb"}


def test_a_run_gives_the_same_figures_when_it_is_made_again(encoder: Path, data: Path, tmp_path: Path) -> None:
    one, two = (evaluate(str(encoder), ["stsb"], tmp_path / name, settings(data)) for name in "ab")
    assert one.tasks["stsb"].mean == two.tasks["stsb"].mean


def test_other_right_answers_are_other_runs(
    encoder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = trained_steps(monkeypatch)
    shutil.copytree(data, tmp_path / "data")
    evaluate(str(encoder), ["squad_v2"], tmp_path / "out", settings(tmp_path / "data"))
    dev = tmp_path / "data" / "squad" / "dev-v2.0.json"
    dev.write_text(dev.read_text().replace('"three four", "answer_start": 8', '"four five", "answer_start": 14'))
    evaluate(str(encoder), ["squad_v2"], tmp_path / "out", settings(tmp_path / "data"))
    assert len(seen) == 2


def test_other_weights_or_other_data_are_other_runs(
    masked: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = trained_steps(monkeypatch)
    evaluate(str(masked), ["sst2"], tmp_path / "out", settings(data))
    evaluate(str(masked), ["sst2"], tmp_path / "out", settings(data, train_examples=24))
    assert len(seen) == 2
    model = BertForMaskedLM.from_pretrained(masked)
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[7, 3] += 1.0
    shutil.copytree(masked, tmp_path / "other")
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(OutputError, match="holds results of other weights"):
        evaluate(str(tmp_path / "other"), ["sst2"], tmp_path / "out", settings(data))


def test_training_that_diverges_at_every_learning_rate_is_told(
    encoder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Trainer, dataset: Dataset) -> PredictionOutput:
        output = predict(self, dataset)
        output.predictions[0, 0] = float("nan")
        return output

    predict = Trainer.predict
    monkeypatch.setattr(Trainer, "predict", broken)
    with pytest.raises(TrainingError, match="SST-2: training diverged at every learning rate"):
        evaluate(str(encoder), ["sst2"], tmp_path, settings(data))


def test_a_masked_model_is_scored_on_texts(masked: Path, tmp_path: Path) -> None:
    places = settings(None, texts=str(write_texts(tmp_path / "t.txt")), eval_examples=40)
    report = evaluate(str(masked), ["masked-lm"], tmp_path / "out", places)
    scores = report.tasks["masked-lm"].mean["texts"]
    assert 2.0 < scores["loss"] < 4.0  # an untrained model guesses among 15 tokens: 2.7 nats
    assert 0.0 <= scores["accuracy"] < 0.5
    assert report.tasks["masked-lm"].runs[0]["made_from"]["examples"] == {"texts": 40}


def test_a_decoder_without_a_padding_token_is_scored_and_fine_tuned(decoder: Path, data: Path, tmp_path: Path) -> None:
    places = settings(data, texts=str(write_texts(tmp_path / "t.txt")))
    report = evaluate(str(decoder), ["perplexity", "sst2"], tmp_path / "out", places)
    scores = report.tasks["perplexity"].mean["texts"]
    assert 10.0 < scores["perplexity"] < 25.0  # of 15 tokens
    assert 0.0 <= report.tasks["sst2"].mean["dev"]["accuracy"] <= 1.0


@pytest.mark.parametrize(
    ("model", "task", "told"),
    [
        ("decoder", "masked-lm", "masked LM is for masked language models, and GPT2LMHeadModel has no such head"),
        ("encoder", "masked-lm", "BertModel has no such head"),
        ("masked", "perplexity", "perplexity is for decoders, and BertForMaskedLM has no causal"),
        ("decoder", "stsb-zero-shot", "STS-B, zero-shot is for encoders, and GPT2LMHeadModel is a decoder"),
    ],
)
def test_a_model_of_the_wrong_kind_is_refused_before_any_work(
    model: str,
    task: str,
    told: str,
    data: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = trained_steps(monkeypatch)
    with pytest.raises(TeacherError, match=told):
        evaluate(str(request.getfixturevalue(model)), ["sst2", task], tmp_path / "out", settings(data))
    assert not seen and not (tmp_path / "out").exists()


def test_what_is_missing_is_refused_before_any_work(
    encoder: Path, masked: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = trained_steps(monkeypatch)
    BertModel.from_pretrained(encoder).save_pretrained(tmp_path / "bare")
    with pytest.raises(TeacherError, match="has no usable tokenizer"):
        evaluate(str(tmp_path / "bare"), ["sst2"], tmp_path / "out", settings(data))
    with pytest.raises(DataError, match=r"masked LM comes without texts\. Name a file or dataset with texts="):
        evaluate(str(masked), ["sst2", "masked-lm"], tmp_path / "out", settings(data))
    with pytest.raises(ConfigError, match="no task 'imdb'"):
        evaluate("no/such/model", ["imdb"], tmp_path / "out", settings(data))
    with pytest.raises(ConfigError, match="make no run"):
        evaluate(str(encoder), ["sst2"], tmp_path / "out", settings(data, FineTuning(seeds=())))
    monkeypatch.setitem(sys.modules, "sklearn", None)  # importing it fails
    with pytest.raises(MissingExtraError, match=r'pip install "wid-hf\[eval\]"'):
        evaluate(str(encoder), ["sst2"], tmp_path / "out", settings(data))
    assert not seen and not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_is_refused_before_any_work(
    encoder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = trained_steps(monkeypatch)
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match="is not a folder that can be written"):
        evaluate(str(encoder), ["sst2"], tmp_path / "out", settings(data))
    assert not seen


def test_a_folder_of_other_files_takes_no_results(
    encoder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = trained_steps(monkeypatch)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds notes\.txt and no eval_report\.json"):
        evaluate(str(encoder), ["sst2"], tmp_path / "out", settings(data))
    assert not seen and [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_weights_that_the_head_would_not_take_over_are_refused(
    encoder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "renamed"
    shutil.copytree(encoder, folder)
    shutil.copy(save_teacher(tmp_path / "wide", BertModel, hidden=48) / "model.safetensors", folder)
    whole = BertModel.from_pretrained(encoder)
    monkeypatch.setattr(evaluate_module, "load_teacher", lambda *args, **kwargs: whole)
    with pytest.raises(TeacherError, match="weights below the head of BertForSequenceClassification are not in"):
        evaluate(str(folder), ["sst2"], tmp_path / "out", settings(data))


@pytest.mark.slow
def test_the_command_prints_a_table_and_says_where_the_runs_are(
    encoder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["eval", str(encoder), "--tasks", "sst2,stsb-zero-shot", "--data", str(data)]
    words += ["--learning-rates", "1e-3,1e-4", "--seeds", "0,1", "--steps", "1", "--batch-size", "8"]
    words += ["--max-length", "12"]
    result = CliRunner().invoke(app, words, env={"COLUMNS": "140"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    stored = json.loads((tmp_path / "eval" / "encoder" / "eval_report.json").read_text())
    shown = stored["tasks"]["sst2"]["mean"]["dev"]["accuracy"]
    assert any("SST-2" in line and f"{100 * shown:.2f}" in line for line in result.output.splitlines())
    assert len(stored["tasks"]["sst2"]["runs"]) == 4
    assert "eval/encoder/eval_report.json" in result.output


@pytest.mark.parametrize(("option", "text"), [("--learning-rates", "fast"), ("--seeds", "0.5"), ("--seeds", "")])
def test_numbers_that_are_none_are_refused(encoder: Path, option: str, text: str) -> None:
    with pytest.raises(ConfigError, match=rf"{option} '{text}' is not a list of numbers such as"):
        CliRunner().invoke(app, ["eval", str(encoder), "--tasks", "sst2", option, text], catch_exceptions=False)


def test_the_reaction_teacher_predicts_the_masked_tokens_of_reactions(
    reaction_bert_dir: Path, uspto50k: Path, tmp_path: Path
) -> None:
    places = DataPlaces(texts=str(uspto50k / "valid.jsonl.gz"), column="rxn", eval_examples=48)
    report = evaluate(str(reaction_bert_dir), ["masked-lm"], tmp_path, EvalSettings(places))
    assert report.tasks["masked-lm"].mean["texts"]["accuracy"] > 0.9
