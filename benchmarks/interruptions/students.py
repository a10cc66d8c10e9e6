"""Which students in a folder are complete, wherever they lie.

Takes a folder; gives the weights of complete students, by their digests.
"""

from __future__ import annotations

import json
from pathlib import Path

from transformers import AutoModelForMaskedLM, AutoTokenizer

from wid_hf.hub.own_files import FILE_NAME, file_digests

NEEDED = {"config.json", "model.safetensors", "tokenizer.json"}


def complete_students(folder: Path) -> dict[str, Path]:
    """Return every student whose files are all there as its report lists them, by the digest of its weights."""
    found = {}
    for report in folder.rglob(FILE_NAME):
        try:
            files = json.loads(report.read_text(encoding="utf-8"))["files"]
        except ValueError:
            continue
        there = file_digests(report.parent)
        if files.keys() >= NEEDED and all(there.get(name) == digest for name, digest in files.items()):
            found[there["model.safetensors"]] = report.parent
    return found


def loads(folder: Path) -> str | None:
    """Return why a student cannot be loaded; None if it can."""
    try:
        model, info = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
        AutoTokenizer.from_pretrained(folder)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return f"weights are missing: {info['missing_keys']}" if info["missing_keys"] or not model else None
