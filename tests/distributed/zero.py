"""Takes a tiny model through a schedule with `ZeroRedundancyOptimizer`; writes what each of two processes found."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel
from train import digest, rows, teacher

from wid_hf import WidConfig, WidSchedule, get_wid_model

STEPS = 8


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    schedule = WidSchedule(mask_interval=1, mask_increments=2, decay_to_zero_steps=2)
    model = get_wid_model(
        teacher("bert", dropout=0.0), WidConfig(hidden_size=12, intermediate_size=24, schedule=schedule)
    )
    wrapped = DistributedDataParallel(model)
    optimizer = ZeroRedundancyOptimizer(wrapped.parameters(), optimizer_class=torch.optim.AdamW, lr=3e-3)
    model.wid_begin(STEPS, optimizer, wrapped)
    mine = rows().shard(2, dist.get_rank()).with_format("torch")[:16]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(1, STEPS + 1):
            wrapped(**mine).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            model.wid_step(step)
    tuner = model.base_model
    found = {
        "wide": tuner.is_wide,
        "dropped_norm": tuner.progress.figures(tuner.model)["wid/dropped_norm"],
        "warning": next((str(one.message) for one in caught if "stays" in str(one.message)), ""),
        "digest": digest(model),
    }
    ids = {"input_ids": torch.arange(21).view(3, 7) + 5}
    with torch.no_grad():
        before = model.eval()(**ids).logits
        student = model.merge_and_unload()
        found["difference"] = float((student(**ids).logits - before).abs().max())
    found["merged_hidden_size"] = student.config.hidden_size
    (folder / f"rank-{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
