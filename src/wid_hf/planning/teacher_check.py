"""Refuses a teacher whose weights are not plain tensors of one device, and says how to get one that is.

Takes a model; raises, or returns nothing. Called by `plan_student` first. It looks at tensors, modules and hooks, never
at a model's name.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from transformers import PreTrainedModel

from ..errors import TeacherError

PARAMETRIZED = "The teacher's weights are parametrized already. Pass a model with plain weights."
PLAIN = (Tensor, nn.Parameter)
PACKED = ("qweight", "weight_packed", "weight_scale", "_packed_params", "quantization_scheme")
IRREVERSIBLE = "torch.ao.quantization"
QUANTIZERS = ("bitsandbytes", "torchao", "quanto", "gptqmodel", "auto_gptq", "awq", "compressed_tensors", "hqq")


def check_teacher(teacher: object) -> None:
    """Refuse anything but a stock model with weights.

    Raises:
        TeacherError: says what was given, and what to pass.
    """
    if hasattr(teacher, "peft_config"):
        raise TeacherError(
            f"The teacher is wrapped by PEFT already ({type(teacher).__name__}). "
            "Pass the plain model, or call merge_and_unload() on it first."
        )
    if not isinstance(teacher, PreTrainedModel):
        inside = _wrapped(teacher)
        raise TeacherError(
            f"The teacher is a {type(teacher).__name__}; pass "
            + (f"the model that it wraps (.{inside})." if inside else "a transformers PreTrainedModel.")
        )
    for refusal in REFUSALS:
        if said := refusal(teacher):
            raise TeacherError(said)
    if any(_is_foreign(step) for module in teacher.modules() for step in _parametrizations(module)):
        raise TeacherError(PARAMETRIZED)


def _wrapped(teacher: object) -> str | None:
    """Return the attribute under which a wrapper, of DDP, FSDP or torch.compile, holds the model."""
    names = ("module", "_orig_mod")
    return next((name for name in names if isinstance(getattr(teacher, name, None), PreTrainedModel)), None)


def _shared_among_processes(teacher: PreTrainedModel) -> str | None:
    """Weights that are divided among processes."""
    for name, tensor in _tensors(teacher):
        if type(tensor).__name__ == "DTensor" or isinstance(getattr(tensor, "data", None), _dtensor()):
            return (
                f"The teacher's weights are spread over processes (`{name}` is a DTensor: tensor parallel or FSDP). "
                "Load it whole in each process: from_pretrained(...) without tp_plan, before fully_shard."
            )
        if hasattr(tensor, "ds_id"):
            return (
                f"The teacher's weights are partitioned by DeepSpeed ZeRO-3 (`{name}`). "
                "Load it outside of the ZeRO-3 context, before TrainingArguments are made, or use ZeRO-2."
            )
    if (getattr(teacher, "_tp_size", None) or 1) > 1:
        return (
            f"The teacher is split by tensor parallelism into {teacher._tp_size} pieces. "
            "Load it whole in each process: from_pretrained(...) without tp_plan."
        )
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in teacher.modules()):
        return "Parts of the teacher are wrapped by FSDP. Make the wid model first, then wrap that."
    return None


def _offloaded(teacher: PreTrainedModel) -> str | None:
    """Weights that accelerate keeps elsewhere and fetches for each forward."""
    if (away := _offloaded_part(teacher)) is None:
        return None
    return (
        f"Parts of the teacher are offloaded by accelerate ({away}), so that weights are missing. Load it "
        "whole on one device: from_pretrained(..., device_map=None), or device_map={'': 0} where it fits."
    )


def _on_several_devices(teacher: PreTrainedModel) -> str | None:
    """Weights that lie on several devices."""
    places = {str(tensor.device): name for name, tensor in _tensors(teacher) if not tensor.is_meta}
    mapped = _mapped_places(teacher)
    if len(places) <= 1 and len(mapped) <= 1:
        return None
    where = ", ".join(f"{device} (`{name}`)" for device, name in places.items()) or ", ".join(sorted(mapped))
    return (
        f"The teacher is spread over several devices: {where}. A student is planned and folded on one. Load it "
        "with device_map=None, or move it: accelerate.hooks.remove_hook_from_submodules(teacher), then "
        "teacher.to(device)."
    )


def _dtensor() -> type:
    if not torch.distributed.is_available():
        return type(None)
    from torch.distributed.tensor import DTensor

    return DTensor


def _offloaded_part(teacher: PreTrainedModel) -> str | None:
    """Return which part accelerate fetches for each forward, or where it is offloaded to."""
    for name, module in teacher.named_modules():
        hook = getattr(module, "_hf_hook", None)
        for step in getattr(hook, "hooks", (hook,)):
            if getattr(step, "offload", False):
                return f"`{name}`" if name else "the whole model"
    return "to disk" if "disk" in _mapped_places(teacher) else None


def _mapped_places(teacher: PreTrainedModel) -> set[str]:
    """Return the devices that `device_map` put parts of the teacher on."""
    return {str(place) for place in (getattr(teacher, "hf_device_map", None) or {}).values()}


def _quantized(teacher: PreTrainedModel) -> str | None:
    """Weights in few bits, from any library: recognised by tensors and modules, not by the config.

    A model that was dequantized on loading has weights like any other, though its config may still say otherwise.
    """
    of_tensors = (_quantizer_of_tensor(name, tensor) for name, tensor in _tensors(teacher))
    of_modules = (_quantizer_of_module(name, module) for name, module in teacher.named_modules())
    if (found := next(filter(None, chain(of_tensors, of_modules)), None)) is None:
        return None
    by, sign = found
    if by == IRREVERSIBLE:
        return (
            f"The teacher is quantized by {by} ({sign}), which cannot be undone. Pass the model from before "
            "quantization, and quantize the student."
        )
    return (
        f"The teacher is quantized{f' {by}' if by else ''} ({sign}): weights in few bits cannot be narrowed. "
        + ("Call teacher.dequantize(), or load" if getattr(teacher, "hf_quantizer", None) else "Load")
        + " it without quantization_config, as float16, bfloat16 or float32; quantize the student afterwards."
    )


def _quantizer_of_tensor(name: str, tensor: Tensor) -> tuple[str, str] | None:
    """Return how a tensor was quantized, and what shows it; None if it was not."""
    if (library := next((word for word in QUANTIZERS if word in _classes(tensor)), None)) is not None:
        return f"by {library}", f"`{name}` is a {type(tensor).__name__}"
    if isinstance(tensor, nn.Parameter) and not (tensor.is_floating_point() or tensor.is_complex()):
        return "to integers", f"`{name}` is {tensor.dtype}"
    if tensor.is_floating_point() and tensor.dtype.itemsize == 1:
        return "to 8 bit", f"`{name}` is {tensor.dtype}"
    return None


def _quantizer_of_module(name: str, module: nn.Module) -> tuple[str, str] | None:
    """Return which library quantized a module, and what shows it; None if none did."""
    kinds = [kind.__module__ for kind in type(module).__mro__]
    if any(kind.startswith(("torch.ao.nn.", "torch.ao.quantization.")) for kind in kinds):
        return IRREVERSIBLE, f"`{name}` is a {type(module).__module__}.{type(module).__name__}"
    words = {word for kind in kinds for word in kind.split(".")}
    if (library := next((word for word in QUANTIZERS if word in words), None)) is not None:
        return f"by {library}", f"`{name}` is a {type(module).__name__}"
    if (packed := next((word for word in PACKED if hasattr(module, word)), None)) is not None:
        return "", f"`{name}` is a {type(module).__name__} with {packed}"
    return None


def _recomputed(teacher: PreTrainedModel) -> str | None:
    """Weights that a hook computes from others before each forward: masks and norms of the old kind."""
    for name, module in teacher.named_modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, prune.BasePruningMethod):
                return (
                    f"The teacher is pruned by mask (`{name}.{hook._tensor_name}`). Make it permanent first: "
                    f'torch.nn.utils.prune.remove(module, "{hook._tensor_name}") for each pruned module.'
                )
            for kind, undo in ((WeightNorm, "remove_weight_norm"), (SpectralNorm, "remove_spectral_norm")):
                if isinstance(hook, kind):
                    return (
                        f"`{name}.{hook.name}` of the teacher is computed by torch.nn.utils's old {kind.__name__}. "
                        f"Take it off first: torch.nn.utils.{undo}(module, {hook.name!r})."
                    )
    return None


def _absent(teacher: PreTrainedModel) -> str | None:
    """Weights that are not there yet."""
    for name, tensor in _tensors(teacher):
        if isinstance(tensor, (UninitializedBuffer, UninitializedParameter)):
            return f"`{name}` of the teacher has no shape yet: run a forward, so that lazy modules make their weights."
    if any(tensor.is_meta for tensor in teacher.parameters()):
        return (
            "The teacher is on the meta device and has no weights. Load it with from_pretrained(...) "
            "without device_map='meta' or init_empty_weights()."
        )
    return None


def _not_recordable(teacher: PreTrainedModel) -> str | None:
    """Tensors of kinds from which no student can be computed with gradients."""
    for name, tensor in _tensors(teacher):
        if tensor.is_inference():
            return (
                f"The teacher's weights are inference tensors (`{name}`), which no gradient can pass. Load or make "
                "the teacher outside of torch.inference_mode()."
            )
        if type(tensor) not in PLAIN:
            return (
                f"`{name}` of the teacher is a {type(tensor).__name__}; pass a model whose weights are plain tensors."
            )
        if tensor.layout != torch.strided:
            return f"`{name}` of the teacher is sparse ({tensor.layout}); make it dense first: .to_dense()."
    return None


def _needs_more_than_a_config(teacher: PreTrainedModel) -> str | None:
    return why_not_made_of_a_config(type(teacher))


def why_not_made_of_a_config(model_class: type) -> str | None:
    """Return why a class cannot be made from a config alone, as `from_pretrained` and the student need it."""
    others = list(inspect.signature(model_class).parameters.values())[1:]
    needed = [p.name for p in others if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if not needed:
        return None
    return (
        f"{model_class.__name__}(config) cannot be made: its constructor also needs {', '.join(needed)}. A student "
        "is an instance of the same class, made from its config alone. Give these arguments defaults, or put them into "
        "the config."
    )


def _tensors(teacher: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    yield from teacher.named_parameters()
    yield from teacher.named_buffers()


def _classes(tensor: Tensor) -> set[str]:
    """Return every word in the module paths of a tensor's classes."""
    kinds = {*type(tensor).__mro__, *type(tensor.data).__mro__}
    return {word for kind in kinds for word in kind.__module__.split(".")}


def _parametrizations(module: nn.Module) -> Iterator[nn.Module]:
    if parametrize.is_parametrized(module):
        for steps in module.parametrizations.values():  # type: ignore[operator]
            yield from steps


def _is_foreign(step: nn.Module) -> bool:
    """Return whether a parametrization is none of torch's own, which stock models may have (wav2vec 2.0)."""
    return type(step).__module__ != "torch.nn.utils.parametrizations"


REFUSALS = (
    _shared_among_processes,
    _offloaded,  # before devices: weights are on the meta device while they are away
    _on_several_devices,
    _quantized,
    _recomputed,
    _absent,
    _not_recordable,
    _needs_more_than_a_config,
)
