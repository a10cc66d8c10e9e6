"""How much memory `wid-hf compress` takes for a small and for a large corpus, as a stream and as a table.

`python benchmarks/streaming.py` writes texts of made-up words (2 MB and 200 MB) into a temporary folder, makes a small
random BERT, compresses it in a process of its own for each case, and prints the peak of its resident memory. Pages of
tables that are mapped from disk count among them, though the system may take them back at any time.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))

import typer
from rich.console import Console
from toys import WORDS, save_teacher
from transformers import BertForMaskedLM

MEGABYTE = 2**20


def write_corpus(path: Path, megabytes: int) -> Path:
    """Write lines of 50 to 400 words until the file has so many megabytes."""
    chance, written = random.Random(0), 0
    with path.open("w", encoding="utf-8") as file:
        while written < megabytes * MEGABYTE:
            written += file.write(" ".join(chance.choices(WORDS, k=chance.randint(50, 400))) + "\n")
    return path


def peak(words: list[str], cache: Path) -> tuple[float, float]:
    """Run `wid-hf`; return the peak of its resident memory in megabytes, and the seconds that it took."""
    command = [sys.executable, "-c", "from wid_hf_cli.main import main; main()", *words]
    began = time.monotonic()
    process = subprocess.Popen(
        command, env={**os.environ, "HF_DATASETS_CACHE": str(cache)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    told = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(told.decode())
    return usage.ru_maxrss * 1024 / MEGABYTE, time.monotonic() - began  # kilobytes on Linux


def main(
    small: Annotated[int, typer.Option(help="Megabytes of the small corpus.")] = 2,
    large: Annotated[int, typer.Option(help="Megabytes of the large corpus.")] = 200,
    steps: Annotated[int, typer.Option(help="Of 32 texts.")] = 300,
) -> None:
    """Print the peak memory and the time of four runs."""
    console = Console(highlight=False)
    with TemporaryDirectory() as name:
        folder = Path(name)
        teacher = save_teacher(folder / "teacher", BertForMaskedLM, hidden=48)
        for streaming in (True, False):
            for megabytes in (small, large):
                corpus = write_corpus(folder / f"{megabytes}.txt", megabytes)
                output = folder / f"student-{megabytes}-{streaming}"
                words = ["compress", str(teacher), "--train", str(corpus), "--output", str(output)]
                words += ["--hidden-size", "24", "--intermediate-size", "48", "--steps", str(steps)]
                words += ["--streaming"] if streaming else []
                used, seconds = peak(words, folder / "cache")
                read_as = "stream" if streaming else "table"
                console.print(f"{megabytes} MB, read as a {read_as}: peak {used:.0f} MB, {seconds:.0f} s")


if __name__ == "__main__":
    typer.run(main)
