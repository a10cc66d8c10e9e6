"""`wid-hf` in a process of its own that starts at once: forked from this one, which has imported everything.

Takes a command line; gives its process id, then its exit status. Importing takes eight seconds and a run two, so that
random moments of a fresh program would mostly fall into its imports.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from wid_hf_cli.main import main

LONGEST = 120.0  # seconds for one run
HANGS = 124


def start(words: list[str], folder: Path, log: Path, temporary: Path) -> int:
    """Begin `wid-hf WORDS` in `folder`, with its output in `log` and its temporary files in `temporary`."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with log.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its jobs in the background ignore it
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.chdir(folder)
        tempfile.tempdir = str(temporary)
        sys.argv = ["wid-hf", *words]
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(child: int) -> int:
    """Wait for a process and return its exit status as shells tell it; `HANGS` if it does not end."""
    deadline = time.monotonic() + LONGEST
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return HANGS
