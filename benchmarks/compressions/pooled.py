"""A sentence encoder with another pooling."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from once import write_folder

MODES = "pooling_mode_"


def with_first_token(encoder: Path, output: Path) -> None:
    """Copy a folder of sentence-transformers to `output`, with the first token's states in place of another pooling."""

    def write(folder: Path) -> None:
        shutil.copytree(encoder, folder, dirs_exist_ok=True)
        file = folder / "1_Pooling" / "config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        config |= {key: key == f"{MODES}cls_token" for key in config if key.startswith(MODES)}
        file.write_text(json.dumps(config, indent=2), encoding="utf-8")

    write_folder(output, write)
