"""Small models, texts and settings that cases are made of: no file, no network, a fraction of a second."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from case import Refusal
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Trainer, TrainingArguments

from wid_hf import CalibrationConfig, WidConfig, WidTrainingArguments, get_wid_model
from wid_hf.tools.compress import CompressSettings, compress
from wid_hf.tools.reports.wid_report import Report

VOCABULARY = 60
BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
}
HALF = {"hidden_size": 12, "intermediate_size": 24}
Batch = dict[str, Tensor]


def bert(name: str = "BertForMaskedLM", **more: Any) -> PreTrainedModel:
    """Return a random BERT of hidden size 24, in evaluation mode."""
    torch.manual_seed(0)
    return getattr(transformers, name)(transformers.BertConfig(**BERT | more)).eval()


def gpt2(name: str = "GPT2LMHeadModel", **more: Any) -> PreTrainedModel:
    """Return a random GPT-2 of hidden size 24."""
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 32}
    return getattr(transformers, name)(
        transformers.GPT2Config(**sizes | {"bos_token_id": 1, "eos_token_id": 2} | more)
    ).eval()


def llama(**more: Any) -> PreTrainedModel:
    """Return a random Llama of hidden size 32 with two key/value heads for four query heads."""
    torch.manual_seed(0)
    sizes = BERT | {"hidden_size": 32, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes | more)).eval()


def tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of five special tokens and the words w5 to w59, each with its number."""
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    names |= {"mask_token": "[MASK]"}
    words = [*names.values(), *(f"w{number}" for number in range(len(names), VOCABULARY))]
    raw = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, **names | special)


def batches(count: int = 4, rows: int = 8, length: int = 12) -> list[Batch]:
    """Return batches of random tokens without padding."""
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(5, VOCABULARY, (rows, length), generator=generator) for _ in range(count)]
    return [{"input_ids": each, "attention_mask": torch.ones_like(each)} for each in ids]


def rows(count: int = 32, length: int = 10) -> Dataset:
    """Return rows of random tokens that are their own labels."""
    ids = torch.randint(5, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(2)).tolist()
    return Dataset.from_dict({"input_ids": ids, "labels": ids})


def arguments(folder: Path, kind: type[TrainingArguments] = WidTrainingArguments, **more: Any) -> TrainingArguments:
    """Return settings of a few steps on the processor that write nothing unless told to."""
    settings = {
        "max_steps": 2,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return kind(str(folder), **settings | more)


def half_bert(teacher: PreTrainedModel | None = None, **more: Any) -> Any:
    """Return a calibrated wid model of half of BERT's width."""
    return get_wid_model(teacher or bert(), WidConfig(hidden_size=12, **more), calibration_data=batches())


def save_teacher(
    folder: Path, model: PreTrainedModel | None = None, words: PreTrainedTokenizerFast | None = None
) -> Path:
    """Save a teacher with its tokenizer, and beside the folder texts for it in `texts.txt`; return the folder."""
    (model or bert()).save_pretrained(folder)
    (words or tokenizer()).save_pretrained(folder)
    lines = (" ".join(f"w{(7 * line + 3 * word) % 55 + 5}" for word in range(12)) for line in range(120))
    (folder.parent / "texts.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


def compressed(teacher: Path, output: str | Path, *, steps: int = 2, overwrite: bool = False, **sizes: int) -> Report:
    """Compress a saved teacher to half its width as a user of the library does."""
    settings = CompressSettings(steps=steps, batch_size=8, max_length=16, validation_texts=8)
    config = WidConfig(**sizes or HALF, calibration_config=CalibrationConfig(samples=32))
    texts = teacher.resolve().parent / "texts.txt"
    return compress(str(teacher), str(texts), output, config, settings, overwrite=overwrite)


def program(*words: str | Path) -> str:
    """Run `wid-hf` in this process and return what it printed to standard output.

    Raises:
        Refusal: it exited with an error and told why.
    """
    import contextlib
    import io

    from wid_hf_cli.main import main

    before, out, err = sys.argv, io.StringIO(), io.StringIO()
    sys.argv = ["wid-hf", *map(str, words)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        if end.code:
            raise Refusal(" ".join(err.getvalue().split()).partition(": ")[2]) from None
    finally:
        sys.argv = before
    return out.getvalue()


def same_outputs(one: PreTrainedModel, other: PreTrainedModel, batch: Batch | None = None) -> None:
    """Check that two models give the same outputs, bit by bit.

    Raises:
        AssertionError: they do not.
    """
    batch = batch or batches(1)[0]
    with torch.no_grad():
        first, second = (model.eval()(**batch)[0] for model in (one, other))
    assert torch.equal(first, second), f"outputs differ by {(first - second).abs().max()}"


def losses(trainer: Trainer) -> list[float]:
    """Return the training losses that a trainer has logged."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def gradient_norms(trainer: Trainer) -> list[float]:
    """Return the norms of the gradients that a trainer has logged."""
    return [float(entry["grad_norm"]) for entry in trainer.state.log_history if "grad_norm" in entry]


@contextmanager
def kept(*paths: Path) -> Iterator[None]:
    """Check that files are the same afterwards, whatever happens meanwhile."""
    before = {path: path.read_bytes() for path in paths}
    try:
        yield
    finally:
        for path, content in before.items():
            assert path.is_file(), f"{path.name} was deleted"
            assert path.read_bytes() == content, f"{path.name} was changed"
