"""Reports of models that a tool took and could not treat: packed, masked or absent weights, unusual heads, inputs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from case import case
from peft import PeftModel
from small import batches, bert, gpt2, llama, same_outputs
from torch import nn
from torch.nn.utils import prune
from transformers import AutoModel, AutoModelForCausalLM, CLIPConfig, CLIPModel

from wid_hf import WidConfig, get_wid_model

KIND = "A gap is a refusal"


def _planned(teacher: Any) -> PeftModel:
    """Return the wid model of half the width that needs no data."""
    return get_wid_model(teacher, WidConfig(hidden_size=12, init="identity"))


@case(
    KIND,
    "peft#2501, peft#2321",
    "A teacher quantized to 8 bit by PyTorch",
    refused=("quantized", "from before quantization|dequantize|without quantization"),
)
def quantized_by_torch(folder: Path) -> None:
    quantized = torch.ao.quantization.quantize_dynamic(bert(), {nn.Linear}, dtype=torch.qint8)
    _planned(quantized)


@case(
    KIND,
    "peft#2501, peft#2321",
    "A teacher with weights in eight bits and scales beside them, as packers leave them",
    refused=("quantized", "dequantize|without quantization_config"),
)
def quantized_by_packing(folder: Path) -> None:
    class PackedLinear(nn.Module):
        def __init__(self, of: nn.Linear) -> None:
            super().__init__()
            scale = of.weight.detach().abs().max() / 127
            self.register_buffer("weight_scale", scale)
            self.weight = nn.Parameter((of.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
            self.bias = of.bias

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x, self.weight * self.weight_scale, self.bias)

    teacher = bert()
    for layer in teacher.bert.encoder.layer:
        layer.output.dense = PackedLinear(layer.output.dense)
    _planned(teacher)


@case(
    KIND,
    "transformers#43019, peft#2321",
    "A teacher pruned by masks that stand beside its weights",
    refused=("pruned by mask", r"prune\.remove"),
)
def pruned_by_mask(folder: Path) -> None:
    teacher = bert()
    prune.l1_unstructured(teacher.bert.encoder.layer[0].output.dense, "weight", amount=0.5)
    _planned(teacher)


@case(KIND, "transformers#43019, peft#2321", "The same after `prune.remove`: a student of the pruned weights")
def pruned_for_good(folder: Path) -> None:
    teacher = bert()
    pruned = teacher.bert.encoder.layer[0].output.dense
    prune.l1_unstructured(pruned, "weight", amount=0.5)
    prune.remove(pruned, "weight")
    before = copy.deepcopy(pruned.weight.detach())
    model = _planned(teacher)
    assert torch.equal(model.merge_and_unload().bert.encoder.layer[0].output.dense.weight, before[:12])


@case(
    KIND,
    "transformers#43019",
    "A teacher whose weights a norm of the old kind computes before each forward",
    refused=("WeightNorm|weight_norm", "remove_weight_norm"),
)
def weight_norm_of_the_old_kind(folder: Path) -> None:
    teacher = bert()
    torch.nn.utils.weight_norm(teacher.bert.encoder.layer[0].output.dense)
    _planned(teacher)


@case(
    KIND,
    "transformers#43019",
    "A teacher offloaded by accelerate, its weights fetched for each forward",
    refused=("offloaded", "device_map"),
)
def offloaded_teacher(folder: Path) -> None:
    from accelerate import cpu_offload

    teacher = bert()
    cpu_offload(teacher, torch.device("cpu"))
    _planned(teacher)


@case(
    KIND,
    "transformers#43019, peft#2321",
    "A teacher loaded by `device_map` onto two places, one of them the disk",
    refused=("device|offload|disk", "device_map"),
)
def teacher_over_two_devices(folder: Path) -> None:
    bert("BertModel").save_pretrained(folder / "teacher")
    places = {"embeddings": "cpu", "encoder": "disk", "pooler": "cpu"}
    teacher = AutoModel.from_pretrained(folder / "teacher", device_map=places, offload_folder=str(folder / "away"))
    _planned(teacher)


@case(
    KIND, "transformers#34055", "A teacher with flex attention: the student is that of the teacher with the usual one"
)
def flex_attention(folder: Path) -> None:
    torch.compiler.set_stance("force_eager")  # flex attention compiles itself, which takes a minute on a processor
    llama(head_dim=16).save_pretrained(folder / "teacher")
    flexible, usual = (
        AutoModelForCausalLM.from_pretrained(folder / "teacher", attn_implementation=kind)
        for kind in ("flex_attention", "sdpa")
    )
    config = WidConfig(hidden_size=16, head_strategy="head")
    student, other = (
        get_wid_model(teacher.eval(), config, calibration_data=batches()).merge_and_unload()
        for teacher in (flexible, usual)
    )
    assert student.config._attn_implementation == "flex_attention"
    batch = batches(1)[0]
    with torch.no_grad():
        first, second = (model.eval()(**batch).logits for model in (student, other))
    torch.testing.assert_close(first, second, atol=1e-3, rtol=1e-3)


def _choices() -> dict[str, torch.Tensor]:
    return {name: value.view(2, 4, 12) for name, value in batches(1)[0].items()}


@case(KIND, "transformers#4921", "Multiple choice, inputs of `(batch, choices, positions)`: student and adapter load")
def multiple_choice(folder: Path) -> None:
    data = [_choices() for _ in range(4)]
    model = get_wid_model(bert("BertForMultipleChoice"), WidConfig(hidden_size=12), calibration_data=data)
    model.save_pretrained(folder / "adapter")
    student = model.merge_and_unload()
    assert student(**_choices()).logits.shape == (2, 4)
    again = PeftModel.from_pretrained(bert("BertForMultipleChoice"), folder / "adapter")
    same_outputs(student, again.merge_and_unload(), _choices())


@case(KIND, "transformers#1789, transformers#34055", "A decoder that classifies, without a padding token: text by text")
def decoder_classifier_without_pad(folder: Path) -> None:
    teacher = gpt2("GPT2ForSequenceClassification")
    assert teacher.config.pad_token_id is None
    data = batches(count=16, rows=1)
    model = get_wid_model(teacher, WidConfig(hidden_size=12), calibration_data=data)
    student = model.merge_and_unload()
    assert student.transformer.wte.weight.shape == (60, 12)
    same_outputs(model, student, data[0])


@case(KIND, "transformers#1789, transformers#34055", "A dual encoder of texts and images, each with a size of its own")
def dual_encoder(folder: Path) -> None:
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    texts = sizes | {"vocab_size": 60, "max_position_embeddings": 16, "eos_token_id": 59}
    images = sizes | {"image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    teacher = CLIPModel(CLIPConfig(text_config=texts, vision_config=images, projection_dim=20)).eval()
    wanted: dict[str, Any] = {"text_config": {"hidden_size": 12}, "vision_config": {"hidden_size": 16}}
    model = get_wid_model(teacher, WidConfig(overrides=wanted, init="identity"))
    student = model.merge_and_unload()
    student.save_pretrained(folder / "student")
    loaded = CLIPModel.from_pretrained(folder / "student")
    ids = torch.randint(3, 59, (2, 8))
    ids[:, -1] = 59
    batch = {"input_ids": ids, "pixel_values": torch.randn(2, 3, 16, 16)}
    with torch.no_grad():
        one, other, third = (each.eval()(**batch).logits_per_image for each in (model, student, loaded))
    assert one.shape == (2, 2)
    assert torch.equal(one, other)
    assert torch.equal(one, third)
    assert loaded.text_model.final_layer_norm.weight.shape == (12,)
    assert loaded.vision_model.post_layernorm.weight.shape == (16,)
