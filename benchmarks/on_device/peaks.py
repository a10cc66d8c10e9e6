"""The peak of memory on the device beside what the library counts, of a step of training and of a calibration.

Takes whether to be tiny, gives bytes. What is counted is what `wid-hf plan --train` tells of a step.
"""

from __future__ import annotations

import gc
from dataclasses import replace

import torch
from accelerator import chosen_device
from cases import Case, Sizes
from memory import peak, reset_peak
from store import Record
from torch import Tensor
from torch.utils._pytree import tree_leaves
from variants import VARIANTS, Variant

from wid_hf import get_wid_model
from wid_hf.budget.memory import Alive

# Variants of `python benchmarks/speed`, and whether the teacher's weights are trained beside the compactors.
STEPS = (("bare", "trained"), ("narrow", "trained"), ("narrow", "frozen"), ("teacher", "trained"))


def memory(tiny: bool) -> Record:
    """Return peaks of one step of each variant in `STEPS`, and of a calibration of BERT-base on 256 texts."""
    sizes = Sizes(layers=1, width=96, teacher_width=192) if tiny else Sizes(layers=12, width=384)
    case = Case(sizes, 4 if tiny else 64, 16 if tiny else 128, dtype="fp32" if tiny else "bf16")
    steps = {f"{name}, {teacher}": _step(replace(case, teacher=teacher), name) for name, teacher in STEPS}
    return {"steps": steps, "calibration": _calibration(sizes, 2 if tiny else 8, 16 if tiny else 128)}


def _step(case: Case, name: str) -> dict[str, int]:
    device = chosen_device()
    gc.collect()
    variant, batches = VARIANTS[name](case, device), case.batches(device)
    variant.step(batches)  # makes the optimizer's state
    gc.collect()
    before = _begin(device)
    variant.step(batches)
    return {"peak": _most(device) - before, "counted": _counted(variant, batches)}


def _counted(variant: Variant, batches: list[dict[str, Tensor]]) -> int:
    """Return the bytes that the library counts of a step."""
    model, state = variant.model, dict(variant.optimizer.state)
    held = [*model.parameters(), *model.buffers(), *tree_leaves(state), *tree_leaves(batches)]
    with Alive([each for each in held if isinstance(each, Tensor)]) as alive:
        variant.step(batches)
    return alive.most


def _calibration(sizes: Sizes, count: int, length: int) -> dict[str, int]:
    """Return the peak of a calibration on `count` batches of 32 rows, and the bytes of the teacher's weights."""
    device = chosen_device()
    gc.collect()
    teacher = sizes.teacher(device)
    weights = sum(each.numel() * each.element_size() for each in teacher.parameters())
    model = get_wid_model(teacher, sizes.student())
    batches = [sizes.batch(32, length, device, seed) for seed in range(count)]
    before = _begin(device)
    model.base_model.calibrate(batches)
    return {"peak": _most(device) - before, "teacher": weights}


def _begin(device: torch.device) -> int:
    """Forget the peak so far, and return what has to be taken off the next one: on a CPU what the process holds."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return 0
    return round(reset_peak() * 1e9)


def _most(device: torch.device) -> int:
    """Return the peak since `_begin`."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else round(peak() * 1e9)
