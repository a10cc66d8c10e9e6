"""A student exported to ONNX computes what it computes in torch, and only such a file gets its name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from toys import noisy
from transformers import AutoModel, AutoModelForMaskedLM, BertForMaskedLM, T5Config, T5ForConditionalGeneration
from typer.testing import CliRunner

from wid_hf import MissingExtraError, OutputError, WidConfig, WidError, get_wid_model
from wid_hf.tools import export
from wid_hf.tools.export import export_onnx
from wid_hf.tools.teachers import load_teacher
from wid_hf_cli.app import app


@pytest.fixture
def student(tiny_bert: BertForMaskedLM, tmp_path: Path) -> Path:
    wid = get_wid_model(tiny_bert, WidConfig(hidden_size=12, intermediate_size=24, init="identity"))
    noisy(wid)
    wid.merge_and_unload().save_pretrained(tmp_path / "student")
    return tmp_path / "student"


def test_an_exported_student_gives_its_logits_for_any_batch_and_length(student: Path, tmp_path: Path) -> None:
    from onnxruntime import InferenceSession

    output = tmp_path / "student.onnx"
    words = ["export", str(student), "--format", "onnx", "--output", str(output)]
    said = CliRunner().invoke(app, words, catch_exceptions=False)
    assert said.exit_code == 0, said.output
    assert "input_ids: batch x length" in said.output and "attention_mask: batch x length" in said.output
    assert f"{output.stat().st_size:,} bytes" in said.output.replace("\n", " ")
    model = AutoModelForMaskedLM.from_pretrained(student).eval()
    session = InferenceSession(output, providers=["CPUExecutionProvider"])
    for rows, length in ((1, 1), (2, 32), (9, 4)):  # none of them seen by the exporter
        ids = torch.randint(0, 60, (rows, length), generator=torch.Generator().manual_seed(rows))
        mask = torch.ones_like(ids)
        mask[-1, (length + 1) // 2 :] = 0
        (found,) = session.run(["logits"], {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        with torch.no_grad():
            expected = model(input_ids=ids, attention_mask=mask).logits
        assert expected.abs().max() > 0.1
        assert (torch.from_numpy(found) - expected).abs().max() <= 1e-4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student", "student.onnx"]


@pytest.mark.slow
def test_an_encoder_and_decoder_have_lengths_of_their_own(tmp_path: Path) -> None:
    config = T5Config(
        vocab_size=60, d_model=24, d_kv=6, num_layers=1, num_heads=4, d_ff=48, decoder_start_token_id=0, pad_token_id=0
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    done = export_onnx(str(tmp_path / "t5"), tmp_path / "t5.onnx")
    assert done.difference <= 1e-4 and done.outputs == ["logits", "encoder_last_hidden_state"]
    assert done.inputs["decoder_input_ids"] == ["batch", "decoder_length"]
    assert done.inputs["input_ids"] == done.inputs["attention_mask"] == ["batch", "length"]


@pytest.mark.slow
def test_a_file_that_computes_something_else_gets_no_name(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = export._write

    def write_another(model: BertForMaskedLM, *rest: object) -> list[str]:
        names = write(model, *rest)
        with torch.no_grad():
            model.cls.predictions.bias += 0.5
        return names

    monkeypatch.setattr(export, "_write", write_another)
    with pytest.raises(WidError, match=r"differ by up to 0\.5, more than 0\.0001\. Nothing was written"):
        export_onnx(str(student), tmp_path / "student.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


@pytest.mark.slow
def test_a_model_that_cannot_be_exported_is_refused_with_the_reason(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looks_at_data(self: BertForMaskedLM, input_ids: torch.Tensor, **_: object) -> dict[str, torch.Tensor]:
        return {"logits": self.get_input_embeddings()(input_ids) * (1 if input_ids.sum() > 100 else 2)}

    monkeypatch.setattr(BertForMaskedLM, "forward", looks_at_data)
    with pytest.raises(WidError, match=r"torch cannot export BertForMaskedLM to ONNX: .*data.*torch's exporter"):
        export_onnx(str(student), tmp_path / "student.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_an_output_that_exists_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "there.onnx").write_text("mine")
    with pytest.raises(OutputError, match=r"there\.onnx exists already"):
        export_onnx("no/such-model", tmp_path / "there.onnx")
    with pytest.raises(OutputError, match="is not a writable folder"):
        export_onnx("no/such-model", tmp_path / "no" / "file.onnx")
    assert (tmp_path / "there.onnx").read_text() == "mine"


def test_only_what_was_exported_here_is_replaced(student: Path, tmp_path: Path) -> None:
    before = (student / "model.safetensors").read_bytes()
    with pytest.raises(OutputError, match=r"model\.safetensors exists already and is no ONNX file.*part of the model"):
        export_onnx(str(student), student / "model.safetensors", overwrite=True)
    with pytest.raises(OutputError, match=r"student is a folder. Name a file in it"):
        export_onnx(str(student), student, overwrite=True)
    with pytest.raises(OutputError, match="a name that is too long"):
        export_onnx(str(student), tmp_path / ("n" * 252))
    (tmp_path / "s.onnx.data").write_text("mine")
    with pytest.raises(OutputError, match=r"s\.onnx\.data exists already"):
        export_onnx(str(student), tmp_path / "s.onnx", overwrite=True)
    assert (student / "model.safetensors").read_bytes() == before
    assert (tmp_path / "s.onnx.data").read_text() == "mine"


@pytest.mark.slow
def test_an_export_is_replaced_when_asked_and_a_killed_one_is_cleared(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    stale = tmp_path / ".s.onnx.wid-hf-01234567"
    stale.mkdir()
    (stale / "owner.json").write_text('{"program": "wid-hf", "makes": "s.onnx"}')
    export_onnx("~/student", Path("~/s.onnx"))
    with pytest.raises(OutputError, match=r"s\.onnx exists already.*overwrite=True"):
        export_onnx("~/student", Path("~/s.onnx"))
    export_onnx("~/student", Path("~/s.onnx"), overwrite=True)
    left = {path.name for path in tmp_path.iterdir()} - {".cache"}  # of onnxscript, in the home folder
    assert left == {"s.onnx", "student"}


def test_missing_packages_are_named_with_the_command_that_installs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtraError, match=r'onnxscript is not installed here.*pip install "wid-hf\[onnx\]"'):
        export_onnx("no/such-model", tmp_path / "file.onnx")


@pytest.mark.slow
def test_half_of_the_reaction_teacher_is_exported(reaction_bert_dir: Path, tmp_path: Path) -> None:
    teacher = load_teacher(str(reaction_bert_dir))
    ids = torch.arange(5, 5 + 8 * 64).view(8, 64) % (teacher.config.vocab_size - 5) + 5
    config = WidConfig(hidden_size=128, intermediate_size=256)
    wid = get_wid_model(teacher, config, calibration_data=[{"input_ids": ids}])
    wid.merge_and_unload().save_pretrained(tmp_path / "student")
    done = export_onnx(str(tmp_path / "student"), tmp_path / "student.onnx")
    assert done.difference <= 1e-4
    assert done.bytes > 4 * AutoModel.from_pretrained(tmp_path / "student").num_parameters()
