"""Programs that are started, watched, and ended at their limits, and the records that they leave.

Takes steps, gives files of records, each written anew whenever there is more to tell. Imports no torch.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
PRINTED = 3000  # characters of what a step printed that are kept


@dataclass(frozen=True)
class Step:
    """A program that is started, watched and, at its limit, ended.

    Attributes:
        name: its own; those of one file of records begin with that file's name.
        words: the command after `python`.
        seconds: how long it may take.
        environment: variables that it has beside this process's.
    """

    name: str
    words: Sequence[str]
    seconds: float
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Running:
    """A step that was started."""

    step: Step
    process: subprocess.Popen[bytes]
    printed: IO[bytes]
    began: float
    deadline: float

    def kill(self) -> None:
        """End it by force, with all that it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def ended(self) -> dict[str, Any] | None:
        """Return how it ended, at its limit by force; None while it runs."""
        code, late = self.process.poll(), time.monotonic() > self.deadline
        if code is None and not late:
            return None
        if code is None:
            self.kill()
        self.printed.seek(0)
        said = self.printed.read().decode(errors="replace")[-PRINTED:]
        self.printed.close()
        seconds = round(time.monotonic() - self.began, 1)
        end = "cut off" if code is None else f"exit {code}" if code else "done"
        return {"step": self.step.name, "end": end, "seconds": seconds, "printed": said}


class Run:
    """All steps of one call: starts them, gathers their records, and knows what time is left.

    Args:
        output: folder of the files that come back.
        scratch: folder of everything else.
        deadline: `time.monotonic()` at which everything is over.
        environment: variables of all steps.
        patience: how many times its own limit a step may take.
    """

    def __init__(
        self, output: Path, scratch: Path, deadline: float, environment: Mapping[str, str], patience: float = 1.0
    ) -> None:
        self.output, self.scratch, self.deadline, self.environment = output, scratch, deadline, environment
        self.patience = patience
        self.ends: list[dict[str, Any]] = []
        self._gathered: dict[str, int] = {}

    @property
    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()

    def side_by_side(self, steps: Sequence[Step], at_once: int) -> None:
        """Run steps, at most `at_once` at a time, until all have ended."""
        waiting, running = list(steps), list[Running]()
        try:
            self._until_ended(waiting, running, at_once)
        finally:  # nothing goes on after a Ctrl-C or a kill
            for each in running:
                each.kill()
                each.printed.close()

    def _until_ended(self, waiting: list[Step], running: list[Running], at_once: int) -> None:
        while waiting or running:
            while waiting and len(running) < at_once:
                step = waiting.pop(0)
                if self.left > 0:
                    running.append(self._start(step))
                else:
                    self._note({"step": step.name, "end": "no time", "seconds": 0.0, "printed": ""})
            time.sleep(0.2)
            for each in list(running):
                if (end := each.ended()) is not None:
                    running.remove(each)
                    self._note(end)
            self.gather()

    def gather(self) -> None:
        """Write the records that steps have left so far into one file for each kind, and those of tests."""
        for kind in ("speed", "trainings"):
            files = sorted((self.scratch / kind).rglob("*.json"))
            if len(files) > self._gathered.get(kind, 0):
                self._gathered[kind] = len(files)
                write(self.output / f"{kind}.json", [json.loads(file.read_text(encoding="utf-8")) for file in files])
        if (report := self.scratch / "tests.xml").exists() and any(end["step"] == "tests" for end in self.ends):
            write(self.output / "tests.json", tests_told(report))

    def _start(self, step: Step) -> Running:
        printed = tempfile.TemporaryFile(dir=self.scratch)  # noqa: SIM115 - it outlives this function
        environment = {**os.environ, **self.environment, **step.environment}
        process = subprocess.Popen(
            [sys.executable, *step.words],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            preexec_fn=os.setpgrp,  # noqa: PLW1509 - no threads here; a new session would outlive a tool's kill
        )
        now = time.monotonic()
        return Running(step, process, printed, now, min(now + self.patience * step.seconds, self.deadline))

    def _note(self, end: dict[str, Any]) -> None:
        self.ends.append(end)
        write(self.output / "steps.json", self.ends)
        print(f"{end['seconds']:6.1f} s  {end['step']}: {end['end']}", flush=True)
        if end["end"] not in ("done", "no time"):
            print(end["printed"][-1000:], flush=True)


def write(file: Path, record: Any) -> None:
    """Write a file whole or not at all: the machine may be taken back at any moment."""
    unfinished = file.with_name(f".{file.name}")
    unfinished.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(file)


def tests_told(report: Path) -> dict[str, Any]:
    """Return what pytest's report says: how each test ended, and what was said of those that failed."""
    ends: dict[str, str] = {}
    said: dict[str, str] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        told = [part for kind in ("failure", "error", "skipped") for part in case.findall(kind)]
        ends[name] = told[0].tag if told else "passed"
        if told:
            said[name] = (told[0].text or told[0].get("message") or "")[-PRINTED:]
    counts = {end: list(ends.values()).count(end) for end in sorted(set(ends.values()))}
    return {"counts": counts, "tests": ends, "said": said}
