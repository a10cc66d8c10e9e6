"""`wid-hf plan`: what would shrink, and how small it would get."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from . import options


def plan(
    teacher: options.Teacher,
    hidden_size: options.HiddenSize = None,
    intermediate_size: options.IntermediateSize = None,
    heads: options.Heads = None,
    key_value_heads: options.KeyValueHeads = None,
    head_dim: options.HeadDim = None,
    head_strategy: options.Strategy = options.HeadStrategy.auto,
    num_hidden_layers: options.HiddenLayers = None,
    layers: options.Layers = None,
    overrides: options.Overrides = None,
    tie_word_embeddings: options.TieWordEmbeddings = None,
    verify: Annotated[bool, typer.Option("--verify", help="Prove the coupled dimensions by permutation.")] = False,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Show the coupled dimensions of a teacher and the sizes of the student."""
    from wid_hf import plan_student
    from wid_hf.hub.model_size import model_size, size_rows
    from wid_hf.planning.empty_student import empty_student
    from wid_hf.tools.plan_table import plan_table
    from wid_hf.tools.teachers import load_teacher

    config = options.wid_config(
        hidden_size,
        intermediate_size,
        heads,
        key_value_heads,
        head_dim,
        head_strategy,
        overrides,
        num_hidden_layers,
        layers,
        tie_word_embeddings=tie_word_embeddings,
    )
    model = load_teacher(teacher, revision=revision, trust_remote_code=trust_remote_code)
    console = Console()
    with console.status("Tracing and planning"):
        planned = plan_student(model, config, proof=verify)
    for stack in planned.stacks:
        console.print(str(stack), markup=False)
    console.print(plan_table(planned.plan))
    for note in planned.plan.notes:
        console.print(note, markup=False)
    sizes = {"teacher": model_size(model), "student": model_size(empty_student(model, planned.config))}
    table = Table("", *sizes, title="Sizes")
    for row in size_rows(sizes, list(sizes)):
        table.add_row(*row)
    console.print(table)
    if verify:
        console.print("Proved by permutation: every coupled dimension above.")
