"""Images and sounds stay as they are stored until a batch is made of them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from media import RATE, extractor, image_processor, picture, rows_of, teacher_of, tone, write_wav
from PIL import Image as Pictures
from toys import word_tokenizer
from transformers import ASTFeatureExtractor, BertConfig, BertModel, WhisperFeatureExtractor

from wid_hf.errors import DataError, WidWarning
from wid_hf.inputs import ImageInputs, SoundInputs, TextInputs, batches, find_inputs


def test_images_stay_stored_and_become_pixels_in_a_batch() -> None:
    inputs = ImageInputs(image_processor(), "pixel_values")
    images = [picture(0), picture(1, "L"), picture(2, "RGBA")]
    rows = Dataset.from_dict(
        {"image": images, "name": ["a", "b", "c"]}, Features({"image": Image(), "name": Value("string")})
    )
    made = inputs.features(rows, 12)
    assert made.column_names == ["pixel_values"] and isinstance(made.features["pixel_values"], Image)
    first, last = batches(made, inputs.collator, 2)
    wanted = image_processor()([image.convert("RGB") for image in images], return_tensors="pt")["pixel_values"]
    assert torch.equal(torch.cat([first["pixel_values"], last["pixel_values"]]), wanted)


def test_grey_of_16_bits_is_scaled_and_not_cut_off() -> None:
    fine = (np.random.default_rng(0).integers(256, size=(8, 8)) * 257).astype(np.uint16)
    coarse = Pictures.fromarray((fine // 257).astype(np.uint8))
    inputs = ImageInputs(image_processor(), "pixel_values")
    both = inputs.encode({"image": [Pictures.fromarray(fine), coarse]}, 0)["pixel_values"]
    assert torch.equal(both[0], both[1])
    assert both[0].std() > 0.3


def test_labels_go_with_what_is_stored(tmp_path: Path) -> None:
    inputs = ImageInputs(image_processor(), "pixel_values")
    rows = rows_of("images", tmp_path, 3, label=[2, 0, 1])
    made = inputs.features(rows, 12, lambda columns, _: {"labels": [float(label) for label in columns["label"]]})
    assert made.column_names == ["pixel_values", "labels"]
    (batch,) = batches(made, inputs.collator, 3)
    assert torch.equal(batch["labels"], torch.tensor([2.0, 0.0, 1.0]))


def test_sounds_are_read_and_padded_in_a_batch(tmp_path: Path) -> None:
    inputs = SoundInputs(extractor(), "input_values")
    (batch,) = batches(inputs.features(rows_of("sounds", tmp_path, 3), 12), inputs.collator, 3)
    lengths = [len(tone(number)) for number in range(3)]
    assert batch["attention_mask"].sum(1).tolist() == lengths
    wanted = [(values - values.mean()) / values.std() for values in map(tone, range(3))]
    for row, values in zip(batch["input_values"], wanted, strict=True):
        torch.testing.assert_close(row[: len(values)], torch.tensor(values), atol=2e-3, rtol=0)


def test_a_sound_at_another_rate_is_resampled_and_told_once(tmp_path: Path) -> None:
    inputs = SoundInputs(extractor(RATE), "input_values")
    time = np.arange(800) / (2 * RATE)
    path = write_wav(tmp_path / "fast.wav", np.sin(2 * np.pi * 100 * time).astype(np.float32), 2 * RATE)
    sound = {"path": str(path), "bytes": None}
    with pytest.warns(WidWarning, match="Sounds of 4,000 samples per second are resampled to 2,000"):
        heard = inputs.heard(sound)
    np.testing.assert_allclose(heard, np.sin(2 * np.pi * 100 * np.arange(400) / RATE), atol=2e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inputs.heard(sound)


def test_another_rate_is_told_before_any_batch_and_a_sound_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    inputs = SoundInputs(extractor(8 * RATE), "input_values")
    with pytest.warns(WidWarning, match="resampled"):
        inputs.features(rows_of("sounds", tmp_path, 2), 12)
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"broken\.wav cannot be read"):
        inputs.heard({"path": str(tmp_path / "broken.wav"), "bytes": None})


@pytest.mark.parametrize(
    ("kind", "shape"),
    [(WhisperFeatureExtractor, (1, 80, 3000)), (ASTFeatureExtractor, (1, 1024, 128))],
    ids=["Whisper", "AST"],
)
@pytest.mark.filterwarnings("ignore:At least one mel filter:UserWarning")
def test_extractors_that_pad_by_themselves_do_so(kind: Any, shape: tuple[int, ...], tmp_path: Path) -> None:
    inputs = SoundInputs(kind(), "input_features")
    path = write_wav(tmp_path / "one.wav", tone(1, 16_000), 16_000)
    (made, *_) = inputs.encode({"audio": [{"path": str(path), "bytes": None}]}, 0).values()
    assert made.shape == shape


def test_inputs_follow_from_the_models_first_argument(tmp_path: Path) -> None:
    images, sounds = (
        find_inputs(teacher_of("images"), image_processor()),
        find_inputs(teacher_of("sounds"), extractor()),
    )
    assert isinstance(images, ImageInputs) and images.argument == "pixel_values"
    assert isinstance(sounds, SoundInputs) and sounds.argument == "input_values" and sounds.tokenizer is None
    bert = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8))
    assert type(find_inputs(bert, word_tokenizer())) is TextInputs
