"""Pushes a student that `wid-hf compress` made to the Hub, with a card that loads it by its new name.

Takes the student's folder and a repository; the token is the one of `hf auth login` or of HF_TOKEN, never an
argument. Called as `python examples/push_student.py bert-12x192 me/bert-12x192`. The repository is private unless
`--public` is given. `wid_report.json` stays here, since it names files of this machine; the card has its figures.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError
from rich.console import Console

from wid_hf.errors import OutputError
from wid_hf.hub.cards import CARD_NAME, student_card
from wid_hf.tools.reports.wid_report import FILE_NAME


def push(
    folder: Path, repository: str, *, private: bool, revision: str | None, commit_message: str, create_pr: bool
) -> str:
    """Upload `folder` in one commit; return its address, or that of the pull request.

    Raises OutputError when the Hub refuses, and WidError when the folder holds no student of `wid-hf compress`.
    """
    path = folder / CARD_NAME
    card = ModelCard.load(path) if path.is_file() else student_card(folder)
    card.text = card.text.replace(f'("{folder.name}")', f'("{repository}")')
    hub = HfApi()
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        if revision is not None:
            hub.create_branch(repository, branch=revision, exist_ok=True)
        with TemporaryDirectory() as named:
            upload = Path(named) / "student"
            shutil.copytree(folder, upload, ignore=shutil.ignore_patterns(FILE_NAME))
            card.save(upload / CARD_NAME)
            commit = hub.upload_folder(
                repo_id=repository,
                folder_path=upload,
                revision=revision,
                commit_message=commit_message,
                create_pr=create_pr,
            )
    except HfHubHTTPError as cause:
        raise OutputError(
            f"The Hub refused to take {folder} as {repository}: {cause.server_message or cause}. Check the name and, "
            "with `hf auth whoami`, that your token may write there."
        ) from cause
    return commit.pr_url or commit.commit_url


def main(
    folder: Annotated[Path, typer.Argument(help="Folder that wid-hf compress wrote.")],
    repository: Annotated[str, typer.Argument(help="Where to, such as me/bert-12x192.")],
    public: Annotated[bool, typer.Option("--public", help="Let everybody see a new repository.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch; made if there is none.")] = None,
    commit_message: Annotated[str, typer.Option(help="What the commit says.")] = "Upload student",
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
) -> None:
    """Push a student to the Hub."""
    if create_pr and revision is not None:
        raise typer.BadParameter("the Hub opens pull requests against the main branch only: leave --revision out")
    console = Console(highlight=False, soft_wrap=True)
    try:
        address = push(
            folder,
            repository,
            private=not public,
            revision=revision,
            commit_message=commit_message,
            create_pr=create_pr,
        )
    except OutputError as refusal:
        console.print(f"[bold red]OutputError[/]: {refusal}")
        raise typer.Exit(1) from None  # a traceback would add nothing
    console.print(f"Pushed: {address}")


if __name__ == "__main__":
    typer.run(main)
