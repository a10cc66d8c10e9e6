"""Where benchmarks find teachers and data."""

from __future__ import annotations

import os
from pathlib import Path

from store import ROOT

TEACHERS = Path(os.environ.get("WID_HF_TEACHERS", ROOT / ".cache" / "teachers"))
DATA = Path(os.environ.get("WID_HF_DATA", ROOT.parent / "shared" / "data"))
WIKINEWS = DATA / "wikinews" / "wikinews_en_clean.jsonl.gz"
