"""The commands of benchmarks as modules."""

from __future__ import annotations

import sys
from importlib import util
from pathlib import Path
from types import ModuleType


def load_command(folder: Path) -> ModuleType:
    """Load `__main__.py` of a folder of benchmarks under a name of its own, known to worker processes."""
    spec = util.spec_from_file_location(f"{folder.name}_command", folder / "__main__.py")
    assert spec is not None and spec.loader is not None
    module = util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
