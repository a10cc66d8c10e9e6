"""Small pictures with their classes, as tensors.

Takes a JSONL file of JPEGs in base64 (CIFAR-10), gives pixels and labels.
"""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path

import numpy
import torch
from PIL import Image
from torch import Tensor

from wid_hf.rows import load_rows


def load_pictures(file: Path, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Return pixels (count, 3, height, width) between -1 and 1 and labels (count,) of the first pictures, or of all."""
    rows = load_rows(str(file), split="train" if count is None else f"train[:{count}]")
    pixels = numpy.stack([numpy.asarray(Image.open(BytesIO(base64.b64decode(row["jpeg"])))) for row in rows])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1, torch.tensor(
        [row["label"] for row in rows]
    )
