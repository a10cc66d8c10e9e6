"""Rows of any source as a task needs them: loaded by `datasets`, columns found by role, unusable rows counted."""

from __future__ import annotations

from .division import hold_out
from .prepare import Prepared, prepare
from .roles import Role, find_columns, named_columns
from .source import load_rows
from .texts import load_texts

__all__ = ["Prepared", "Role", "find_columns", "hold_out", "load_rows", "load_texts", "named_columns", "prepare"]
