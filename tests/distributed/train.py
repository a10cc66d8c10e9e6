"""Trains a tiny wid model, alone or as one of several processes; the tests start it, kill it and resume it.

Writes `rank-<i>.json` with losses and digests of weights, and as main process the merged student.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import signal
from pathlib import Path
from typing import Any

import modes
import torch
from datasets import Dataset
from torch import nn
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel, TrainerCallback

from wid_hf import WidConfig, WidTrainer, WidTrainingArguments, get_wid_model

SIZES = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
}


def main() -> None:
    given = parse()
    torch.set_num_threads(1)
    args = WidTrainingArguments(
        output_dir=str(given.output),
        max_steps=given.steps,
        per_device_train_batch_size=given.batch,
        gradient_accumulation_steps=given.accumulation,
        activation_checkpointing=given.checkpointing,
        save_strategy="steps" if given.save_steps else "no",
        save_steps=given.save_steps or 500,
        learning_rate=3e-3,
        compactor_learning_rate=1e-2,
        logging_steps=1,
        use_cpu=not given.mode.startswith("zero"),  # DeepSpeed finds out itself that there is no GPU
        dataloader_pin_memory=False,
        report_to="none",
        disable_tqdm=True,
        **({"distillation": ["logits"], "teacher_learning_rate": 0} if given.distil else {}),
        **modes.arguments(given.mode, given.model),
    )
    model = get_wid_model(teacher(given.model, given.dropout), WidConfig(**json.loads(given.config)))
    kind = modes.ShardedOnCpu if given.mode.startswith("fsdp2") else WidTrainer
    trainer = kind(model=model, args=args, train_dataset=rows())
    start = Start()
    if given.mode == "ddp":
        trainer.add_callback(start)
    if given.file_limit:
        trainer.add_callback(Limit(given.file_limit, given.limit_after))
    trainer.train(resume_from_checkpoint=given.resume)
    found = {
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "start": start.digest,
        "end": digest(model) if given.mode == "ddp" else "",
        "processes": args.world_size,
        "shares": [share(model), share(model.base_model.teacher)],
    }
    (given.output / f"rank-{args.process_index}.json").write_text(json.dumps(found))
    student = model.merge_and_unload()  # in every process: each may have a part of the weights
    if trainer.is_world_process_zero():
        student.save_pretrained(given.output / "student")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--config", default='{"hidden_size": 12, "intermediate_size": 24}', help="WidConfig as JSON")
    parser.add_argument("--model", choices=["bert", "llama"], default="bert")
    parser.add_argument("--mode", choices=modes.MODES, default="ddp", help="how processes share the training")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4, help="rows per process and micro-batch")
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    parser.add_argument("--save-steps", type=int, default=0)
    parser.add_argument("--distil", action="store_true", help="distil logits; the teacher is frozen")
    parser.add_argument("--resume", action="store_true", help="resume_from_checkpoint=True")
    parser.add_argument(
        "--file-limit", type=int, default=0, help="the kernel kills what writes a larger file, in bytes"
    )
    parser.add_argument("--limit-after", type=int, default=0, help="the step from which on the limit holds")
    return parser.parse_args()


def teacher(name: str, dropout: float) -> PreTrainedModel:
    torch.manual_seed(0)
    if name == "llama":
        return LlamaForCausalLM(LlamaConfig(**SIZES, attention_dropout=dropout))
    drop = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return BertForMaskedLM(BertConfig(**SIZES, **drop))


def rows(count: int = 96, length: int = 8) -> Dataset:
    """Rows with different numbers of labels, so that averages over rows and over labels differ."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 60, (count, length), generator=generator)
    share = torch.rand(count, 1, generator=generator)
    labels = torch.where(torch.rand(count, length, generator=generator) < share, ids, -100)
    labels[:, 1] = ids[:, 1]
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})


def digest(model: nn.Module) -> str:
    """Return what changes with any bit of any weight or buffer."""
    total = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        total.update(name.encode() + tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def share(model: nn.Module) -> float:
    """Return the share of a model's numbers that this process holds."""
    whole = here = 0
    for parameter in model.parameters():
        part: Any = parameter
        whole += getattr(part, "ds_numel", part.numel())
        here += part.ds_tensor.numel() if hasattr(part, "ds_id") else getattr(part, "to_local", part.detach)().numel()
    return here / whole


class Start(TrainerCallback):
    """Notes the weights that training starts from; added last, it comes after the calibrated start."""

    digest = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        self.digest = digest(model)


class Limit(TrainerCallback):
    """Lets the kernel kill this process in the middle of writing a file of more bytes than allowed."""

    def __init__(self, size: int, after: int) -> None:
        self.size, self.after = size, after

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.after:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
