"""How fast a model is, where its attention looks, and its figures on tasks (`tasks`).

Takes models and batches; gives plain numbers. Called by `compress`, `evaluate` and reports.
"""

from __future__ import annotations

from .latency import latency

__all__ = ["latency"]
