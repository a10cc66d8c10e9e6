from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM

from wid_hf.errors import OutputError, TeacherError
from wid_hf.rows import load_texts

SCRIPT = Path(__file__).parents[2] / "examples" / "prepare_reaction_bert.py"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = ["C", "c", "1", "Br", "Cl", "[C@@H]", "[nH]", "(", ")", "=", ".", ">>", "%10", "/", "-"]
REACTION = "C[C@@H](Br)C%10=C/Cl.c1c[nH]cc1>>C-C"

prepare = runpy.run_path(str(SCRIPT))["prepare"]


@pytest.fixture
def wheel_folder(tmp_path: Path) -> Path:
    """A folder like the one in the wheel: no model_type, pickled weights in the old format, vocab.txt."""
    folder = tmp_path / "bert_pretrained"
    folder.mkdir()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    sizes["vocab_size"] = len(SPECIAL + PIECES)
    (folder / "config.json").write_text(json.dumps({**sizes, "pruned_heads": {}, "output_past": True}))
    (folder / "vocab.txt").write_text("\n".join(SPECIAL + PIECES) + "\n")
    weights = BertForMaskedLM(BertConfig(**sizes)).state_dict()
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    return folder


def test_auto_classes_load_the_output_and_it_holds_the_wheels_weights(wheel_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "reaction-bert"
    prepare(wheel_folder, output)
    model = AutoModelForMaskedLM.from_pretrained(output)
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert type(model) is BertForMaskedLM
    assert tokenizer.is_fast
    assert tokenizer.model_max_length == 512
    assert json.loads((output / "config.json").read_text())["architectures"] == ["BertForMaskedLM"]
    original = torch.load(wheel_folder / "pytorch_model.bin", weights_only=True)
    assert all(torch.equal(tensor, original[name]) for name, tensor in load_file(output / "model.safetensors").items())
    assert [path.name for path in output.parent.iterdir()] == ["reaction-bert"]


def test_tokens_are_smiles_pieces_between_cls_and_sep_and_join_to_the_text(wheel_folder: Path, tmp_path: Path) -> None:
    prepare(wheel_folder, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer(REACTION)["input_ids"]
    pieces = "C [C@@H] ( Br ) C %10 = C / Cl . c 1 c [nH] c c 1 >> C - C"
    assert " ".join(tokenizer.convert_ids_to_tokens(ids)) == f"[CLS] {pieces} [SEP]"
    assert ids[1] == len(SPECIAL)
    assert tokenizer.decode(ids, skip_special_tokens=True) == REACTION
    assert tokenizer("C[MASK]C").tokens() == ["[CLS]", "C", "[MASK]", "C", "[SEP]"]
    assert [getattr(tokenizer, f"{name}_token") for name in ("pad", "unk", "cls", "sep", "mask")] == SPECIAL


def test_what_is_no_smiles_piece_becomes_unknown_instead_of_vanishing(wheel_folder: Path, tmp_path: Path) -> None:
    prepare(wheel_folder, tmp_path / "out")
    tokens = AutoTokenizer.from_pretrained(tmp_path / "out")("C!C[Xy]").tokens()
    assert tokens == ["[CLS]", "C", "[UNK]", "C", "[UNK]", "[SEP]"]


def test_an_output_that_is_already_there_is_left_alone(wheel_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    with pytest.raises(OutputError, match="out is already there"):
        prepare(wheel_folder, tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "keep"


def test_a_folder_without_weights_is_refused_by_name(wheel_folder: Path, tmp_path: Path) -> None:
    (wheel_folder / "pytorch_model.bin").unlink()
    with pytest.raises(TeacherError, match=r"bert_pretrained lacks pytorch_model\.bin\."):
        prepare(wheel_folder, tmp_path / "out")


def test_weights_that_do_not_fill_the_model_leave_no_output(wheel_folder: Path, tmp_path: Path) -> None:
    weights = torch.load(wheel_folder / "pytorch_model.bin", weights_only=True)
    del weights["bert.encoder.layer.0.output.dense.weight"]
    torch.save(weights, wheel_folder / "pytorch_model.bin")
    with pytest.raises(TeacherError, match=r"has no bert\.encoder\.layer\.0\.output\.dense\.weight;"):
        prepare(wheel_folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["bert_pretrained"]


def test_code_in_the_pickle_is_not_run(wheel_folder: Path, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"x": Payload()}, wheel_folder / "pytorch_model.bin")
    with pytest.raises(TeacherError, match=r"not a BERT of plain tensors \(UnpicklingError\)"):
        prepare(wheel_folder, tmp_path / "out")
    assert not (tmp_path / "ran").exists()
    torch.load(wheel_folder / "pytorch_model.bin", weights_only=False)
    assert (tmp_path / "ran").exists(), "the payload must be one that would have run"


@pytest.mark.slow
def test_the_script_says_what_is_wrong_in_one_line_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(tmp_path), str(tmp_path / "out")]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 1
    assert finished.stderr.count("\n") == 1
    assert "lacks config.json, pytorch_model.bin, vocab.txt" in finished.stderr


def test_the_real_vocabulary_covers_every_validation_reaction(reaction_bert_dir: Path, uspto50k: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(reaction_bert_dir)
    reactions = load_texts(str(uspto50k / "valid.jsonl.gz"))["text"][:]
    encoded = tokenizer(reactions)["input_ids"]
    assert len(reactions) == 5004
    assert sum(ids.count(tokenizer.unk_token_id) for ids in encoded) == 0
    assert max(map(len, encoded)) <= tokenizer.model_max_length
    assert tokenizer.batch_decode(encoded, skip_special_tokens=True) == reactions
