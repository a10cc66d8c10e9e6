"""Runs a script under `accelerate launch` without GPUs, with the sharding that accelerate has for GPUs only.

`python on_cpu.py SCRIPT WORDS...`; the process group is gloo's. Without a GPU accelerate ignores FSDP and DeepSpeed.
"""

from __future__ import annotations

import os
import runpy
import sys

from accelerate import PartialState
from accelerate.utils import DistributedType

KINDS = {"ACCELERATE_USE_FSDP": DistributedType.MULTI_GPU, "ACCELERATE_USE_DEEPSPEED": DistributedType.DEEPSPEED}

PartialState(cpu=True)
for variable, kind in KINDS.items():
    if os.environ.get(variable) == "true":
        PartialState._shared_state["distributed_type"] = kind
sys.argv = [*sys.argv[1:], "--accelerator_config", '{"use_configured_state": true}']
runpy.run_path(sys.argv[0], run_name="__main__")
