"""Versions of the formats on disk: adapters, reports, records of evaluations.

Each kind of file has a separate count; a file without a version is of wid_hf 0.1, which wrote none. Takes the version
in a file; refuses a file that a newer wid_hf wrote, before anything in it is misread.
"""

from __future__ import annotations

from .errors import FormatError

KEY = "format_version"  # in every file


def refuse_newer(found: object, known: int, what: str) -> None:
    """Refuse a file that this version of wid_hf cannot read.

    Args:
        found: the file's entry `KEY`; None if it has none.
        known: the newest version that can be read.
        what: the file, in words.

    Raises:
        FormatError: it is newer, or not a version.
    """
    if found is None:
        return
    if type(found) is not int or found < 1:
        raise FormatError(
            f"{what} has {KEY}={found!r}, which is not a version. Legal: a whole number from 1 to {known}."
        )
    if found > known:
        raise FormatError(
            f"{what} has {KEY}={found}, and this wid-hf reads versions up to {known}: a newer one wrote it. Run: "
            "pip install --upgrade wid-hf"
        )
