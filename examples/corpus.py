"""Gathers a corpus of English from the documentation that every machine with Python has.

Takes nothing, reads Python's own help topics and the docstrings in source files of the standard library and
of installed packages; gives paragraphs. Nothing is imported or run but the help topics. Called by the demo.
"""

from __future__ import annotations

import ast
import inspect
import random
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from pydoc_data.topics import topics

from rich.console import Console
from rich.progress import Progress

SHORTEST, LONGEST = 40, 1000  # characters of a text
MOST_TEXTS = 20_000
MOST_BYTES = 60_000_000  # of source; a bound on work, not on the clock, keeps the list the same in every run
PROSE = 0.9  # least share of letters, blanks and plain punctuation: tables, formulas and code have less
NOT_PACKAGES = {"test", "tests", "testing", "idle_test", "site-packages", "dist-packages", "__pycache__"}

NOT_PROSE = re.compile(r"[^A-Za-z ,.;'\"-]")


def documentation_texts(
    folders: Sequence[Path] | None = None, most: int = MOST_TEXTS, most_bytes: int = MOST_BYTES
) -> list[str]:
    """Return up to `most` different paragraphs, in an order that is the same in every run.

    The same Python with the same packages gives the same list: the files are read in an order shuffled with
    a fixed seed until there are enough paragraphs or `most_bytes` of source were read.

    Args:
        folders: with the source files; by default those of the standard library and the installed packages.
        most: how many texts are enough.
        most_bytes: how much source is read at most.
    """
    texts = dict.fromkeys(paragraphs(topics.values()))
    with Progress(transient=True, console=Console(stderr=True)) as bar:
        task = bar.add_task("Gathering documentation", total=most)
        read = 0
        for file in _source_files(package_folders() if folders is None else folders):
            if len(texts) >= most or read >= most_bytes:
                break
            source = file.read_bytes()
            read += len(source)
            texts.update(dict.fromkeys(paragraphs(docstrings(source))))
            bar.update(task, completed=len(texts))
    return _shuffled(texts)[:most]


def package_folders() -> list[Path]:
    """Return the folders of the standard library and of installed packages."""
    paths = sysconfig.get_paths()
    return [Path(paths[name]) for name in ("stdlib", "purelib", "platlib")]


def docstrings(source: bytes) -> Iterator[str]:
    """Yield the docstrings of the module in `source`, of its classes and functions; none if it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the parser warns of other people's escape sequences
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text


def paragraphs(documents: Iterable[str]) -> Iterator[str]:
    """Yield the paragraphs of prose in `documents` that are neither too short nor too long, each on one line."""
    for document in documents:
        for block in re.split(r"\n\s*\n", inspect.cleandoc(document)):
            text = " ".join(block.split())
            if SHORTEST <= len(text) <= LONGEST and _is_prose(text):
                yield text


def _is_prose(text: str) -> bool:
    return len(NOT_PROSE.findall(text)) <= (1 - PROSE) * len(text) and ">>>" not in text


def _source_files(folders: Sequence[Path]) -> list[Path]:
    """Return the source files that are no tests, each once, in an order that is the same in every run."""
    files: list[Path] = []
    for folder in dict.fromkeys(folders):
        inside = (path.relative_to(folder) for path in folder.rglob("*.py"))
        files += [folder / path for path in sorted(inside) if not _is_test(path)]
    return _shuffled(files)


def _is_test(path: Path) -> bool:
    return not NOT_PACKAGES.isdisjoint(path.parts) or path.name.startswith(("test_", "conftest"))


def _shuffled(things: Iterable) -> list:
    shuffled = list(things)
    random.Random(0).shuffle(shuffled)
    return shuffled
