"""Reports of work that was lost: folders that were wiped, results that never arrived."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

from case import case
from small import compressed, kept, program, save_teacher
from transformers import AutoModelForMaskedLM

from wid_hf import OutputError

KIND = "Finished work and folders"


@case(KIND, "electra#78", "The output is a link to a folder on another disk")
def output_is_a_link(folder: Path) -> None:
    teacher = save_teacher(folder / "teacher")
    (folder / "disk").mkdir()
    (folder / "out").symlink_to("disk")
    compressed(teacher, folder / "out")
    assert (folder / "out").is_symlink()
    assert AutoModelForMaskedLM.from_pretrained(folder / "disk").config.hidden_size == 12


@case(KIND, "electra#78", "The output is the current folder, `.`, which cannot be renamed")
def output_is_the_current_folder(folder: Path) -> None:
    teacher = save_teacher(folder / "elsewhere" / "teacher")
    (folder / "elsewhere" / "texts.txt").rename(folder / "texts.txt")
    work = folder / "work"
    work.mkdir()
    (folder / "elsewhere" / "texts.txt").symlink_to(folder / "texts.txt")
    import os

    os.chdir(work)
    compressed(teacher, ".")
    assert AutoModelForMaskedLM.from_pretrained(work).config.hidden_size == 12


@case(KIND, "electra#78", "The output is a link to a folder that is not mounted", refused=("link to gone", "make that"))
def output_is_a_dangling_link(folder: Path) -> None:
    teacher = save_teacher(folder / "teacher")
    (folder / "out").symlink_to("gone")
    compressed(teacher, folder / "out")


@case(
    KIND,
    "trl#2928",
    "The empty output folder is filled by somebody else while training runs",
    refused=("student is complete", "it is in"),
)
def output_filled_meanwhile(folder: Path) -> None:
    teacher, output = save_teacher(folder / "teacher"), folder / "out"
    before = set(folder.iterdir())
    done = threading.Event()

    def fill() -> None:
        while not done.is_set() and not set(folder.iterdir()) - before:
            time.sleep(0.01)
        output.mkdir(exist_ok=True)
        (output / "notes.txt").write_text("mine")

    filling = threading.Thread(target=fill)
    filling.start()
    try:
        compressed(teacher, output)
    except OutputError as refusal:
        place = re.search(r"It is in (\S+?)\.?$", str(refusal))
        assert place, refusal
        assert AutoModelForMaskedLM.from_pretrained(place[1]).config.hidden_size == 12
        raise
    finally:
        done.set()
        filling.join()
        assert (output / "notes.txt").read_text() == "mine"


@case(KIND, "trl#2928", "A second run into the folder of the first", refused=("exists already", "overwrite"))
def output_holds_an_earlier_student(folder: Path) -> None:
    teacher = save_teacher(folder / "teacher")
    compressed(teacher, folder / "out", steps=0)
    with kept(folder / "out" / "model.safetensors"):
        compressed(teacher, folder / "out", steps=0, hidden_size=8)


@case(KIND, "trl#2928", "The same with leave to overwrite: the new student takes the place of the old one")
def overwrite_replaces_an_earlier_student(folder: Path) -> None:
    teacher = save_teacher(folder / "teacher")
    compressed(teacher, folder / "out", steps=0)
    compressed(teacher, folder / "out", steps=0, overwrite=True, hidden_size=8)
    assert AutoModelForMaskedLM.from_pretrained(folder / "out").config.hidden_size == 8
    left = {path.name for path in folder.iterdir()} - {"teacher", "texts.txt", "out"}
    assert not left, f"temporary folders are left: {left}"


@case(
    KIND,
    "community-events#77, scilpy#55",
    "Overwriting a project folder that holds the teacher and other work",
    refused=("holds", "name a(nother)? folder"),
)
def overwrite_of_a_project(folder: Path) -> None:
    project = folder / "project"
    teacher = save_teacher(project / "teacher")
    (project / "notes.txt").write_text("mine")
    with kept(project / "notes.txt", teacher / "config.json", teacher / "model.safetensors"):
        compressed(teacher, project, steps=0, overwrite=True)


@case(
    KIND,
    "slendr#82",
    "Overwriting a folder of ours to which the user added a file",
    refused=("thesis", "another folder"),
)
def overwrite_of_a_student_with_notes(folder: Path) -> None:
    teacher = save_teacher(folder / "teacher")
    compressed(teacher, folder / "out", steps=0)
    (folder / "out" / "thesis.tex").write_text("mine")
    with kept(folder / "out" / "thesis.tex", folder / "out" / "model.safetensors"):
        compressed(teacher, folder / "out", steps=0, overwrite=True)


@case(
    KIND,
    "community-events#77",
    "Overwriting the teacher's own folder, spelled another way",
    refused=("is the teacher", "folder apart|another folder"),
)
def overwrite_of_the_teacher(folder: Path) -> None:
    teacher = save_teacher(folder / "teacher")
    with kept(teacher / "config.json", teacher / "model.safetensors"):
        compressed(teacher, f"{folder}/./teacher/", steps=0, overwrite=True)


@case(
    KIND,
    "scilpy#55",
    "Exporting onto a file that holds something else",
    refused=("other.onnx", "another|--overwrite"),
)
def export_onto_a_file(folder: Path) -> None:
    teacher = save_teacher(folder / "teacher")
    (folder / "other.onnx").write_text("mine")
    with kept(folder / "other.onnx"):
        program("export", teacher, "--output", folder / "other.onnx")
