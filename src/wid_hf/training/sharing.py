"""How processes share the weights of a wid model: what works, what is refused, and what a trainer must do for it.

Takes a trainer's accelerator and arguments, and a wid model before and after it is wrapped. Called by `WidTrainer`.
`docs/scale.md` has the table.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from peft import PeftModel
from torch import Tensor, nn

from ..errors import TrainingError

DIVIDED = ("FSDP2", "DeepSpeed ZeRO-1", "DeepSpeed ZeRO-2", "DeepSpeed ZeRO-3")


def sharing_of(accelerator: Any) -> str | None:
    """Return the name of what divides weights or optimizer states among processes; None if nothing does."""
    state = accelerator.state
    if (plugin := getattr(state, "fsdp_plugin", None)) is not None:
        return f"FSDP{getattr(plugin, 'fsdp_version', 1)}"
    if (zero := getattr(state, "deepspeed_plugin", None)) is not None:
        return f"DeepSpeed ZeRO-{zero.zero_stage}"
    return None


def refuse_sharing(accelerator: Any, model: PeftModel, *, compares: bool) -> None:
    """Refuse what cannot be trained in the way that the processes share the weights.

    Args:
        accelerator: of the trainer.
        model: the wid model.
        compares: whether the loss runs the teacher.

    Raises:
        TrainingError: names what was asked for, and what to use.
    """
    _refuse_tensor_parallel(accelerator)
    sharing = sharing_of(accelerator)
    if sharing is None:
        return
    if sharing not in DIVIDED:
        raise TrainingError(
            f"{sharing} does not work with folded weights. Use fsdp_config={{'version': 2, ...}}, DeepSpeed with stage "
            "1, 2 or 3, or plain data parallelism."
        )
    if model.base_model.is_wide:
        raise TrainingError(
            f"A progressive schedule makes weights smaller during training, and {sharing} divides the weights or "
            "optimizer states of the start among processes. Train with plain data parallelism (torchrun without fsdp "
            "or deepspeed) or torch's ZeroRedundancyOptimizer, or with schedule='narrow'."
        )
    if sharing == "DeepSpeed ZeRO-3" and compares:
        raise TrainingError(
            "A loss that runs the teacher does not work with DeepSpeed ZeRO-3, which has parted the teacher's weights. "
            "Use FSDP2, ZeRO-2 or plain data parallelism, or leave distillation and the task's loss out."
        )
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    for option in ("cpu_ram_efficient_loading", "activation_checkpointing"):
        if getattr(plugin, option, False):
            raise TrainingError(REFUSED_OPTIONS[option])


REFUSED_OPTIONS = {
    "cpu_ram_efficient_loading": (
        "fsdp_config cpu_ram_efficient_loading=True loads the teacher in the first process only, and every process "
        "plans the student from its teacher. Set it to False."
    ),
    "activation_checkpointing": (
        "fsdp_config activation_checkpointing=True renames the layers, and an adapter is saved by their names. Set "
        "activation_checkpointing or gradient_checkpointing of the training arguments instead."
    ),
}


def _refuse_tensor_parallel(accelerator: Any) -> None:
    parallelism = getattr(accelerator, "parallelism_config", None)
    found = [name for name in ("tp", "cp", "sp") if getattr(parallelism, f"{name}_enabled", False)]
    if found:
        raise TrainingError(
            f"parallelism_config with {found[0]}_size above 1 divides the layers of a model themselves; a student is "
            "folded from whole weights. Use dp_shard_size (FSDP2) or dp_replicate_size alone."
        )


class Units:
    """Tells accelerate, while it is open, which modules of a wid model may be units of FSDP2: no two share a parameter.

    By itself it would make a unit of the input table, and of every class that the model names as one that must not be
    split. But tables whose rows are summed share a compactor, and a tied table is the head as well. So tables and
    classes that share parameters with others are left to the unit of the whole model.

    Args:
        model: the wid model.
        asked: names of classes that the caller wants as units; None for those that the model names.

    Raises:
        TrainingError: a class that was asked for shares parameters with modules outside of it.
    """

    TABLES = ("get_input_embeddings", "get_output_embeddings")
    CLASSES = "_no_split_modules"

    def __init__(self, model: PeftModel, asked: Iterable[str] | None = None) -> None:
        self._model = model
        names = list(asked if asked is not None else getattr(model.base_model.model, self.CLASSES, None) or ())
        self._apart = [name for name in names if _is_apart(model, name)]
        if asked is not None and (others := sorted({*names} - {*self._apart})):
            raise TrainingError(
                f"transformer_layer_cls_to_wrap names {others[0]}, which shares weights or maps with modules outside "
                f"of it, and FSDP2 cannot part these. Legal here: {', '.join(self._apart) or 'none of those named'}."
            )

    def open(self) -> None:
        """Let the model name no tables, and only classes that stand apart."""
        for name in self.TABLES:
            setattr(self._model, name, lambda: None)
        setattr(self._model, self.CLASSES, self._apart)

    def close(self) -> None:
        """Let the model name tables and classes as before."""
        for name in (*self.TABLES, self.CLASSES):
            vars(self._model).pop(name, None)


def _is_apart(model: nn.Module, class_name: str) -> bool:
    """Return whether modules of a class, of which there is one at least, share no parameter with others."""
    units = [module for module in model.modules() if type(module).__name__ == class_name]
    return bool(units) and not any(_shares(model, unit) for unit in units)


def _shares(model: nn.Module, unit: nn.Module) -> bool:
    inside = {*unit.modules()}
    mine = {id(p) for p in unit.parameters()}
    outside = (p for module in model.modules() if module not in inside for p in module._parameters.values())
    return any(id(p) in mine for p in outside)


class Originals:
    """The teacher's weights in a student that is going to be sharded, so that the teacher keeps no whole copies.

    Args:
        model: the wid model before it is sharded.
    """

    def __init__(self, model: PeftModel) -> None:
        self._model = model
        self._before = dict(model.named_parameters(remove_duplicate=False))

    def follow(self, teachers: Iterable[nn.Module], weights: dict[str, Tensor]) -> None:
        """Let modules of the teacher, and a dictionary of its weights, hold what the student's hold now.

        Args:
            teachers: models on the teacher's tensors.
            weights: of the teacher, by name.
        """
        now = dict(self._model.named_parameters(remove_duplicate=False))
        moved = {id(tensor): now[name] for name, tensor in self._before.items() if now[name] is not tensor}
        for teacher in teachers:
            for module in teacher.modules():
                for name, parameter in module._parameters.items():
                    if id(parameter) in moved:
                        module._parameters[name] = moved[id(parameter)]
        for name, tensor in weights.items():
            weights[name] = moved.get(id(tensor), tensor)
