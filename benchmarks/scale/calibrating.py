"""What one calibration takes, in a process of its own.

Takes a case, gives its peak of memory beyond the teacher and the compactors, and its processor time.
"""

from __future__ import annotations

import time

import torch
from memory import peak, reset_peak
from own_process import in_own_process
from store import Record
from teachers import Case
from transformers.utils.logging import disable_progress_bar

from wid_hf import get_wid_model


def measured(case: Case) -> Record:
    """Return what a case takes; nothing but `failed` where its process ran out of memory."""
    found = in_own_process(_calibrated, case)
    return found if found is not None else {"failed": "killed"}


def _calibrated(case: Case) -> Record:
    disable_progress_bar()
    teacher = case.teacher()
    batches = case.batches()
    with torch.no_grad():
        teacher(**batches[0])  # what the first forward loads is not calibration's
    model = get_wid_model(teacher, case.student())
    before = reset_peak()
    used = time.process_time()
    model.base_model.calibrate(batches)
    calibration = model.base_model.calibration
    assert calibration is not None
    return {
        "held": before,
        "beyond": peak() - before,
        "cpu_seconds": time.process_time() - used,
        "positions": calibration.positions,
        "worst": max(each.after for each in calibration.inputs),
    }
