"""Time and memory of tracing and planning, on one core.

`python benchmarks/planning.py` prints a table; real weights are not needed, so the models are random.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from wid_hf import WidConfig
from wid_hf.planning.example_inputs import example_inputs
from wid_hf.planning.student_plan import plan_student


@dataclass(frozen=True)
class Case:
    """A teacher to plan for, the student asked for, and how long it may take (seconds)."""

    name: str
    teacher: PreTrainedModel
    student: WidConfig
    allowed: float


def cases() -> list[Case]:
    """Return a 12-layer BERT-base and a 30-layer decoder of SmolLM2's shape."""
    decoder = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    heads = WidConfig(hidden_size=384, intermediate_size=768, head_strategy="head")
    return [
        Case("BERT-base, 12 layers", BertForMaskedLM(BertConfig()), WidConfig(hidden_size=384), 3.0),
        Case("decoder, 30 layers", LlamaForCausalLM(decoder), heads, 20.0),
    ]


def resident() -> float:
    """Return this process's resident memory in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


class Peak:
    """The largest resident memory within a `with` block, in MB above what it was before."""

    def __enter__(self) -> Peak:
        self.before = self.most = resident()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.most = max(self.most, resident())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def above(self) -> float:
        """MB above the start."""
        return self.most - self.before


def main() -> None:
    """Plan every case and print what it took."""
    torch.set_num_threads(1)
    table = Table("teacher", "seconds", "of them CPU", "allowed", "MB beyond the model")
    for case in cases():
        case.teacher(**example_inputs(case.teacher))  # what the first forward loads is not the plan's
        started, used = time.perf_counter(), time.process_time()
        with Peak() as peak:
            plan_student(case.teacher, case.student)
        seconds, cpu = time.perf_counter() - started, time.process_time() - used
        table.add_row(case.name, f"{seconds:.2f}", f"{cpu:.2f}", f"{case.allowed:.0f}", f"{peak.above:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
