"""What is checked on a GPU that no test on a CPU can show.

Each check takes whether to be tiny, gives plain values for a record, and raises where something is wrong.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable
from math import isfinite
from typing import Any

import torch
from accelerator import chosen_device
from cases import Sizes
from datasets import Dataset
from peaks import memory
from peft import PeftModel
from store import Record
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from wid_hf import WidConfig, WidSchedule, WidTrainer, WidTrainingArguments, get_wid_model

BATCH = 8


def machine(tiny: bool) -> Record:
    """Say what the machine is, and compute one product there."""
    found: Record = {"processors": os.cpu_count(), "torch": torch.__version__}
    if (device := chosen_device()).type == "cuda":
        told = subprocess.run(["nvidia-smi"], capture_output=True, text=True, check=False).stdout
        found |= {"nvidia-smi": told, "capability": torch.cuda.get_device_capability(), "cuda": torch.version.cuda}
    elif not tiny:
        raise RuntimeError("torch finds no GPU here: look at `nvidia-smi`, or rehearse with --rehearse.")
    ones = torch.ones(256, 256, device=device)
    if (ones @ ones).sum().item() != 256**3:
        raise RuntimeError("a product of ones is wrong")
    return found


def progressive(tiny: bool) -> Record:
    """Prove a schedule and become narrow by it where products may be rounded to TF32, and merge."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    sizes = Sizes(layers=1, width=96, teacher_width=192) if tiny else Sizes(layers=4, width=384)
    schedule = WidSchedule(mask_interval=1, mask_increments=2, decay_to_zero_steps=2)
    model = get_wid_model(sizes.teacher(chosen_device()), sizes.student(schedule=schedule), verify=True)
    found = _trained(model, steps=8, length=16 if tiny else 128)
    if model.base_model.is_wide:
        raise RuntimeError("after eight steps, of which four are the schedule's, the model is still wide")
    return found | _merged(model)


def llama(tiny: bool) -> Record:
    """Calibrate a Llama inside `WidTrainer`, which has moved it to the GPU, train it and merge."""
    hidden, inner, layers = (64, 128, 2) if tiny else (1024, 2816, 8)
    config = LlamaConfig(
        vocab_size=1000 if tiny else 32000,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
    )
    torch.manual_seed(0)
    model = get_wid_model(LlamaForCausalLM(config), WidConfig(hidden_size=hidden // 2, intermediate_size=inner // 2))
    found = _trained(model, steps=6, length=16 if tiny else 128, bf16=not tiny)
    if not model.base_model.calibrated:
        raise RuntimeError("the trainer has not calibrated the model")
    return found | _merged(model)


CHECKS: dict[str, Callable[[bool], Record]] = {
    "machine": machine,
    "progressive": progressive,
    "llama": llama,
    "memory": memory,
}


def _trained(model: PeftModel, *, steps: int, length: int, bf16: bool = False) -> Record:
    """Train by `WidTrainer` on random rows and return the losses; TF32 is allowed on a GPU."""
    device = chosen_device()
    ids = torch.randint(5, model.config.vocab_size, (64, length), generator=torch.Generator().manual_seed(0)).tolist()
    with tempfile.TemporaryDirectory() as scratch:
        settings: dict[str, Any] = {"tf32": True} if device.type == "cuda" else {}
        arguments = WidTrainingArguments(
            scratch,
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            learning_rate=1e-5,
            compactor_learning_rate=1e-5,
            teacher_learning_rate=1e-5,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            bf16=bf16,
            use_cpu=device.type == "cpu",
            dataloader_pin_memory=device.type == "cuda",
            **settings,
        )
        rows = Dataset.from_dict({"input_ids": ids, "labels": ids})
        trainer = WidTrainer(model=model, args=arguments, train_dataset=rows)
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if len(losses) != steps or not all(map(isfinite, losses)):
        raise RuntimeError(f"{steps} finite losses were expected, and these came: {losses}")
    if (place := next(model.parameters()).device.type) != device.type:
        raise RuntimeError(f"the model is on {place} after a training on {device.type}")
    return {"losses": losses}


def _merged(model: PeftModel) -> Record:
    """Merge, and return how far outputs are from the model's, in shares of the largest."""
    before = _outputs(model)
    student = model.merge_and_unload()
    off = float((_outputs(student) - before).abs().max() / before.abs().max())
    if off > 1e-2:  # a merge folds in full float32, and TF32 rounds what the model folds
        raise RuntimeError(f"outputs of the merged student are off by {off:.1e} of the largest")
    return {"merged_off": off}


def _outputs(model: PeftModel | PreTrainedModel) -> Tensor:
    """Return outputs without dropout, in float32."""
    model.eval()
    with torch.no_grad():
        ids = torch.arange(5, 37, device=next(model.parameters()).device).view(2, 16)
        return model(input_ids=ids).logits.float()
