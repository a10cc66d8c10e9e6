"""Weights of CTranslate2 become those of the stock model that they were converted from."""

from __future__ import annotations

import runpy
import struct
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperModel

from wid_hf.errors import TeacherError

SCRIPT = Path(__file__).parents[2] / "examples" / "prepare_whisper.py"
example = runpy.run_path(str(SCRIPT))
FLOAT = 0  # its number in CTranslate2


def tiny_whisper() -> WhisperModel:
    sizes = {f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    sizes |= {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    return WhisperModel(
        WhisperConfig(
            vocab_size=30, num_mel_bins=4, d_model=8, max_source_positions=6, max_target_positions=5, pad_token_id=0,
            bos_token_id=0, eos_token_id=0, decoder_start_token_id=1, **sizes,
        )
    )  # fmt: skip


def converted(model: WhisperModel) -> dict[str, Tensor]:
    """The tensors as CTranslate2 names and fuses them."""
    state = {name: value.detach() for name, value in model.state_dict().items()}
    outside = {ours: theirs for theirs, ours in example["OUTSIDE"].items()}
    norms = {ours: theirs for theirs, ours in example["NORMS"].items()}
    places = example["PLACES"]
    found: dict[str, Tensor] = {"decoder/activation": torch.tensor(1.0)}
    for name, value in state.items():
        side, _, inside = name.partition(".")
        if inside in outside:
            found[f"{side}/{outside[inside]}"] = value
        elif (part := inside.split(".")[2]) in norms:
            kind = {"weight": "gamma", "bias": "beta"}[name.rpartition(".")[2]]
            found[f"{side}/layer_{inside.split('.')[1]}/{norms[part]}/layer_norm/{kind}"] = value
    for side in ("encoder", "decoder"):
        for layer in range(2):
            for place, projections in example["PROJECTIONS"].items():
                module = f"{side}.layers.{layer}.{places[place.split('/')[0]]}".rstrip(".")
                if f"{module}.{projections[0]}.weight" not in state:
                    continue  # an encoder has no attention to another
                for what in ("weight", "bias"):
                    parts = [
                        state.get(f"{module}.{each}.{what}", torch.zeros(8))  # keys have no bias
                        for each in projections
                    ]
                    found[f"{side}/layer_{layer}/{place}/{what}"] = torch.cat(parts)
    return found


def stored(tensors: dict[str, Tensor]) -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    content = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(tensors))
    for name, tensor in tensors.items():
        data = tensor.numpy().tobytes()
        content += text(name) + struct.pack(f"<B{tensor.ndim}I", tensor.ndim, *tensor.shape)
        content += struct.pack("<BI", FLOAT, len(data)) + data
    return content


def test_every_weight_is_found_again_under_its_own_name() -> None:
    model = tiny_whisper()
    weights = example["stock_weights"](example["stored_tensors"](stored(converted(model))))
    torch.testing.assert_close(weights, dict(model.state_dict()))


def test_a_file_that_ends_too_early_and_a_folder_without_files_are_refused(tmp_path: Path) -> None:
    content = stored(converted(tiny_whisper()))
    with pytest.raises(TeacherError, match="no model of CTranslate2"):
        example["stored_tensors"](content[: len(content) // 2])
    with pytest.raises(TeacherError, match=r"lacks model.bin.part1, .*config.json"):
        example["prepare"](tmp_path, tmp_path / "output")
