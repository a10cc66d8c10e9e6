"""Tiny teachers with data as `benchmarks/calibration` measures them; its modules must be importable by name."""

from __future__ import annotations

import base64
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from toys import save_teacher, texts
from transformers import BertForMaskedLM, BertForTokenClassification, BertModel, ViTConfig, ViTForImageClassification

SIZES = {width: {"hidden_size": 4 * share, "intermediate_size": 8 * share} for width, share in (("1/2", 3), ("1/4", 2))}


def write_rows(file: Path, seed: int, count: int = 48) -> Path:
    rows = zip(texts(count, seed), texts(count, seed + 100), range(count), strict=True)
    lines = [json.dumps({"text_a": a, "text_b": b, "label": float(at % 6)}) for a, b, at in rows]
    file.write_text("\n".join(lines) + "\n")
    return file


def masked_subject(folder: Path) -> Any:
    from masked import Masked

    return Masked(
        "reaction-bert",
        save_teacher(folder / "masked", BertForMaskedLM),
        SIZES,
        write_rows(folder / "a.jsonl", 0),
        write_rows(folder / "b.jsonl", 1),
        calibration_texts=40,
        scored_texts=16,
        columns=("text_a",),
        max_length=12,
    )


def sentences_subject(folder: Path) -> Any:
    from sentences import Sentences

    return Sentences(
        "minilm",
        save_teacher(folder / "encoder", BertModel),
        SIZES,
        write_rows(folder / "a.jsonl", 0),
        write_rows(folder / "b.jsonl", 1),
        calibration_texts=40,
        scored_texts=16,
        columns=("text_a", "text_b"),
        max_length=12,
        validation=write_rows(folder / "c.jsonl", 2),
    )


def write_pictures(file: Path, count: int) -> Path:
    generator = torch.Generator().manual_seed(0)
    lines = []
    for number in range(count):
        pixels = torch.randint(256, (8, 8, 3), generator=generator, dtype=torch.uint8).numpy()
        buffer = BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG")
        lines.append(json.dumps({"jpeg": base64.b64encode(buffer.getvalue()).decode(), "label": number % 3}))
    file.write_text("\n".join(lines) + "\n")
    return file


def save_vit(folder: Path) -> Path:
    sizes = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ViTForImageClassification(
            ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=3, initializer_range=0.5)
        )
    model.save_pretrained(folder)
    return folder


def tagger_subject(folder: Path) -> Any:
    from taggers import Tagger

    words = write_rows(folder / "words.jsonl", 0)
    teacher = save_teacher(folder / "tagger", BertForTokenClassification)
    counts = {"calibration_texts": 20, "scored_texts": 16}
    return Tagger("tagger", teacher, SIZES, words, words, **counts, columns=("text_a",), max_length=12)


def classifier_subject(folder: Path) -> Any:
    from classifiers import Classifier

    pictures = write_pictures(folder / "pictures.jsonl", 24)
    return Classifier("vit", save_vit(folder / "vit"), SIZES, pictures, pictures, calibration_texts=16, scored_texts=24)
