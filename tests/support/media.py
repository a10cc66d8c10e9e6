"""Tiny models of images and of sounds, with images and sounds for them."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pictures
from toys import wav2vec2_config
from transformers import (
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    ViTModel,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2ForSequenceClassification,
    Wav2Vec2Model,
    Wav2Vec2Processor,
)

from wid_hf.inputs import find_inputs
from wid_hf.objectives import Objective, find_objective
from wid_hf.rows.sounds import StoredSound

RATE = 2000  # of tiny sounds, samples per second
LETTERS = "ABCDE"
SAID = ("A B", "CD", "ABE", "E", "DAB", "C C")

KINDS: dict[str, type[PreTrainedModel]] = {
    "images": ViTForImageClassification,
    "sounds": Wav2Vec2ForSequenceClassification,
    "speech": Wav2Vec2ForCTC,
    "image features": ViTModel,
    "sound features": Wav2Vec2Model,
}


def teacher_of(name: str, seed: int = 0, **config: Any) -> PreTrainedModel:
    """A tiny model of `KINDS`, with weights that are large enough for its outputs to differ from row to row."""
    if "image" in name:
        sizes = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        settings: Any = ViTConfig(**{**sizes, **none, "image_size": 8, "patch_size": 4, "num_labels": 3, **config})
    else:  # norms of layers: those of groups see padding
        words = {"vocab_size": len(LETTERS) + 3, "feat_extract_norm": "layer", "do_stable_layer_norm": True}
        settings = wav2vec2_config(**{**words, "num_labels": 3, "classifier_proj_size": 16, **config})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = KINDS[name](settings).eval()
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim > 1:
                    weight.normal_(std=0.25)
    return model


def image_processor() -> ViTImageProcessorPil:
    return ViTImageProcessorPil(size={"height": 8, "width": 8})


def extractor(rate: int = RATE) -> Wav2Vec2FeatureExtractor:
    return Wav2Vec2FeatureExtractor(sampling_rate=rate, return_attention_mask=True)


def speech_processor(folder: Path) -> Wav2Vec2Processor:
    """A processor whose tokenizer has the class 0 for the blank."""
    folder.mkdir(exist_ok=True)
    names = ["<pad>", "|", "<unk>", *LETTERS]
    vocabulary = folder / "letters.json"
    vocabulary.write_text(json.dumps({name: number for number, name in enumerate(names)}))
    tokenizer = Wav2Vec2CTCTokenizer(str(vocabulary), bos_token=None, eos_token=None)
    return Wav2Vec2Processor(extractor(), tokenizer)


def processor_of(name: str, folder: Path) -> Any:
    return image_processor() if "image" in name else speech_processor(folder) if name == "speech" else extractor()


def objective_of(name: str, folder: Path, seed: int = 0, **config: Any) -> Objective:
    teacher = teacher_of(name, seed, **config)
    return find_objective(teacher)(teacher, find_inputs(teacher, processor_of(name, folder)))


def rows_of(name: str, folder: Path, count: int = 16, **others: list[Any]) -> Dataset:
    """Rows of images or of sounds of several lengths, whose columns are roles."""
    if "image" in name:
        kept = {column: Value("int64") for column in others}
        columns = {"image": [picture(number) for number in range(count)], **others}
        return Dataset.from_dict(columns, Features({"image": Image(), **kept}))
    paths = [write_wav(folder / f"{number}.wav", tone(number)) for number in range(count)]
    kept = {column: Value("string" if column == "target" else "int64") for column in others}
    columns = {"audio": [str(path) for path in paths], **others}
    return Dataset.from_dict(columns, Features({"audio": StoredSound(), **kept}))


def picture(number: int, mode: str = "RGB") -> Pictures.Image:
    """An image of 12 x 10 pixels."""
    pixels = np.random.default_rng(number).integers(256, size=(10, 12, 3), dtype=np.uint8)
    return Pictures.fromarray(pixels).convert(mode)


def tone(number: int, rate: int = RATE) -> np.ndarray:
    """A sound of 0.1 to 0.24 seconds, two tones of its own."""
    time = np.arange(int(rate * (0.1 + 0.02 * (number % 8)))) / rate
    return (0.4 * np.sin(2 * np.pi * (60 + 40 * number) * time) + 0.2 * np.sin(500 * time)).astype(np.float32)


def write_wav(path: Path, values: np.ndarray, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((values * 32767).astype("<i2").tobytes())
    return path
