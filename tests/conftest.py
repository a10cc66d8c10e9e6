"""Fixtures shared by all tests: a tiny random BERT, and real teachers and data where they are at hand."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of programs that tests start, too
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="wid-hf-tests-")  # not into the user's cache

import pytest
import torch
from toys import save_teacher
from transformers import BertConfig, BertForMaskedLM

REPOSITORY = Path(__file__).parents[1]

# One thread: the models are tiny, and threads that wait for each other are slower on a busy machine.
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def tables_go() -> Iterator[None]:
    """Delete the tables that `datasets` made of the tests' files."""
    yield
    shutil.rmtree(os.environ["HF_DATASETS_CACHE"], ignore_errors=True)


@pytest.fixture
def tiny_bert() -> BertForMaskedLM:
    config = BertConfig(
        vocab_size=60,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=32,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BertForMaskedLM(config).eval()


@pytest.fixture
def masked_teacher(tmp_path: Path) -> Path:
    """The folder of a tiny random BERT with a masked-LM head and a word tokenizer."""
    return save_teacher(tmp_path / "teacher", BertForMaskedLM)


@pytest.fixture(scope="session")
def reaction_bert_dir() -> Path:
    return _teacher("reaction-bert")


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    return _teacher("minilm")


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    return _teacher("smollm2")


@pytest.fixture(scope="session")
def tagger_dir() -> Path:
    return _teacher("tagger")


@pytest.fixture(scope="session")
def real_data() -> Path:
    folder = Path(os.environ.get("WID_HF_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data at {folder}: set WID_HF_DATA to the folder that holds uspto50k and others")
    return folder


@pytest.fixture(scope="session")
def uspto50k(real_data: Path) -> Path:
    return real_data / "uspto50k"


def _teacher(name: str) -> Path:
    teachers = Path(os.environ.get("WID_HF_TEACHERS", REPOSITORY / ".cache" / "teachers"))
    if not (teachers / name).is_dir():
        pytest.skip(f"no teacher at {teachers / name}: run `python examples/fetch_teacher.py {name} {teachers}`")
    return teachers / name
