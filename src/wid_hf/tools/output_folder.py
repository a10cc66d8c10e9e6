"""The folder that a run writes: refused before the work if it cannot be written, and finished work is never lost.

Takes the path that a user gave. Everything is made in a staging folder beside it (inside it, if it cannot be
renamed); a complete folder is moved to its place in one step. If that fails it stays, and the error says where.
Called by `compress` and the examples.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from ..errors import OutputError, WidWarning
from ..hub.paths import expanded
from .staging import is_staging, let_go, staging_folder, stale_folders

LAST_GOOD = "-last-good"
WORK = "-work"  # checkpoints of a run
COMPLETE = "-complete"  # a complete folder that could not be moved to its place
WRITING, SCRATCH = "writing", "scratch"  # in the staging folder
REPLACED, ARRIVING = ".replaced", ".arriving"  # beside the complete folder there
MARGIN = 1 << 20  # bytes for all files but weights
SHOWN = 100  # letters of a name that is too long
LONGEST_FILE = 80  # bytes of the longest path inside the folder
WhyNotOurs = Callable[[Path, Collection[str]], str | None]


def holds_anything(folder: Path, ignored: Collection[str]) -> str | None:
    """Return why a folder may not be replaced if no program's own files are known."""
    return "exists already and is not empty"


@dataclass(frozen=True)
class Place:
    """The path that a complete folder will be moved to.

    Attributes:
        name: of the folder in staging.
        path: real path.
        overwrite: whether files that this program wrote there may be replaced.
        advice: what a user can do if they may not.
    """

    name: str
    path: Path
    overwrite: bool
    advice: str


class OutputFolder:
    """A folder to be written, with others beside it: the last state of a run that stops early, and its checkpoints.

    Folders of an earlier run that was killed are cleaned up first: complete ones are moved to their places, incomplete
    ones are deleted.

    Args:
        given: the folder as the user spelled it. Links are followed.
        overwrite: replace a folder that holds only what this program wrote.
        why_not_ours: returns in words which files of an existing folder this program did not write, except some names;
            None if it wrote all.
        sources: inputs of the run, by a name for messages; the output may not be, contain or be inside any of them.
        resume: the last state of an earlier run may be replaced, since this run goes on from it.

    Attributes:
        output: the place of the result.
        last_good: the place of the last state.
        work: path of a folder for checkpoints, which this class neither makes nor deletes.

    Raises:
        OutputError: it cannot be written, or other files are there.
    """

    def __init__(
        self,
        given: str | Path,
        *,
        overwrite: bool = False,
        why_not_ours: WhyNotOurs = holds_anything,
        sources: Mapping[str, Iterable[str | Path]] | None = None,
        resume: bool = False,
    ) -> None:
        self.given = given
        self.why_not_ours = why_not_ours
        path = _real_path(given)
        _check_parents(given, path)
        self.inside = path.is_dir() and (_is_mount(path) or not os.access(path.parent, os.W_OK | os.X_OK))
        self.parent = path if self.inside else path.parent  # of the staging folder
        self.key = "" if self.inside else path.name
        last_good = self.parent / (path.name + LAST_GOOD)
        _check_lengths(given, [path, last_good])
        self.output = Place("output", path, overwrite, "Name another folder")
        self.work = _real_path(self.parent / (path.name + WORK))
        advice = "Move it away, or name another output"
        if self.work.is_dir():
            advice = "Pass resume=True to go on from there, move it away, or name another output"
        self.last_good = Place("last-good", _real_path(last_good), overwrite or resume, advice)
        read = [(what, each) for what, paths in (sources or {}).items() for each in paths]
        for path, (what, source) in product((self.output.path, self.last_good.path, self.work), read):
            _check_apart(path, what, Path(expanded(source)))
        self._clean_up()
        for place in (self.output, self.last_good):
            self.check(place)

    def check(self, place: Place) -> None:
        """Refuse a place that is taken by something that may not be replaced.

        Raises:
            OutputError: it is a file, or a folder that holds something.
        """
        path = place.path
        if path.exists() and not path.is_dir():
            raise OutputError(f"The output {path} is a file. {place.advice}.")
        if path.is_dir() and not os.access(path, os.W_OK | os.X_OK):
            raise OutputError(f"The output {path} cannot be written. {place.advice}.")
        if not self._entries(path):
            return
        if foreign := self.why_not_ours(path, self._ignored(path)):
            raise OutputError(f"The output {path} {foreign}. Nothing there will be replaced. {place.advice}.")
        if not place.overwrite:
            what = "the last state of an earlier run" if place is self.last_good else "an earlier result"
            raise OutputError(
                f"The output {path} exists already and holds {what}. {place.advice}, or pass overwrite=True to "
                "replace it."
            )

    def check_space(self, needed: int) -> None:
        """Refuse a disk with fewer free bytes than `needed` for weights.

        Raises:
            OutputError: it has fewer.
        """
        here = next(folder for folder in (self.parent, *self.parent.parents) if folder.exists())
        free = shutil.disk_usage(here).free
        if free < needed + MARGIN:
            raise OutputError(
                f"The disk of {here} has {free:,} bytes left, and the student needs {needed + MARGIN:,}. Free some, or "
                f"name an output on another disk."
            )

    @contextmanager
    def staging(self) -> Iterator[Staging]:
        """Yield a folder to work in; at the end it is deleted, except complete folders that could not be moved."""
        with ExitStack() as stack:
            stack.callback(_remove_empty, _make_parents(self.parent))
            try:
                folder = stack.enter_context(staging_folder(self.parent, self.key))
            except OSError as error:
                raise OutputError(
                    f"The output {self.given} cannot be written: {error}. Name another folder."
                ) from error
            staging = Staging(self, folder)
            stack.callback(staging.rescue)
            yield staging

    def move(self, place: Place, complete: Path) -> None:
        """Move a complete folder to its place, or raise OSError and leave both as they were.

        A folder that can be renamed is replaced as a whole; of one that cannot (the current one, a mount point) the
        entries are exchanged.
        """
        replaced, arriving = (complete.with_name(complete.name + end) for end in (REPLACED, ARRIVING))
        self.check(place)  # it may have been filled meanwhile
        whole = not (place.path.is_dir() and self._stays(place.path))
        filled = bool(self._entries(place.path))
        if filled:
            if whole:
                place.path.rename(replaced)
            else:
                replaced.mkdir()
                self._move_entries(place.path, replaced)
        try:
            if filled and (foreign := self.why_not_ours(replaced, ())):
                raise OutputError(f"it {foreign}")
            if whole:
                if place.path.is_dir():
                    shutil.copymode(place.path, complete)
                complete.rename(place.path)
            else:
                complete.rename(arriving)
                self._move_entries(arriving, place.path)
                arriving.rmdir()
        except BaseException:
            if arriving.is_dir() and not self._entries(place.path):
                arriving.rename(complete)
            if filled:
                self._take_back(replaced, place.path)
            raise

    def discard_last_good(self) -> None:
        """Delete the last state of a run that has gone on to its end, if nothing but that is there."""
        path = self.last_good.path
        if path.is_dir() and self.why_not_ours(path, ()) is None:
            shutil.rmtree(path, ignore_errors=True)

    def set_aside(self, place: Place, complete: Path) -> Path:
        """Give a complete folder that cannot be moved to its place a visible name; return where it is now."""
        names = [place.path.name + COMPLETE, *(f"{place.path.name}{COMPLETE}-{number}" for number in range(2, 100))]
        for path in (self.parent / name for name in names):
            if not os.path.lexists(path):
                try:
                    complete.rename(path)
                except OSError:
                    break
                return path
        let_go(complete.parent)
        return complete

    def _stays(self, folder: Path) -> bool:
        """Return whether a folder cannot be renamed, or should not because a process works in it."""
        here = Path(os.path.realpath(Path.cwd()))
        return _is_mount(folder) or folder in (here, *here.parents) or not os.access(folder.parent, os.W_OK | os.X_OK)

    def _entries(self, folder: Path) -> list[Path]:
        """Return the entries of a folder, without staging folders and a file system's own entries at its root."""
        if not folder.is_dir():
            return []
        ignored = self._ignored(folder)
        return sorted(path for path in folder.iterdir() if path.name not in ignored)

    def _ignored(self, folder: Path) -> set[str]:
        """Return the names in a folder that are neither a user's nor a result."""
        own = {path.name for path in folder.iterdir() if is_staging(path, "")}
        if self.inside and folder == self.output.path:
            own |= {self.last_good.path.name, self.work.name}
        return own | ({"lost+found"} if _is_mount(folder) else set())

    def _move_entries(self, source: Path, target: Path) -> None:
        """Move everything from one folder to another, or raise OSError and move nothing."""
        moved: list[str] = []
        try:
            for entry in self._entries(source):
                if os.path.lexists(target / entry.name):
                    raise OutputError(f"{target} holds {entry.name} already")
                entry.rename(target / entry.name)
                moved.append(entry.name)
        except BaseException:
            for name in moved:
                (target / name).rename(source / name)
            raise

    def _take_back(self, replaced: Path, path: Path) -> None:
        """Move the replaced entries back; those that cannot be moved stay where they are and are not deleted."""
        try:
            if path.is_dir():
                self._move_entries(replaced, path)
                replaced.rmdir()
            else:
                replaced.rename(path)
        except OSError as error:
            let_go(replaced.parent)
            _warn(f"What was in {path} is in {replaced} now and could not be put back: {error}.")

    def _clean_up(self) -> None:
        """Complete or delete what runs that were killed had begun."""
        with stale_folders(self.parent, self.key) as folders:
            for folder in folders:
                try:
                    for place in (self.output, self.last_good):
                        self._finish(place, folder / place.name)
                except OSError as error:
                    _warn(f"{folder} was left by an earlier run, and what it holds cannot be moved: {error}.")
                else:
                    shutil.rmtree(folder, ignore_errors=True)

    def _finish(self, place: Place, complete: Path) -> None:
        """Move the complete folder of a killed run to its place."""
        replaced, arriving = (complete.with_name(complete.name + end) for end in (REPLACED, ARRIVING))
        if arriving.is_dir():
            self._move_entries(arriving, place.path)
            _warn(f"A run that was killed had finished: its result is in {place.path}.")
        elif complete.is_dir():
            if replaced.is_dir():  # killed between taking the old one out and putting the new one in
                self._take_back(replaced, place.path)
            where = place.path
            if self._entries(place.path):
                where = self.set_aside(place, complete)
            else:
                self.move(place, complete)
            _warn(f"A run that was killed had finished: its result is in {where}.")


class Staging:
    """The folder in which a run works.

    Attributes:
        scratch: a folder for temporary files.
    """

    def __init__(self, output: OutputFolder, folder: Path) -> None:
        self.output = output
        self.folder = folder
        self.scratch = folder / SCRATCH

    def complete(self, place: Place, write: Callable[[Path], None]) -> Path:
        """Let `write` fill a folder, and return it; from now on it is never deleted.

        If it cannot be written, for instance because the disk is full, other disks are tried.

        Raises:
            OutputError: it could not be written here. The error says where it is.
        """
        writing, complete = self.folder / WRITING, self.folder / place.name
        try:
            writing.mkdir(parents=True)
            write(writing)
            _flush(writing)
            writing.rename(complete)
        except Exception as cause:  # libraries that write files raise various errors for a full disk
            shutil.rmtree(writing, ignore_errors=True)
            where = _written_elsewhere(place.path.name, write)
            if where is None and not isinstance(cause, OSError):
                raise  # it fails on every disk, so the disk is not the reason
            found = f"It is in {where} instead." if where else "It could not be written elsewhere either."
            raise OutputError(f"The student could not be written to {place.path}: {_reason(cause)}. {found}") from cause
        return complete

    def place(self, place: Place) -> None:
        """Move what is complete to its place.

        Raises:
            OutputError: it cannot be moved there. It is kept, and the error says where.
        """
        complete = self.folder / place.name
        try:
            self.output.move(place, complete)
        except OSError as cause:
            if not complete.is_dir():
                let_go(self.folder)
                raise OutputError(
                    f"The student is complete, but only a part of it could be moved to {place.path}: {_reason(cause)}. "
                    f"The rest is in {complete.with_name(complete.name + ARRIVING)}."
                ) from cause
            where = self.output.set_aside(place, complete)
            raise OutputError(
                f"The student is complete, but it could not take its place at {place.path}: {_reason(cause)}. It is in "
                f"{where}."
            ) from cause

    def rescue(self) -> None:
        """Give complete folders that were not moved, because something else failed, visible names."""
        for place in (self.output.output, self.output.last_good):
            if (self.folder / place.name).is_dir():
                _warn(f"What was complete is in {self.output.set_aside(place, self.folder / place.name)}.")
            elif (self.folder / (place.name + ARRIVING)).is_dir():
                let_go(self.folder)


def write_folder(output: OutputFolder, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder, which is at `output` when it is complete.

    Raises:
        OutputError: it could not be written there. The error says where it is instead.
    """
    with output.staging() as staging:
        staging.complete(output.output, write)
        staging.place(output.output)


def _real_path(given: str | Path) -> Path:
    if not os.fspath(given):
        raise OutputError("The output has no name. Name a folder.")
    path = Path(expanded(given))
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise OutputError(
            f"The output {str(given)!r} is not UTF-8, so that some libraries cannot write to it. Name another."
        ) from error
    if path.parts[:1] and path.parts[0].startswith("~"):
        raise OutputError(f"The output {given}: there is no user {path.parts[0][1:]}. Write ./{given} if it is a name.")
    try:
        for part in (path, *path.parents):
            if part.is_symlink() and not part.exists():
                raise OutputError(
                    f"The output {given} cannot be written: {part} is a link to {part.readlink()}, which does not "
                    "exist. Make that folder, or name another."
                )
        return Path(os.path.realpath(path))
    except (OSError, ValueError) as error:
        if isinstance(error, OutputError):
            raise
        if getattr(error, "errno", None) == errno.ENAMETOOLONG:
            raise _too_long(given) from error
        raise OutputError(f"The output {given} cannot be a folder: {error}. Name another.") from error


def _check_parents(given: str | Path, path: Path) -> None:
    parent = next(folder for folder in path.parents if folder.exists()) if path.parents[:1] else path
    if not parent.is_dir():
        raise OutputError(f"The output {given} cannot be written: {parent} is not a folder. Name another.")
    if not path.is_dir() and not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"The output {given} cannot be written: {parent} is not a writable folder. Name another.")


def _check_lengths(given: str | Path, paths: list[Path]) -> None:
    """Refuse names that are too long for the file system, including `-last-good` and files inside."""
    if not hasattr(os, "pathconf"):
        return
    here = next(folder for folder in (paths[0], *paths[0].parents) if folder.exists())
    name, whole = os.pathconf(here, "PC_NAME_MAX"), os.pathconf(here, "PC_PATH_MAX")
    for path in paths:
        longest = max(len(os.fsencode(part)) for part in path.parts)
        if longest > name or len(os.fsencode(path)) + LONGEST_FILE > whole:
            raise _too_long(given)


def _too_long(given: str | Path) -> OutputError:
    return OutputError(
        f"The output {str(given)[:SHOWN]}... has a name that is too long, `{LAST_GOOD}` after it counted. Legal on "
        "most disks: 255 bytes for a name, 4096 for a path. Name a shorter one."
    )


def _check_apart(output: Path, what: str, source: Path) -> None:
    """Refuse an output that is, contains or is inside an input of the run, however the paths are spelled."""
    if not source.exists():
        return
    real = Path(os.path.realpath(source))
    links = (
        [Path(os.path.realpath(entry)) for entry in source.iterdir() if entry.is_symlink()] if source.is_dir() else []
    )
    ways = {
        "is": _same(output, real),
        "holds": any(_same(output, above) for path in (real, *links) for above in path.parents),
        "lies in": real.is_dir() and any(_same(real, above) for above in output.parents),
    }
    for way, true in ways.items():
        if true:
            raise OutputError(f"The output {output} {way} {what}, {source}. Name a folder apart from it.")


def _same(one: Path, other: Path) -> bool:
    return one == other or (one.exists() and other.exists() and one.samefile(other))


def _is_mount(path: Path) -> bool:
    """Return whether something is mounted at `path`, a folder of the same disk included."""
    if os.path.ismount(path):
        return True
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return False
    return any(line.split()[4].encode().decode("unicode_escape") == str(path) for line in lines)


def _make_parents(parent: Path) -> list[Path]:
    """Make a folder; return those that were not there before, the deepest first."""
    missing = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {parent} cannot be made: {error}. Name another output.") from error
    return missing


def _remove_empty(folders: list[Path]) -> None:
    """Remove the folders that were made for the staging folder, if they are still empty."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _flush(folder: Path) -> None:
    """Flush written files to the disk; some disks report only now that they are full."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                try:
                    os.fsync(file.fileno())
                except OSError as error:
                    if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # the file system does not support this
                        raise


def _written_elsewhere(name: str, write: Callable[[Path], None]) -> Path | None:
    """Let `write` fill a new folder on any disk that works; return None if none does."""
    for parent in (Path(tempfile.gettempdir()), Path.cwd(), Path.home()):
        try:
            folder = Path(tempfile.mkdtemp(prefix=f"{name}{COMPLETE}-", dir=parent))
        except OSError:
            continue
        try:
            write(folder)
            _flush(folder)
        except Exception:  # as above
            shutil.rmtree(folder, ignore_errors=True)
        else:
            return folder
    return None


def _reason(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).rstrip(".")


def _warn(text: str) -> None:
    warnings.warn(text, WidWarning, stacklevel=3)
