"""Where the tests of a module keep what they push, and the teacher that they push first."""

from __future__ import annotations

from pathlib import Path

import pytest
from toys import save_teacher
from transformers import BertForMaskedLM


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for one module."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def licensed_teacher(home: Path) -> Path:
    """A teacher in `home` whose card names a licence and a language."""
    teacher = save_teacher(home / "teacher", BertForMaskedLM)
    (teacher / "README.md").write_text("---\nlicense: mit\nlanguage: en\n---\n# Teacher\n")
    return teacher
