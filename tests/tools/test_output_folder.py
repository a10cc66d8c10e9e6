"""What cannot end well is refused before work, and what is complete is never lost, whatever fails."""

from __future__ import annotations

import errno
import os
import signal
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from types import SimpleNamespace

import pytest
from forked import forked

from wid_hf.errors import OutputError, WidWarning
from wid_hf.tools.output_folder import OutputFolder, write_folder

MARK = "ours.txt"


def ours(folder: Path, ignored: Collection[str] = ()) -> str | None:
    """A folder is ours if it holds nothing but two known files."""
    others = sorted({path.name for path in folder.iterdir()} - {MARK, "weights", *ignored})
    if not (folder / MARK).exists() or others:
        return f"holds strangers ({', '.join(others)})"
    return None


def output(path: Path | str, **more: object) -> OutputFolder:
    return OutputFolder(path, why_not_ours=ours, **more)  # type: ignore[arg-type]


def writing(content: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "weights").write_text(content)
        (folder / MARK).touch()

    return write


def tree(folder: Path) -> dict[str, str]:
    """Return all files below a folder, hidden ones too."""
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


# Before work.
def test_a_link_to_a_folder_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "out").symlink_to("scratch")
    write_folder(output(tmp_path / "out"), writing("new"))
    assert (tmp_path / "out").is_symlink()
    assert tree(tmp_path) == {"scratch/weights": "new", f"scratch/{MARK}": ""}
    write_folder(output(tmp_path / "out", overwrite=True), writing("newer"))
    assert (tmp_path / "out").is_symlink() and (tmp_path / "scratch" / "weights").read_text() == "newer"


def test_the_current_folder_is_filled_and_stays_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    inode = here.stat().st_ino
    write_folder(output("."), writing("new"))
    assert tree(tmp_path) == {"here/weights": "new", f"here/{MARK}": ""}
    write_folder(output(".", overwrite=True), writing("newer"))
    assert tree(tmp_path) == {"here/weights": "newer", f"here/{MARK}": ""}
    assert here.stat().st_ino == inode and Path.cwd().samefile(here)


def test_a_folder_in_which_a_shell_sits_deeper_keeps_being_that_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Path, "cwd", lambda: tmp_path / "out")
    inode = (tmp_path / "out").stat().st_ino
    write_folder(output(tmp_path / "out"), writing("new"))
    assert (tmp_path / "out").stat().st_ino == inode


def test_a_mount_point_is_worked_in_from_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = tmp_path / "mount"
    (mount / "lost+found").mkdir(parents=True)
    monkeypatch.setattr("os.path.ismount", lambda path: Path(path) == mount)
    inode = mount.stat().st_ino
    for content in ("new", "newer"):
        folder = output(mount, overwrite=True)
        with folder.staging() as staging:
            assert staging.folder.parent == mount
            staging.complete(folder.output, writing(content))
            staging.place(folder.output)
        assert tree(tmp_path) == {"mount/weights": content, f"mount/{MARK}": ""}
    assert mount.stat().st_ino == inode and folder.last_good.path == mount / "mount-last-good"


@pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="no list of mounts here")
def test_a_folder_of_the_same_disk_that_is_mounted_counts_as_a_mount_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out put"
    out.mkdir()
    lines = f"1 2 0:3 / {str(out).replace(' ', chr(92) + '040')} rw - ext4 /dev/x rw\n"
    read = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda self, **how: lines if str(self) == "/proc/self/mountinfo" else read(self, **how)
    )
    assert output(out).inside


@pytest.mark.parametrize(
    ("make", "spelled", "words"),
    [
        (lambda d: (d / "out").write_text("mine"), "out", "is a file"),
        (lambda d: (d / "out").symlink_to("nowhere"), "out", "is a link to nowhere, which does not exist"),
        (lambda d: (d / "out").symlink_to("out"), "out", "is a link to out, which does not exist"),
        (lambda d: (d / "off").symlink_to("unmounted"), "off/out", "off is a link to unmounted"),
        (lambda d: (d / "file").write_text("mine"), "file/out", "file is not a folder"),
        (lambda d: None, "n" * 256, "a name that is too long"),
        (lambda d: None, "n" * 250, "`-last-good` after it counted"),
        (lambda d: None, "/".join(["n" * 100] * 41), "a name that is too long"),
        (lambda d: None, "a\0b", "cannot be a folder"),
        (lambda d: (d / "out").mkdir() or (d / "out" / "mine").write_text("mine"), "out", r"strangers \(mine\)"),
        (lambda d: (d / "out").mkdir() or (d / "out" / ".git").mkdir(), "out", r"strangers \(\.git\)"),
        (
            lambda d: (d / "out-last-good").mkdir() or (d / "out-last-good" / "mine").write_text("mine"),
            "out",
            r"out-last-good holds strangers.*Move it away",
        ),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_cannot_be_written_is_refused_and_left_as_it_is(
    tmp_path: Path, make: Callable[[Path], object], spelled: str, words: str, overwrite: bool
) -> None:
    make(tmp_path)
    before = tree(tmp_path)
    with pytest.raises(OutputError, match=words):
        output(f"{tmp_path}/{spelled}", overwrite=overwrite)
    assert tree(tmp_path) == before


def test_an_empty_name_and_an_unknown_home_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="has no name"):
        output("")
    with pytest.raises(OutputError, match="there is no user no-such-user"):
        output("~no-such-user/out")


def test_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert output("~/out").output.path == tmp_path / "out"


@pytest.mark.parametrize("name", ["out", "out-last-good"])
def test_our_own_folder_is_replaced_only_when_asked(tmp_path: Path, name: str) -> None:
    write_folder(output(tmp_path / name), writing("old"))
    with pytest.raises(OutputError, match=rf"{name} exists already and holds .*overwrite=True"):
        output(tmp_path / "out")
    output(tmp_path / "out", overwrite=True)
    assert (tmp_path / name / "weights").read_text() == "old"


@pytest.mark.parametrize(
    "spelled", ["teacher", "./teacher/", "x/../teacher", "link", "teacher/inside", "", "link/inside"]
)
def test_an_output_that_is_holds_or_lies_in_what_is_read_is_refused(tmp_path: Path, spelled: str) -> None:
    (tmp_path / "teacher").mkdir()
    (tmp_path / "x").mkdir()
    (tmp_path / "link").symlink_to("teacher")
    write_folder(output(tmp_path / "ours"), writing("teacher"))
    for path in (tmp_path / "ours").iterdir():
        path.rename(tmp_path / "teacher" / path.name)
    (tmp_path / "ours").rmdir()
    with pytest.raises(OutputError, match=r"(is|holds|lies in) the teacher"):
        output(f"{tmp_path}/{spelled}", overwrite=True, sources={"the teacher": [tmp_path / "teacher"]})
    assert (tmp_path / "teacher" / "weights").read_text() == "teacher"


def test_a_teacher_whose_weights_are_links_into_the_output_is_safe(tmp_path: Path) -> None:
    write_folder(output(tmp_path / "out"), writing("weights"))
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "weights").symlink_to("../out/weights")
    with pytest.raises(OutputError, match="holds the teacher"):
        output(tmp_path / "out", overwrite=True, sources={"the teacher": [tmp_path / "teacher"]})


def test_beside_the_file_of_texts_an_output_may_lie_but_not_hold_it(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "texts.txt").write_text("one")
    sources = {"the training texts": [tmp_path / "data" / "texts.txt"]}
    output(tmp_path / "data" / "out", sources=sources)
    with pytest.raises(OutputError, match="holds the training texts"):
        output(tmp_path / "data", sources=sources)
    with pytest.raises(OutputError, match="is the training texts"):
        output(tmp_path / "data" / "texts.txt", sources=sources)


def test_a_disk_without_room_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=5 << 20))
    output(tmp_path / "out").check_space(4 << 20)
    with pytest.raises(OutputError, match=r"has 5,242,880 bytes left, and the student needs 5,242,881"):
        output(tmp_path / "out").check_space((4 << 20) + 1)


def test_parents_are_made_and_vanish_again_if_nothing_comes_of_it(tmp_path: Path) -> None:
    with pytest.raises(KeyError), output(tmp_path / "a" / "b" / "out").staging():
        raise KeyError("work failed")
    assert list(tmp_path.iterdir()) == []
    write_folder(output(tmp_path / "a" / "b" / "out"), writing("new"))
    assert (tmp_path / "a" / "b" / "out" / "weights").read_text() == "new"


# After work.
def failing(function: Callable[..., object], fails: Callable[..., bool], number: int) -> Callable[..., object]:
    def call(*args: object, **how: object) -> object:
        if fails(*args):
            raise OSError(number, os.strerror(number))
        return function(*args, **how)

    return call


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EBUSY, errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("old", [None, "old"])
def test_a_last_rename_that_fails_leaves_the_student_beside_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, old: str | None
) -> None:
    if old:
        write_folder(output(tmp_path / "out"), writing(old))
    folder = output(tmp_path / "out", overwrite=True)
    with monkeypatch.context() as patch:
        patch.setattr(
            Path,
            "rename",
            failing(Path.rename, lambda a, b: b == tmp_path / "out" and "replaced" not in str(a), number),
        )
        with pytest.raises(OutputError, match=r"could not take its place at .*/out: .* It is in .*/out-complete\."):
            write_folder(folder, writing("new"))
    kept = {"out-complete/weights": "new", f"out-complete/{MARK}": ""}
    assert tree(tmp_path) == kept | ({"out/weights": "old", f"out/{MARK}": ""} if old else {})


def test_if_nothing_can_be_renamed_at_all_the_student_stays_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(output(tmp_path / "out"), writing("old"))
    folder = output(tmp_path / "out", overwrite=True)
    with (
        pytest.warns(WidWarning, match="What was complete is in"),
        pytest.raises(OutputError, match=r"It is in") as told,
        monkeypatch.context() as patch,
        folder.staging() as staging,
    ):
        complete = staging.complete(folder.output, writing("new"))
        patch.setattr(Path, "rename", failing(Path.rename, lambda *_: True, errno.EIO))
        staging.place(folder.output)
    assert (complete / "weights").read_text() == "new" and str(complete) in str(told.value)
    assert (tmp_path / "out" / "weights").read_text() == "old"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_filled_meanwhile_is_left_alone(tmp_path: Path, overwrite: bool) -> None:
    folder = output(tmp_path / "out", overwrite=overwrite)
    with folder.staging() as staging:
        staging.complete(folder.output, writing("new"))
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("mine")
        with pytest.raises(OutputError, match=r"holds strangers \(mine\).* It is in .*/out-complete"):
            staging.place(folder.output)
    assert tree(tmp_path) == {"out/mine": "mine", "out-complete/weights": "new", f"out-complete/{MARK}": ""}


def test_what_is_added_to_an_old_folder_at_the_last_moment_is_not_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(output(tmp_path / "out"), writing("old"))
    folder = output(tmp_path / "out", overwrite=True)
    check = OutputFolder.check

    def check_then_add(self: OutputFolder, place: object) -> None:
        check(self, place)  # type: ignore[arg-type]
        (tmp_path / "out" / "mine").write_text("mine")

    monkeypatch.setattr(OutputFolder, "check", check_then_add)
    with pytest.raises(OutputError, match=r"It is in .*/out-complete"):
        write_folder(folder, writing("new"))
    assert tree(tmp_path) == {
        "out/weights": "old",
        f"out/{MARK}": "",
        "out/mine": "mine",
        "out-complete/weights": "new",
        f"out-complete/{MARK}": "",
    }


@pytest.mark.parametrize("entry", ["weights", MARK])
def test_entries_that_cannot_all_be_moved_into_the_current_folder_go_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_folder(output("."), writing("old"))
    folder = output(".", overwrite=True)
    with monkeypatch.context() as patch:
        patch.setattr(
            Path,
            "rename",
            failing(Path.rename, lambda a, b: str(a).endswith(f"arriving/{entry}"), errno.ENOSPC),
        )
        with pytest.raises(OutputError, match=r"It is in .*/here-complete"):
            write_folder(folder, writing("new"))
    assert tree(tmp_path) == {
        "here/weights": "old",
        f"here/{MARK}": "",
        "here-complete/weights": "new",
        f"here-complete/{MARK}": "",
    }


def test_a_full_disk_has_the_student_written_to_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))

    def write(folder: Path) -> None:
        if "temporary" not in str(folder):
            (folder / "half").write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        writing("new")(folder)

    with pytest.raises(OutputError, match=r"could not be written to .*No space left.* It is in .*/out-complete-"):
        write_folder(output(tmp_path / "disk" / "out"), write)
    assert sorted(tree(tmp_path).values()) == ["", "new"]
    assert [path.name for path in tmp_path.iterdir()] == ["temporary"]


def test_what_is_complete_survives_any_error_after_it(tmp_path: Path) -> None:
    folder = output(tmp_path / "out")
    with pytest.warns(WidWarning, match="What was complete is in .*/out-complete"), pytest.raises(RuntimeError):  # noqa: SIM117
        with folder.staging() as staging:
            staging.complete(folder.output, writing("new"))
            raise RuntimeError("the card")
    assert tree(tmp_path) == {"out-complete/weights": "new", f"out-complete/{MARK}": ""}


# After a kill.
def killed(path: Path, place: str, after: int, cwd: Path) -> None:
    """Write to a place in a process that is killed at one of its renames, or when it is done."""

    def work() -> None:
        count, rename = 0, Path.rename

        def stopping(self: Path, to: Path) -> Path:
            nonlocal count
            count += 1
            if count > after:
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(self, to)

        os.chdir(cwd)
        folder = output(path, overwrite=True)
        with folder.staging() as staging:
            Path.rename = stopping  # type: ignore[method-assign, assignment]
            staging.complete(getattr(folder, place), writing("new"))
            staging.place(getattr(folder, place))
            os.kill(os.getpid(), signal.SIGKILL)

    assert forked(work) == -signal.SIGKILL


@pytest.mark.parametrize("after", range(9))
@pytest.mark.parametrize("old", [None, "old"])
@pytest.mark.parametrize("here", [False, True])
def test_a_kill_at_any_rename_loses_nothing_and_the_next_run_clears_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, old: str | None, here: bool
) -> None:
    out = tmp_path / "out"
    if old:
        write_folder(output(out), writing(old))
    elif here:
        out.mkdir()
    killed(out, "output", after, out if here else tmp_path)
    monkeypatch.chdir(out if here else tmp_path)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        output(out, overwrite=True)
    assert all("its result is in" in str(each.message) for each in told)
    found = tree(tmp_path)
    assert not [name for name in found if "/." in name or name.startswith(".")]
    whole = {name.rpartition("/")[0]: content for name, content in found.items() if name.endswith("weights")}
    assert all(f"{folder}/{MARK}" in found for folder in whole)
    if after == 0:  # killed before the new one was complete
        assert whole == ({"out": "old"} if old else {})
    else:
        assert "new" in whole.values()
        assert not old or "old" in whole.values() or whole.get("out") == "new"


def test_a_last_state_of_a_killed_run_gets_its_own_place(tmp_path: Path) -> None:
    killed(tmp_path / "out", "last_good", 1, tmp_path)
    with (
        pytest.warns(WidWarning, match="its result is in .*/out-last-good"),
        pytest.raises(OutputError, match="last state"),
    ):
        output(tmp_path / "out")
    assert tree(tmp_path) == {"out-last-good/weights": "new", f"out-last-good/{MARK}": ""}
