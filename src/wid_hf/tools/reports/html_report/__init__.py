"""One HTML page about many runs: `wid_report.json` and `eval_report.json` of a folder, side by side.

Takes a folder; gives `report.html`, which needs no other files, and the PNGs in it. Called by `wid-hf report`.
"""

from __future__ import annotations

from .attention import AttentionTexts
from .page import PAGE_NAME, write_html_report

__all__ = ["PAGE_NAME", "AttentionTexts", "write_html_report"]
