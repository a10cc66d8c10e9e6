"""Seconds, products and memory of the variants of one case, and of what happens once in a training.

Takes a case, gives records of plain numbers.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerator import chosen_device
from cases import Case, Sizes
from memory import peak, reset_peak
from own_process import in_own_process
from store import Record
from torch import nn
from variants import BARE, NARROW, STOCK, VARIANTS

from wid_hf import get_wid_model
from wid_hf.layers import FoldedWeight


def bf16_ratio(device: torch.device, size: int = 512) -> float:
    """Return the time of a square product in bf16 over that in fp32: above 1 on processors without units for it."""
    took = {}
    for dtype in (torch.float32, torch.bfloat16):
        square = torch.ones(size, size, dtype=dtype, device=device)
        took[dtype] = min(_seconds(lambda square=square: square @ square, device) for _ in range(3))
    return took[torch.bfloat16] / took[torch.float32]


def measure_steps(case: Case, names: Iterable[str], rounds: int, warm_up: int) -> dict[str, Record]:
    """Return figures of a step of each variant: all stand side by side and take one step each, round by round.

    Ratios are to the bare student: that of the medians, and the least and greatest of a round. Nothing is said of any
    where all together ran out of memory.
    """
    return in_own_process(_steps, case, list(names), rounds, warm_up) or {name: {} for name in names}


def _steps(case: Case, names: list[str], rounds: int, warm_up: int) -> dict[str, Record]:
    device = chosen_device()
    # As TrainingArguments(bf16=True, tf32=True) sets it on a GPU, for what autocast leaves in float32: folds among it.
    torch.set_float32_matmul_precision("high" if case.dtype == "bf16" else "highest")
    batches = case.batches(device)
    variants = {name: VARIANTS[name](case, device) for name in names}
    flops = {name: variant.counted_step(batches) for name, variant in variants.items()}
    if case.compiled:
        for variant in variants.values():
            variant.compile()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for at in range(warm_up + rounds):
        for name, variant in variants.items():
            took = _seconds(lambda variant=variant: variant.step(batches), device)
            if at >= warm_up:
                seconds[name].append(took)
    records: dict[str, Record] = {}
    for name, took in seconds.items():
        ratios = [mine / bare for mine, bare in zip(took, seconds[BARE], strict=True)]
        records[name] = {
            "seconds": median(took),
            "least_seconds": min(took),
            "greatest_seconds": max(took),
            "tokens_per_second": case.tokens / median(took),
            "ratio": median(took) / median(seconds[BARE]),
            "least_ratio": min(ratios),
            "greatest_ratio": max(ratios),
            "step_flops": flops[name],
        }
        if STOCK.get(name) in flops:
            records[name]["fold_flops"] = flops[name] - flops[STOCK[name]]
    return records


def measure_memory(case: Case, names: Iterable[str]) -> dict[str, Record]:
    """Return the peak of a step of each variant in GB, each in a process of its own; nothing of what is too large.

    Beside the narrow one stands what it may take at most: the bare student's peak, the teacher's weights, compactors
    and the optimizer's state of what trains of both.
    """
    # So that what one part of a step has freed is not still counted in the next (glibc).
    counted = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    records = {name: in_own_process(_peak, case, name, environment=counted) or {} for name in names}
    if NARROW in records and BARE in records and records[NARROW] and records[BARE]:
        records[NARROW]["allowed_gigabytes"] = records[BARE]["peak_gigabytes"] + records[NARROW]["added_gigabytes"]
    return records


def measure_once(sizes: Sizes, rows: int, length: int, batch_size: int = 32) -> Record:
    """Return the seconds of plan, calibration on `rows` of `length` tokens, merge, and saving adapter and student."""
    device = chosen_device()
    teacher = sizes.teacher(device)
    counts = [min(batch_size, rows - start) for start in range(0, rows, batch_size)]
    batches = [sizes.batch(count, length, device, seed) for seed, count in enumerate(counts)]
    took: dict[str, float] = {}

    @contextmanager
    def timed(what: str) -> Iterator[None]:
        _wait(device)
        began = time.perf_counter()
        yield
        _wait(device)
        took[what] = time.perf_counter() - began

    with timed("plan"):
        model = get_wid_model(teacher, sizes.student())
    with timed("calibration"):
        model.base_model.calibrate(batches)
    with tempfile.TemporaryDirectory() as folder:
        with timed("save adapter"):
            model.save_pretrained(Path(folder) / "adapter")
        with timed("merge"):
            student = model.merge_and_unload()
        with timed("save student"):
            student.save_pretrained(Path(folder) / "student")
    return took


def _peak(case: Case, name: str) -> Record:
    """Return the peak of a variant's second step in GB; in the CPU's memory, above what the libraries take."""
    device = chosen_device()
    on_gpu = device.type == "cuda"
    _load_libraries()
    before = 0.0 if on_gpu else reset_peak()
    variant = VARIANTS[name](case, device)
    batches = case.batches(device)
    if case.compiled:
        variant.compile()
    variant.step(batches)  # makes the optimizer's state
    gc.collect()
    torch.cuda.reset_peak_memory_stats() if on_gpu else reset_peak()
    variant.step(batches)
    found = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else peak()
    return {"peak_gigabytes": found - before, "added_gigabytes": _added(variant.model) / 1e9}


def _added(model: nn.Module) -> int:
    """Return the bytes of a wid model's parameters, teacher's weights and compactors, and of their Adam moments."""
    if not any(isinstance(module, FoldedWeight) for module in model.modules()):
        return 0
    return sum(p.numel() * p.element_size() * (3 if p.requires_grad else 1) for p in model.parameters())


def _load_libraries() -> None:
    """Take a step with next to nothing, which imports what the first step of any optimizer imports."""
    layer = nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
    layer(torch.ones(1)).sum().backward()
    optimizer.step()


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    _wait(device)
    began = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
