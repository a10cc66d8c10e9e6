"""`wid-hf` in a process of its own, whose end is waited for, whatever happens to this one.

Takes its words; gives nothing, or raises with the last lines of its log.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from store import ROOT

SHOWN = 2000  # last characters of a log


def run(words: list[str], log: Path) -> None:
    """Run `wid-hf WORDS`, with its output at the end of `log`.

    Ctrl-C reaches it from the terminal, and SIGTERM is passed on, so that it keeps what it has.

    Raises:
        RuntimeError: it failed or was stopped.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "wid_hf_cli", *words], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
        )
    handlers = {signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: lambda number, _: process.send_signal(number)}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if process.returncode:
        said = log.read_text(encoding="utf-8", errors="replace")[-SHOWN:]
        raise RuntimeError(f"wid-hf ended with {process.returncode}; {log} ends with:\n{said}")
