"""Old import paths and arguments: what still works warns, and what left the package says where it is."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import wid_hf
from wid_hf import deprecation
from wid_hf.deprecation import MOVED, renamed_arguments

STAYED = {old: new for old, new in MOVED.items() if new.startswith("wid_hf.")}


@pytest.mark.parametrize("old", STAYED)
def test_an_old_import_path_gives_what_is_there_now_and_warns(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _, name = old.rpartition(".")
    monkeypatch.delitem(sys.modules, module, raising=False)  # it warns once
    space: dict[str, object] = {}
    told = rf"{old} is deprecated and will be removed in wid-hf 0\.3: use {STAYED[old]}\."
    with pytest.warns(FutureWarning, match=told) as warned:
        exec(compile(f"from {module} import {name}", "user.py", "exec"), space)
    assert [warning.filename for warning in warned] == ["user.py"]
    home, _, now = STAYED[old].rpartition(".")
    assert space[name] is getattr(import_module(home), now)


@pytest.mark.parametrize("old", sorted(set(MOVED) - set(STAYED)))
def test_what_left_the_package_says_where_it_is(old: str) -> None:
    module, _, name = old.rpartition(".")
    with pytest.raises(ImportError, match=rf"{old} is no longer part of the package") as refused:
        exec(f"from {module} import {name}")
    place = str(refused.value).partition("It is in ")[2].partition(" ")[0]
    assert (Path(__file__).parents[1] / place).is_file()


def test_other_names_of_an_old_module_and_other_modules_are_not_found() -> None:
    with pytest.raises(ImportError, match=r"cannot import name 'nothing' from 'wid_hf\.data'"):
        exec("from wid_hf.data import nothing")
    with pytest.raises(ModuleNotFoundError):
        import_module("wid_hf.nowhere")
    assert not hasattr(wid_hf, "nothing")


def test_a_function_with_the_name_of_an_old_module_can_still_be_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "wid_hf.compress", raising=False)
    monkeypatch.setattr("wid_hf.tools.one_call.compress", lambda *args, **named: (args, named))
    module = import_module("wid_hf.compress")
    assert wid_hf.compress is module
    assert wid_hf.compress("teacher", rows="texts.txt") == (("teacher",), {"rows": "texts.txt"})


def test_old_modules_are_found_once() -> None:
    before = list(sys.meta_path)
    deprecation.find_old_modules()
    assert sys.meta_path == before


def test_a_warning_is_told_at_the_line_that_uses_the_old_name() -> None:
    def takes(argument: int) -> None:
        deprecation.warn(f"argument={argument}", "another")

    with pytest.warns(
        FutureWarning, match="argument=1 is deprecated and will be removed in wid-hf 0.3: use another"
    ) as warned:
        takes(1)
    assert warned[0].filename == __file__


@pytest.mark.slow
def test_no_old_module_is_imported_by_the_package_itself() -> None:
    script = (
        "import warnings; warnings.simplefilter('error', FutureWarning)\n"
        "from wid_hf.tools import compress, evaluate, export"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_an_argument_under_its_old_name_is_taken_with_a_warning() -> None:
    @renamed_arguments(lifts="reconstruction")
    def calibrate(batches: list[int], *, reconstruction: bool = True) -> tuple[list[int], bool]:
        return batches, reconstruction

    with pytest.warns(
        FutureWarning, match=r"calibrate\(lifts=\.\.\.\) is deprecated .*: use reconstruction="
    ) as warned:
        assert calibrate([1], lifts=False) == ([1], False)
    assert warned[0].filename == __file__
    assert calibrate([1], reconstruction=False) == ([1], False)
