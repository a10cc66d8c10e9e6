"""A signal in the middle of calibration ends it; forwards that are paused in their threads do not hold it up."""

from __future__ import annotations

import os
import random
import signal
import time

import torch
from transformers import BertForMaskedLM

from wid_hf import WidConfig, get_wid_model

TRIES = 12
PATIENCE = 60.0  # seconds until a process counts as hanging


def interrupted(model: BertForMaskedLM, after: float) -> int | None:
    """Return the exit status of a process whose calibration gets a SIGALRM after some seconds, None if it hangs."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            signal.setitimer(signal.ITIMER_REAL, after)
            batches = [{"input_ids": torch.randint(5, 60, (8, 12))} for _ in range(3)]
            get_wid_model(model, WidConfig(hidden_size=12, intermediate_size=24)).base_model.calibrate(batches)
            signal.setitimer(signal.ITIMER_REAL, 0)
            code = 0
        except KeyboardInterrupt:
            code = 130
        finally:
            os._exit(code)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def test_a_signal_at_any_moment_of_calibration_ends_it(tiny_bert: BertForMaskedLM) -> None:
    began = time.monotonic()
    assert interrupted(tiny_bert, 1000.0) == 0
    whole = time.monotonic() - began
    chance = random.Random(0)
    codes = [interrupted(tiny_bert, chance.uniform(0.3, 1.0) * whole) for _ in range(TRIES)]
    assert set(codes) <= {0, 130} and 130 in codes
