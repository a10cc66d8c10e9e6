"""`wid_report.json` as any version of wid_hf wrote it.

Takes a file; gives its values, with fields that version 0.1 lacks filled in, or a refusal. Called by cards and by
the HTML page; `tools/reports/wid_report.py` writes the file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..format_version import KEY, refuse_newer

FORMAT_VERSION = 1
# Title and weights of the methods of which version 0.1 wrote only the name.
METHODS_OF_0_1 = {
    "scratch": ("from scratch", "random"),
    "slice": ("slicing, then fine-tuning", "cut"),
    "variance": ("pruning by variance, then fine-tuning", "cut"),
    "logit-kd": ("distillation of logits", "random"),
    "minilm": ("MiniLMv2", "random"),
    "tinybert": ("TinyBERT", "random"),
    "wid-progressive": ("WID, progressive", "folded"),
    "wid": ("WID", "folded"),
    "wid-kd": ("WID with distillation", "folded"),
}


def read_report(path: Path) -> dict[str, Any]:
    """Return the values of the report at `path`; `title` and `weights` say how the student was made.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a JSON object.
        FormatError: a newer wid_hf wrote it.
    """
    values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError("it holds no JSON object")
    refuse_newer(values.get(KEY), FORMAT_VERSION, str(path))
    method = values.get("method", "wid")
    title, weights = METHODS_OF_0_1.get(method, (method, "folded")) if isinstance(method, str) else ("", "folded")
    return {"title": title, "weights": weights} | values
