"""Work in a process of its own, which may be killed in the middle of it."""

from __future__ import annotations

import os
import signal
import time
import traceback
import warnings
from collections.abc import Callable

PATIENCE = 120.0  # seconds until a process counts as hanging


def forked(work: Callable[[], object]) -> int | None:
    """Return the exit status of a process that does `work`: minus the signal that killed it, 1 for an error.

    A process that hangs is killed and has none.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, from Python 3.12 on
        child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None
