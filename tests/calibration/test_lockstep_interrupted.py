"""A signal in the middle of calibration ends it; forwards that are paused in their threads do not hold it up."""

from __future__ import annotations

import os
import random
import signal
import time

import torch
from forked import forked
from transformers import BertForMaskedLM

from wid_hf import WidConfig, get_wid_model

TRIES = 12
INTERRUPTED = 130


def calibrated(model: BertForMaskedLM, after: float) -> int | None:
    """Return the exit status of a process whose calibration gets a signal after some seconds, None if it hangs."""

    def work() -> None:
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            signal.setitimer(signal.ITIMER_REAL, after)
            batches = [{"input_ids": torch.randint(5, 60, (8, 12))} for _ in range(3)]
            get_wid_model(model, WidConfig(hidden_size=12, intermediate_size=24)).base_model.calibrate(batches)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            os._exit(INTERRUPTED)

    return forked(work)


def test_a_signal_at_any_moment_of_calibration_ends_it(tiny_bert: BertForMaskedLM) -> None:
    began = time.monotonic()
    assert calibrated(tiny_bert, 1000.0) == 0
    whole = time.monotonic() - began
    chance = random.Random(0)
    codes = [calibrated(tiny_bert, chance.uniform(0.3, 1.0) * whole) for _ in range(TRIES)]
    assert set(codes) <= {0, INTERRUPTED} and INTERRUPTED in codes
