"""How two processes may share a training: arguments of `TrainingArguments`, by the names that the tests use."""

from __future__ import annotations

from typing import Any

from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from wid_hf import WidTrainer

LAYERS = {"bert": "BertLayer", "llama": "LlamaDecoderLayer"}


def arguments(mode: str, model: str) -> dict[str, Any]:
    """Return what `TrainingArguments` takes for a mode, and prepare this process for it."""
    if mode.startswith("zero"):
        _let_deepspeed_use_gloo()
    return MODES[mode](LAYERS[model])


def _let_deepspeed_use_gloo() -> None:
    """Make the process group that accelerate makes for DeepSpeed on GPUs only."""
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.DEEPSPEED


def _fsdp2(state_dict: str) -> Any:
    def made(layer: str) -> dict[str, Any]:
        config = {"version": 2, "transformer_layer_cls_to_wrap": [layer], "state_dict_type": state_dict}
        return {"fsdp": True, "fsdp_config": config}

    return made


def _zero(stage: int) -> Any:
    config = {
        "zero_optimization": {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    return lambda layer: {"deepspeed": config, "accelerator_config": {"use_configured_state": True}}


class ShardedOnCpu(WidTrainer):
    """Lets accelerate shard on a CPU: by itself it does so on GPUs only, and trains on as if nothing had been asked."""

    def create_accelerator_and_postprocess(self) -> None:
        """Make the accelerator, and put the plugin into its state that it leaves out on a CPU."""
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        if getattr(state, "fsdp_plugin", None) is None:
            state._shared_state["fsdp_plugin"] = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
            state._shared_state["distributed_type"] = DistributedType.FSDP
        self.is_fsdp_enabled = True


MODES: dict[str, Any] = {
    "ddp": lambda layer: {},
    "fsdp2": _fsdp2("SHARDED_STATE_DICT"),
    "fsdp2_full": _fsdp2("FULL_STATE_DICT"),
    "zero1": _zero(1),
    "zero2": _zero(2),
    "zero3": _zero(3),
}
