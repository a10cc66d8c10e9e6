"""Small models side by side on one GPU, which otherwise lets processes take turns."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from steps import Run, Step

MPS = "nvidia-cuda-mps-control"
PATIENCE = 10  # seconds


@contextmanager
def shared_gpu(run: Run) -> Iterator[None]:
    """Let steps of `run` compute on the GPU at the same time inside, where that can be had."""
    daemon = shutil.which(MPS)
    if daemon is None or run.environment.get("CUDA_VISIBLE_DEVICES") == "":
        yield
        return
    folders = {name: str(run.scratch / name.lower()) for name in ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY")}
    for folder in folders.values():
        Path(folder).mkdir()
    alone, environment = run.environment, {**os.environ, **folders}
    started = subprocess.run([daemon, "-d"], env=environment, capture_output=True, check=False).returncode == 0
    try:
        run.environment = {**alone, **folders}
        run.side_by_side([Step("share the GPU", ["-c", "import torch; torch.ones(9).cuda().sum().item()"], 40)], 1)
        if not started or run.ends[-1]["end"] != "done":
            run.environment = alone  # they take turns
        yield
    finally:
        run.environment = alone
        subprocess.run([daemon], input=b"quit\n", env=environment, capture_output=True, timeout=PATIENCE, check=False)
