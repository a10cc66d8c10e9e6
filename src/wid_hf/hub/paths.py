"""Paths as users spell them."""

from __future__ import annotations

import os


def expanded(path: str | os.PathLike[str]) -> str:
    """Return `path`, or the name of a model or dataset, with the home folder instead of a leading `~`."""
    return os.path.expanduser(path)  # noqa: PTH111 -- Path.expanduser fails where there is no such user
