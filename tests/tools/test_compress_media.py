"""One command from a folder of images or of sounds to a student with its processor."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from media import RATE, SAID, picture, processor_of, teacher_of, tone, write_wav
from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForCTC,
    AutoModelForImageClassification,
    AutoProcessor,
)

from wid_hf import CalibrationConfig, WidConfig
from wid_hf.errors import DataError, TeacherError, WidWarning
from wid_hf.tools.compress import CompressSettings, compress

HALF = WidConfig(hidden_size=12, intermediate_size=24, calibration_config=CalibrationConfig(16, 8))
SETTINGS = CompressSettings(steps=2, batch_size=8, validation_texts=8)
CLASSES = ("bird", "cat", "dog")
AUTO: dict[str, tuple[Any, Any]] = {
    "images": (AutoModelForImageClassification, AutoImageProcessor),
    "sounds": (AutoModelForAudioClassification, AutoFeatureExtractor),
    "speech": (AutoModelForCTC, AutoProcessor),
    "image features": (AutoModel, AutoImageProcessor),
    "sound features": (AutoModel, AutoFeatureExtractor),
}
FIDELITY, CLASSES_RIGHT = {"agreement", "divergence"}, {"accuracy", "macro_f1"}
FIGURES = {
    "images": FIDELITY | CLASSES_RIGHT,
    "sounds": FIDELITY | CLASSES_RIGHT,
    "speech": FIDELITY | {"character_error_rate", "word_error_rate"},
    "image features": {"cosine_correlation", "top1_agreement"},
    "sound features": {"cosine_correlation", "top1_agreement"},
}


def save(name: str, folder: Path) -> Path:
    names = {
        "id2label": dict(enumerate(reversed(CLASSES))),
        "label2id": {c: n for n, c in enumerate(reversed(CLASSES))},
    }
    teacher_of(name, **({} if name == "speech" else names)).save_pretrained(folder)
    processor_of(name, folder.parent / "letters").save_pretrained(folder)
    return folder


def write_data(name: str, folder: Path, count: int = 24) -> Path:
    for number in range(count):
        place = folder / CLASSES[number % 3]
        if "image" in name:
            place.mkdir(parents=True, exist_ok=True)
            picture(number).save(place / f"{number}.png")
        else:
            write_wav((folder if name == "speech" else place) / f"{number}.wav", tone(number))
    if name == "speech":
        rows = [{"file_name": f"{number}.wav", "transcription": SAID[number % 6]} for number in range(count)]
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.mark.parametrize("name", AUTO)
def test_a_folder_becomes_a_student_with_its_processor(name: str, tmp_path: Path) -> None:
    teacher, data, output = save(name, tmp_path / "teacher"), write_data(name, tmp_path / "data"), tmp_path / "student"
    report = compress(str(teacher), str(data), output, HALF, SETTINGS)
    assert report.scores["student"].keys() == FIGURES[name]
    assert {*report.scores} == {"teacher", "start", "student"}
    auto_model, auto_processor = AUTO[name]
    student, processor = auto_model.from_pretrained(output), auto_processor.from_pretrained(output)
    assert student.config.hidden_size == 12
    if "image" in name:
        inputs = processor(picture(0), return_tensors="pt")
        assert report.latency is not None and report.latency.batch == (4, 3, 8, 8)
    else:
        inputs = processor(tone(0), sampling_rate=RATE, return_tensors="pt")
    assert all(torch.isfinite(tensor).all() for tensor in student(**inputs).values())
    files = {path.name for path in teacher.iterdir()} - {"config.json", "model.safetensors"}
    assert all((output / file).read_bytes() == (teacher / file).read_bytes() for file in files)
    card = (output / "README.md").read_text()
    unit = "images" if "image" in name else "sounds"
    assert f"2 steps of 8 {unit}; " in card and f"{auto_processor.__name__}.from_pretrained" in card
    assert f"{unit} held out of the training data" in card


def test_images_that_cannot_be_read_are_left_out_and_counted(tmp_path: Path) -> None:
    teacher, data = save("images", tmp_path / "teacher"), write_data("images", tmp_path / "data")
    (data / "cat" / "1.png").write_bytes(b"no image")
    told: list[str] = []
    compress(str(teacher), str(data), tmp_path / "student", HALF, SETTINGS, tell=told.append)
    assert "1 of 24 rows is left out: the image cannot be read (1)" in told[1]


@pytest.mark.parametrize("name", ["images", "speech"])
def test_a_stream_gives_the_same_columns(name: str, tmp_path: Path) -> None:
    teacher, data = save(name, tmp_path / "teacher"), write_data(name, tmp_path / "data")
    settings = replace(SETTINGS, streaming=True)
    report = compress(str(teacher), str(data), tmp_path / "student", HALF, settings)
    assert report.scores["student"].keys() == FIGURES[name]


def test_classes_that_the_teacher_does_not_have_are_refused(tmp_path: Path) -> None:
    teacher, data = save("images", tmp_path / "teacher"), write_data("images", tmp_path / "data")
    (data / "cat").rename(data / "cow")
    with pytest.raises(
        DataError, match=r"has classes that are none of the model's: cow\. Legal: 0 to 2, or dog, cat, bird"
    ):
        compress(str(teacher), str(data), tmp_path / "student", HALF, SETTINGS)
    assert not (tmp_path / "student").exists()


def test_sounds_at_another_rate_are_resampled_and_told(tmp_path: Path) -> None:
    teacher, data = save("sounds", tmp_path / "teacher"), tmp_path / "data"
    for number in range(12):
        write_wav(data / f"{number}.wav", tone(number, 2 * RATE), 2 * RATE)
    with pytest.warns(WidWarning, match="4,000 samples per second are resampled to 2,000"):
        report = compress(str(teacher), str(data), tmp_path / "student", HALF, SETTINGS)
    assert report.scores["student"].keys() == FIDELITY


def test_a_teacher_without_its_processor_is_refused(tmp_path: Path) -> None:
    teacher_of("images").save_pretrained(tmp_path / "images")
    teacher_of("speech").save_pretrained(tmp_path / "speech")
    write_data("images", tmp_path / "data")
    for name, unit in (("images", "images"), ("speech", "sounds")):
        with pytest.raises(TeacherError, match=rf"{name}' has no usable processor of {unit}: .*processor.save_pretr"):
            compress(str(tmp_path / name), str(tmp_path / "data"), tmp_path / "student", HALF, SETTINGS)


def test_a_recogniser_without_a_tokenizer_learns_from_sounds_alone(tmp_path: Path) -> None:
    teacher, data = save("speech", tmp_path / "teacher"), write_data("speech", tmp_path / "data")
    for file in ("vocab.json", "tokenizer_config.json", "processor_config.json"):
        (teacher / file).unlink()
    processor_of("sounds", tmp_path).save_pretrained(teacher)
    with pytest.raises(TeacherError, match=r"Transcripts need a tokenizer.*--column target="):
        compress(str(teacher), str(data), tmp_path / "student", HALF, SETTINGS)
    settings = CompressSettings(steps=2, batch_size=8, label_weight=0.0)
    with pytest.warns(
        WidWarning, match=r"held-out rows are scored without their labels\. Transcripts need a tokenizer"
    ):
        report = compress(str(teacher), str(data), tmp_path / "student", HALF, settings)
    assert report.scores["student"].keys() == FIDELITY
    assert not (tmp_path / "student" / "vocab.json").exists()
