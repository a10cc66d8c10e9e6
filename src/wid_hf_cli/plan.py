"""`wid-hf plan`: what would shrink, and how small it would get."""

from __future__ import annotations

from dataclasses import replace
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
    params: options.Params = None,
    encoder_params: options.EncoderParams = None,
    bytes_on_disk: options.Bytes = None,
    latency_ms: options.LatencyMs = None,
    memory: options.Memory = None,
    batch: options.TargetBatch = 1,
    length: options.TargetLength = 128,
    round_to: options.RoundTo = None,
    verify: Annotated[bool, typer.Option("--verify", help="Prove the coupled dimensions by permutation.")] = False,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Show the coupled dimensions of a teacher and the sizes of the student, given or found for a target."""
    from wid_hf import ConfigError, plan_student
    from wid_hf.budget import propose
    from wid_hf.budget.shapes import words_of
    from wid_hf.hub.model_size import model_size, size_rows
    from wid_hf.planning.empty_student import empty_student
    from wid_hf.tools.plan_table import plan_table
    from wid_hf.tools.teachers import load_teacher

    target = options.target(
        params=params,
        encoder_params=encoder_params,
        bytes=bytes_on_disk,
        latency_ms=latency_ms,
        memory=memory,
        batch=batch,
        length=length,
    )
    sizes_given = (
        hidden_size,
        intermediate_size,
        heads,
        key_value_heads,
        head_dim,
        num_hidden_layers,
        layers,
        overrides,
    )
    if target is not None and any(sizes_given):
        raise ConfigError("Sizes and a target are given. Give the sizes, or the target that they shall be found for.")
    config = None
    if target is None:
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
    if target is not None:
        front = propose(model, target, round_to=round_to)
        guess = front.planned_guess()
        console.print(str(front), markup=False, highlight=False)
        console.print(f"Without a search: {words_of(guess.shape)}", markup=False, highlight=False)
        config = replace(front.space.config(guess.shape), tie_word_embeddings=tie_word_embeddings)
    assert config is not None
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
