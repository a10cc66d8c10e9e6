"""Figures of a student that no report has, read from its folder and its teacher's as anybody would read them.

Takes both folders; gives for each figure what teacher and student have.
"""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from case import Figures
from datasets import Dataset
from gguf_file import write_gguf
from places import DATA
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
)

from wid_hf.objectives.generated_targets import written
from wid_hf.rows import find_columns, load_rows, prepare
from wid_hf.rows.roles import TRANSCRIPT
from wid_hf.scores.transcripts import error_rate
from wid_hf.tools.compression import find_task

MODELS = ("teacher", "student")
PROMPT = "The president of the United States said on Tuesday that"
WRITTEN = 24  # tokens
LONGEST = 128  # tokens of a sentence
SPOKEN = {
    word: str(digit)
    for digit, word in enumerate(("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"))
}


def of_sentences(teacher: Path, student: Path) -> dict[str, Figures]:
    """Return Spearman's correlation on STS-B's test pairs, lengths of vectors, and the modules."""
    pairs = pd.read_json(DATA / "glue" / "stsb" / "test.jsonl", lines=True)
    found: dict[str, dict[str, float | str]] = {}
    for name, folder in zip(MODELS, (teacher, student), strict=True):
        first, second = (_vectors(folder, list(pairs[column])) for column in ("text_a", "text_b"))
        cosines = pd.Series(functional.cosine_similarity(first, second).tolist())
        lengths = torch.cat([first, second]).norm(dim=1)
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        figures = {
            "STS-B test, Spearman": float(cosines.rank().corr(pairs["label"].rank())),
            "length of vectors, mean": float(lengths.mean()),
            "length of vectors, deviation": float(lengths.std()),
            "numbers in a vector": str(first.shape[1]),
            "modules": ", ".join(module["type"].rpartition(".")[2] for module in modules),
            "read by": _reader(),
        }
        for figure, value in figures.items():
            found.setdefault(figure, {})[name] = value
    return found


def _reader() -> str:
    return "sentence_transformers" if find_spec("sentence_transformers") else "wid_hf.sentence_models"


def _vectors(folder: Path, texts: list[str]) -> Tensor:
    if find_spec("sentence_transformers"):
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(str(folder), device="cpu").encode(texts, convert_to_tensor=True)
    model = AutoModel.from_pretrained(folder).eval()
    task = find_task(model, AutoTokenizer.from_pretrained(folder))
    return task.wanted(task.scored(task.features(Dataset.from_dict({"text": texts}), LONGEST), 32, 0))


def of_digits(teacher: Path, student: Path) -> dict[str, Figures]:
    """Return errors per digit on the held-out sounds of `media.digits`, however digits are written."""
    sounds = load_rows(str(student.parent / "test"))
    errors: dict[str, float | str] = {}
    for name, folder in zip(MODELS, (teacher, student), strict=True):
        model = AutoModelForSpeechSeq2Seq.from_pretrained(folder).eval()
        task = find_task(model, processor := AutoProcessor.from_pretrained(folder))
        roles = [*task.roles, TRANSCRIPT]
        rows = prepare(sounds, find_columns(sounds, roles, {}, str(student.parent)), roles).rows
        found = [
            processor.tokenizer.decode(tokens, skip_special_tokens=True)
            for batch in task.scored(task.features(rows, LONGEST), 8, 0)
            for tokens in written(model, batch, WRITTEN)
        ]
        errors[name] = error_rate([*map(_digits, found)], [*map(_digits, sounds["transcription"])])
    return {"errors per digit": errors}


def _digits(text: str) -> list[str]:
    """Return digits one by one, and words that are none."""
    return [SPOKEN.get(word, word) for word in re.findall(r"\d|[a-z]+", text.lower())]


def of_decoder(teacher: Path, student: Path) -> dict[str, Figures]:
    """Return what both write, and what the student writes that was saved as a GGUF file and loaded again."""
    texts: dict[str, float | str] = {
        name: _continued(AutoModelForCausalLM.from_pretrained(folder), folder)
        for name, folder in zip(MODELS, (teacher, student), strict=True)
    }
    found: dict[str, Figures] = {f"goes on after “{PROMPT}”": texts}
    if find_spec("gguf"):
        with TemporaryDirectory(dir=student.parent) as temporary:
            file = write_gguf(student, Path(temporary) / "student.gguf")
            again = AutoModelForCausalLM.from_pretrained(temporary, gguf_file=file.name, dtype="float32")
            same = _continued(again, student) == texts["student"]
        found["the same from a GGUF file"] = {"student": "yes" if same else "no"}
    return found


def _continued(model: PreTrainedModel, folder: Path) -> str:
    """Return what a model writes greedily, on one line of a table."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer(PROMPT, return_tensors="pt")
    tokens = model.generate(**prompt, max_new_tokens=WRITTEN, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    return " ".join(tokenizer.decode(tokens, skip_special_tokens=True).replace("|", r"\|").split())
