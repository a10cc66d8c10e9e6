"""A teacher whose weights are not plain tensors of one device is refused, named, and told how to become one that is."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel

from wid_hf import TeacherError, WidConfig, get_wid_model, plan_student
from wid_hf.planning.teacher_check import check_teacher

HALF = WidConfig(hidden_size=12, init="identity")


def refused(teacher: object, *words: str) -> None:
    """Both entries refuse it, before anything ran, with all of `words`."""
    for entry in (check_teacher, lambda t: plan_student(t, HALF), lambda t: get_wid_model(t, HALF)):
        with pytest.raises(TeacherError) as refusal:
            entry(teacher)
        assert all(word in str(refusal.value) for word in words), str(refusal.value)


def first_linear(model: nn.Module) -> nn.Linear:
    return next(module for module in model.modules() if isinstance(module, nn.Linear))


def linear_in_place_of(model: PreTrainedModel, made: Callable[[nn.Linear], nn.Module]) -> None:
    layer = model.bert.encoder.layer[0].intermediate
    layer.dense = made(layer.dense)


def test_a_plain_model_passes(tiny_bert: BertForMaskedLM) -> None:
    check_teacher(tiny_bert)


def test_dynamic_quantization_is_refused_by_name(tiny_bert: BertForMaskedLM) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.ao.quantization.quantize_dynamic(tiny_bert, {nn.Linear}, dtype=torch.qint8)
    refused(quantized, "quantized by torch.ao.quantization", "Pass the model from before")


def test_training_that_prepares_quantization_is_refused(tiny_bert: BertForMaskedLM) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tiny_bert.bert.observer = torch.ao.quantization.FakeQuantize()
    refused(tiny_bert, "quantized by torch.ao.quantization", "bert.observer")


class Packed(nn.Module):
    """What GPTQ, AWQ and their kin put in the place of a linear layer."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("qweight", torch.zeros(linear.in_features // 8, linear.out_features, dtype=torch.int32))
        self.register_buffer("scales", torch.ones(1, linear.out_features))


def test_a_layer_with_packed_weights_is_refused(tiny_bert: BertForMaskedLM) -> None:
    linear_in_place_of(tiny_bert, Packed)
    refused(tiny_bert, "is quantized", "intermediate.dense", "Packed with qweight", "without quantization_config")


def test_integer_weights_are_refused(tiny_bert: BertForMaskedLM) -> None:
    layer = first_linear(tiny_bert)
    layer.weight = nn.Parameter((layer.weight * 100).to(torch.int8), requires_grad=False)
    refused(tiny_bert, "quantized to integers", "torch.int8")


def test_weights_in_eight_bit_floats_are_refused(tiny_bert: BertForMaskedLM) -> None:
    layer = first_linear(tiny_bert)
    layer.weight = nn.Parameter(layer.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    refused(tiny_bert, "quantized to 8 bit", "float8_e4m3fn")


def test_a_model_that_can_dequantize_itself_is_told_to(tiny_bert: BertForMaskedLM) -> None:
    linear_in_place_of(tiny_bert, Packed)
    tiny_bert.hf_quantizer = object()
    refused(tiny_bert, "Call teacher.dequantize()")


def test_a_leftover_quantization_config_is_no_reason(tiny_bert: BertForMaskedLM) -> None:
    """Files that were dequantized on loading, such as GGUF, leave one."""
    tiny_bert.config.quantization_config = {"quant_method": "gguf"}
    check_teacher(tiny_bert)


def _bitsandbytes(bits: int) -> Callable[[nn.Linear], nn.Module]:
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    if bits == 4:
        return lambda old: bnb.nn.Linear4bit(old.in_features, old.out_features).to("cpu")
    return lambda old: bnb.nn.Linear8bitLt(old.in_features, old.out_features, has_fp16_weights=False)


@pytest.mark.parametrize("bits", [4, 8])
def test_bitsandbytes_is_refused_by_name(tiny_bert: BertForMaskedLM, bits: int) -> None:
    linear_in_place_of(tiny_bert, _bitsandbytes(bits))
    refused(tiny_bert, "quantized by bitsandbytes", "intermediate.dense")


def test_torchao_is_refused_by_name(tiny_bert: BertForMaskedLM) -> None:
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    torchao.quantize_(tiny_bert, torchao.Int8WeightOnlyConfig())
    refused(tiny_bert, "quantized by torchao")


def test_quanto_is_refused_by_name(tiny_bert: BertForMaskedLM) -> None:
    quanto = pytest.importorskip("optimum.quanto", reason="optimum-quanto is not installed")
    quanto.quantize(tiny_bert, weights=quanto.qint8)
    refused(tiny_bert, "quantized by quanto")


def test_compressed_tensors_is_refused_by_name(tiny_bert: BertForMaskedLM) -> None:
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme, apply_quantization_config
    from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme

    scheme: QuantizationScheme = preset_name_to_scheme("W8A16", ["Linear"])
    apply_quantization_config(tiny_bert, QuantizationConfig(config_groups={"all": scheme}))
    refused(tiny_bert, "is quantized", "quantization_scheme")


class Foreign(Tensor):
    """A tensor of another kind."""


@pytest.mark.parametrize(
    ("module", "word"), [("torchao.dtypes", "quantized by torchao"), ("else.where", "is a Foreign")]
)
def test_weights_of_another_tensor_class_are_refused(
    tiny_bert: BertForMaskedLM, monkeypatch: pytest.MonkeyPatch, module: str, word: str
) -> None:
    monkeypatch.setattr(Foreign, "__module__", module)
    layer = first_linear(tiny_bert)
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Foreign))
    refused(tiny_bert, word)


def test_a_mask_of_pruning_is_refused_until_it_is_permanent(tiny_bert: BertForMaskedLM) -> None:
    layer = first_linear(tiny_bert)
    prune.l1_unstructured(layer, "weight", amount=0.5)
    refused(tiny_bert, "pruned by mask", 'prune.remove(module, "weight")', "query.weight")
    prune.remove(layer, "weight")
    check_teacher(tiny_bert)


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm"])
def test_norms_of_the_old_kind_are_refused_until_they_are_taken_off(tiny_bert: BertForMaskedLM, kind: str) -> None:
    layer = first_linear(tiny_bert)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        getattr(nn.utils, kind)(layer)
    refused(tiny_bert, f"remove_{kind}(module, 'weight')", "query.weight")
    getattr(nn.utils, f"remove_{kind}")(layer)
    check_teacher(tiny_bert)


def test_a_norm_of_the_new_kind_that_the_class_does_not_have_is_refused(tiny_bert: BertForMaskedLM) -> None:
    nn.utils.parametrizations.spectral_norm(first_linear(tiny_bert))
    with pytest.raises(TeacherError, match="parametrized already"):
        plan_student(tiny_bert, HALF)


def test_weights_on_two_devices_are_refused_though_one_of_them_is_no_device(tiny_bert: BertForMaskedLM) -> None:
    tiny_bert.hf_device_map = {"bert.embeddings": 0, "bert.encoder": 1, "cls": 1}
    refused(tiny_bert, "spread over several devices", "device_map=None")


def test_a_device_map_of_one_device_passes(tiny_bert: BertForMaskedLM) -> None:
    tiny_bert.hf_device_map = {"": "cpu"}
    check_teacher(tiny_bert)


def test_offloaded_weights_are_refused(tiny_bert: BertForMaskedLM, tmp_path: Any) -> None:
    from accelerate import cpu_offload, disk_offload

    refused(cpu_offload(tiny_bert, torch.device("cpu")), "offloaded by accelerate", "device_map=None")
    other = BertForMaskedLM(tiny_bert.config)
    disk_offload(other, tmp_path, torch.device("cpu"))
    refused(other, "offloaded by accelerate", "device_map=None")


def test_inference_tensors_are_refused() -> None:
    config = BertConfig(vocab_size=60, hidden_size=24, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48)
    with torch.inference_mode():
        teacher = BertForMaskedLM(config)
    refused(teacher, "inference tensors", "outside of torch.inference_mode()")


def test_pieces_of_processes_are_refused(tiny_bert: BertForMaskedLM) -> None:
    tiny_bert._tp_size = 2
    refused(tiny_bert, "tensor parallelism", "without tp_plan")
    tiny_bert._tp_size = None
    first_linear(tiny_bert).weight.ds_id = 3
    refused(tiny_bert, "DeepSpeed ZeRO-3")


def test_distributed_tensors_are_refused(tiny_bert: BertForMaskedLM, tmp_path: Any) -> None:
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, distribute_tensor

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        layer = first_linear(tiny_bert)
        mesh = init_device_mesh("cpu", (1,))
        layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), mesh, [Replicate()]))
        refused(tiny_bert, "spread over processes", "DTensor", "without tp_plan")
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_a_wrapper_is_refused_and_says_where_the_model_is(tiny_bert: BertForMaskedLM, wrap: Any) -> None:
    wrapped = wrap(tiny_bert)
    refused(wrapped, "pass the model that it wraps")


def test_a_lazy_weight_is_refused(tiny_bert: BertForMaskedLM) -> None:
    linear_in_place_of(tiny_bert, lambda old: nn.LazyLinear(old.out_features))
    refused(tiny_bert, "has no shape yet")


def test_a_sparse_weight_is_refused(tiny_bert: BertForMaskedLM) -> None:
    layer = first_linear(tiny_bert)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer.weight = nn.Parameter(layer.weight.detach().to_sparse())
    refused(tiny_bert, "sparse", ".to_dense()")


class NeedsMore(BertForMaskedLM):
    """Made from a config and something else."""

    def __init__(self, config: BertConfig, tokenizer: object, *, length: int = 3) -> None:
        super().__init__(config)


def test_a_class_that_cannot_be_made_from_its_config_is_refused(tiny_bert: BertForMaskedLM) -> None:
    refused(NeedsMore(tiny_bert.config, None).eval(), "NeedsMore(config)", "also needs tokenizer", "defaults")
