"""Packages that only tools, cards and pictures need; the error about a missing one has the line that installs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .errors import MissingExtraError


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Guard imports of packages that the extra `name` of wid-hf installs: `with extra("onnx"): import onnx`.

    Raises:
        MissingExtraError: a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise missing(error, name) from error


def missing(error: ModuleNotFoundError, extra: str) -> MissingExtraError:
    """Return the error for a package that could not be imported, naming the extra that installs it."""
    package = (error.name or str(error)).partition(".")[0]
    return MissingExtraError(f'{package} is not installed here, and this needs it. Run: pip install "wid-hf[{extra}]"')
