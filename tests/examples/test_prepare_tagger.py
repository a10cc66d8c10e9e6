from __future__ import annotations

import runpy
from pathlib import Path

import numpy
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from wid_hf.errors import OutputError, TeacherError

SCRIPT = Path(__file__).parents[2] / "examples" / "prepare_tagger.py"
example = runpy.run_path(str(SCRIPT))
TABLE, LINEAR = "distilbert.embeddings.word_embeddings.weight", "onnx::MatMul_7"


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """A graph that looks tokens up in an int8 table and multiplies by an int8 weight, as the tagger's does."""
    whole = numpy.arange(6, dtype=numpy.int8)
    nodes, stored = [], [numpy_helper.from_array(numpy.ones(2, numpy.float32), "classifier.bias")]
    for name, value, scale in ((TABLE, whole.reshape(3, 2), 0.5), (LINEAR, whole.reshape(2, 3), 2.0)):
        inputs = [f"{name}_quantized", f"{name}_scale", f"{name}_zero_point"]
        arrays = value, numpy.float32(scale), numpy.int8(1)
        stored += [
            numpy_helper.from_array(numpy.asarray(array), each) for each, array in zip(inputs, arrays, strict=True)
        ]
        nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{name}_real"]))
    nodes.append(helper.make_node("Gather", [f"{TABLE}_real", "ids"], ["rows"], name="/distilbert/Gather"))
    nodes.append(helper.make_node("MatMul", ["rows", f"{LINEAR}_real"], ["product"], name="/distilbert/lin1/MatMul"))
    nodes.append(helper.make_node("Add", ["product", "classifier.bias"], ["sum"]))
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["tokens"])
    result = helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["tokens", 3])
    onnx.save(helper.make_model(helper.make_graph(nodes, "tagger", [ids], [result], stored)), tmp_path / "tagger.onnx")
    return tmp_path / "tagger.onnx"


def test_weights_are_dequantized_under_the_names_of_pytorch(graph: Path) -> None:
    whole = torch.arange(6.0) - 1
    found = example["dequantized"](graph)
    wanted = {
        TABLE: whole.view(3, 2) / 2,
        "distilbert.lin1.weight": whole.view(2, 3).T * 2,
        "classifier.bias": torch.ones(2),
    }
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_a_graph_cut_off_or_of_another_model_is_refused_and_leaves_nothing(graph: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TeacherError, match="lacks tag_vocab"):
        example["prepare"](tmp_path, tmp_path / "out")
    (tmp_path / "tag_vocab.json").write_text('{"tags": ["$KEEP"]}')
    with pytest.raises(TeacherError, match="is not the tagger"):
        example["prepare"](tmp_path, tmp_path / "out")
    graph.write_bytes(graph.read_bytes()[:-7])
    with pytest.raises(TeacherError, match="is not a complete ONNX file"):
        example["prepare"](tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_is_not_overwritten(graph: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tag_vocab.json"):
        (tmp_path / name).touch()
    with pytest.raises(OutputError, match="already there"):
        example["prepare"](tmp_path, tmp_path)
