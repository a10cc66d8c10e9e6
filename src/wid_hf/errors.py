"""Every error that wid_hf raises for users: what was given, what is legal, what to do now.

Imports nothing of wid_hf; every other module raises these. Messages name arguments as Python spells
them, `name=value`; the command line shows those as its options (`wid_hf_cli/app.py`).
"""

from __future__ import annotations

import signal


class WidError(Exception):
    """Base of all errors of wid_hf; catch it to catch any of them."""


class ConfigError(WidError, ValueError):
    """A requested size or name that the teacher's config cannot express."""


class PlanError(WidError, ValueError):
    """The requested student cannot be a narrower version of this teacher."""


class ProofError(WidError):
    """The permutation proof found a coupled dimension whose indices are not interchangeable."""


class TeacherError(WidError, ValueError):
    """The teacher cannot be loaded or used: missing, corrupt, on the meta device, already wrapped."""


class DataError(WidError, ValueError):
    """Training, validation or calibration data that is missing, unreadable, empty or unfit."""


class TrainingError(WidError, RuntimeError):
    """Training had to stop; the message says which state was kept."""


class OutputError(WidError, OSError):
    """The output path cannot be written, or already holds something else."""


class FormatError(WidError, ValueError):
    """A file in a format that this version of wid_hf does not know; a newer version may have written it."""


class MissingExtraError(WidError, ImportError):
    """A package that only some tools need is not installed; the message has the line that installs it."""


class Stopped(KeyboardInterrupt):
    """A signal (Ctrl-C, SIGTERM) ended a run; the message says what was kept. Not a `WidError`: nothing went wrong.

    Attributes:
        signal: its number.
    """

    def __init__(self, number: int, kept: str = "Nothing was written.") -> None:
        super().__init__(f"Stopped by {signal.Signals(number).name}. {kept}")
        self.signal = number


class WidWarning(UserWarning):
    """Something that a user should know but that did not stop the work."""
