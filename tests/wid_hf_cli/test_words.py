"""Messages of the library in the words of the command line."""

from __future__ import annotations

import typer

from wid_hf_cli import app as program
from wid_hf_cli.words import as_options


def test_messages_of_the_library_name_options_on_the_command_line() -> None:
    told = {
        "Pass overwrite=True to replace it.": "Pass --overwrite to replace it.",
        "hidden_size=30 does not fit": "--hidden-size 30 does not fit",
        'try head_strategy="head", which': "try --head-strategy head, which",
        "num_key_value_heads=2.": "--num-key-value-heads 2.",
        "trust_remote_code=True, and name the revision= that": "--trust-remote-code, and name the --revision that",
        "Name another with folder=, or": "Name another with --data, or",
        "compactor_learning_rate=1e-4.": "--compactor-learning-rate 1e-4.",
        "distillation=logits,hidden adds": "--distillation logits,hidden adds",
        "distillation=['magic', 'hidden'] is unknown": "--distillation magic,hidden is unknown",
        "pass example_inputs= or a=1": "pass example_inputs= or a=1",
        "https://x.org/?output=3": "https://x.org/?output=3",
    }
    commands = typer.main.get_command(program.app)
    assert {text: as_options(text, commands) for text in told} == told
