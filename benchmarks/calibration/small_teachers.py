"""Two small teachers of kinds that no package index has in a small size, trained here in some minutes on one core.

Takes a name and a folder; gives FOLDER/NAME, a Hugging Face folder. small-gpt2 is a causal LM with a byte-level BPE of
its own and a tied head, on Wikinews; small-vit classifies CIFAR-10. Their quality is modest, but random weights would
say nothing about what a student inherits.
Called as `python benchmarks/calibration/small_teachers.py small-gpt2|small-vit FOLDER`; does nothing if it is there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from enum import Enum
from itertools import chain
from math import cos, pi
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.append(str(Path(__file__).parents[1] / "shared"))

import torch
import typer
from pictures import load_pictures
from places import DATA, WIKINEWS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from wid_hf.progress_bar import progress_bar
from wid_hf.rows import load_texts

END = "<|endoftext|>"
ARTICLES = slice(1000, 6000)  # benchmarks calibrate and score on those before
LENGTH = 128
WARMUP = 100


class SmallTeacher(str, Enum):
    """The teachers that can be trained."""

    GPT2 = "small-gpt2"
    VIT = "small-vit"


STEPS = {SmallTeacher.GPT2: 2000, SmallTeacher.VIT: 2000}  # some six minutes each on an idle core


def make(name: SmallTeacher, directory: Path, steps: int) -> Path:
    """Return the folder `directory/name`, trained unless it is already there."""
    output = directory / name.value
    if output.exists():
        return output
    torch.manual_seed(0)
    directory.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{name.value}-", dir=directory) as temporary:
        unfinished = Path(temporary) / name.value
        if name is SmallTeacher.GPT2:
            _language_model(unfinished, steps)
        else:
            _classifier(unfinished, steps)
        unfinished.rename(output)
    return output


def _language_model(output: Path, steps: int) -> None:
    texts = list(load_texts(str(WIKINEWS))["text"])[ARTICLES]
    tokenizer = _byte_pairs(texts[:2000])
    end = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=LENGTH,
        n_embd=128,
        n_layer=4,
        n_head=4,
        bos_token_id=end,
        eos_token_id=end,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    )
    ids = torch.tensor(list(chain.from_iterable([end, *row] for row in tokenizer(texts)["input_ids"])))
    blocks = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
    model = GPT2LMHeadModel(config)
    _train(model, ({"input_ids": part, "labels": part} for part in _shuffled(blocks, 8, steps)), steps, rate=2e-3)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def _byte_pairs(texts: list[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE with 2,048 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2048, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, bos_token=END, pad_token=END)


def _classifier(output: Path, steps: int) -> None:
    pixels, labels = load_pictures(DATA / "images" / "cifar10" / "train.jsonl.gz")
    config = ViTConfig(
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        image_size=pixels.shape[-1],
        patch_size=4,
        num_labels=int(labels.max()) + 1,
        **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0),
    )
    model = ViTForImageClassification(config)
    picked = _shuffled(torch.arange(len(labels)), 32, steps)
    _train(model, ({"pixel_values": _moved(pixels[at]), "labels": labels[at]} for at in picked), steps, rate=1e-3)
    model.save_pretrained(output)
    size = {"height": pixels.shape[-2], "width": pixels.shape[-1]}
    ViTImageProcessor(size=size).save_pretrained(output)  # its mean and deviation, 0.5, are those of load_pictures


def _moved(pixels: Tensor) -> Tensor:
    """Return pictures (batch, 3, size, size) mirrored and shifted by up to 4 pixels at random, all of a batch alike."""
    size = pixels.shape[-1]
    down, right = torch.randint(9, (2,)).tolist()
    shifted = functional.pad(pixels, (4, 4, 4, 4))[..., down : down + size, right : right + size]
    return shifted.flip(-1) if torch.rand(()) < 0.5 else shifted


def _shuffled(rows: Tensor, batch: int, steps: int) -> Iterator[Tensor]:
    """Yield `steps` batches; every row once before any comes again."""
    order = torch.cat([torch.randperm(len(rows)) for _ in range(-(-steps * batch // len(rows)))])
    for step in range(steps):
        yield rows[order[step * batch : (step + 1) * batch]]


def _train(model: PreTrainedModel, batches: Iterator[dict[str, Tensor]], steps: int, rate: float) -> None:
    """Train by AdamW, warmed up and decayed along a cosine."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate / 1e-3 * min((step + 1) / WARMUP, (1 + cos(pi * step / steps)) / 2)
    )
    for batch in progress_bar(batches, "Training", total=steps):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def main(name: SmallTeacher, directory: Path, steps: int | None = None) -> None:
    """Train the teacher NAME into DIRECTORY/NAME unless it is already there."""
    print(make(name, directory, steps or STEPS[name]))


if __name__ == "__main__":
    typer.run(main)
