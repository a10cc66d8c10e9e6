"""Rules on tiny modules: which axes of which weights each operation makes one dimension, or freezes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wid_hf.coupling import Trace, covered_operations, op_registry, rule, trace, verify
from wid_hf.coupling.dims import NO_RULE, Reason, describe, find, leaves
from wid_hf.coupling.plan import key

WIDTH, TOKENS = 12, 5


class Model(nn.Module):
    """A module with named weights and a forward given as a function of it and `x (3, 5, 12)`."""

    def __init__(self, forward: Callable[..., Tensor], **weights: tuple[int, ...] | nn.Module) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, weight in weights.items():
            if isinstance(weight, nn.Module):
                self.add_module(name, weight)
            else:
                self.register_parameter(name, nn.Parameter(torch.randn(weight, generator=generator)))
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def traced(forward: Callable[..., Tensor], prove: bool = True, **weights: tuple[int, ...] | nn.Module) -> Trace:
    """Trace the model; also prove by permutation that what the rules left free is free."""
    model = Model(forward, **weights)
    inputs = {"x": torch.randn(3, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))}
    seen = trace(model, inputs)
    if prove:
        verify(model, seen)
    return seen


def same(seen: Trace, *places: tuple[str, int]) -> bool:
    return len({key(seen.weight_dims[name][axis]) for name, axis in places}) == 1


def reason(seen: Trace, name: str, axis: int) -> Reason | None:
    """The reason why an axis is frozen, all of its leaves for the same one; None where it is free."""
    (why,) = {leaf.frozen for leaf in leaves(seen.weight_dims[name][axis])}
    return why


def free(seen: Trace, name: str, axis: int) -> bool:
    return not any(leaf.frozen for leaf in leaves(seen.weight_dims[name][axis]))


def structure(seen: Trace, name: str, axis: int) -> str:
    return describe(seen.weight_dims[name][axis])


def test_linear_layers_in_a_row_share_the_dimension_between_them() -> None:
    seen = traced(lambda m, x: m.down(m.up(x)), up=nn.Linear(WIDTH, 20), down=nn.Linear(20, 8, bias=False))
    assert same(seen, ("up.weight", 0), ("up.bias", 0), ("down.weight", 1))
    assert free(seen, "up.weight", 0)
    assert free(seen, "down.weight", 0)


def test_a_linear_layer_freezes_the_width_of_the_inputs_data() -> None:
    seen = traced(lambda m, x: m.up(x), up=nn.Linear(WIDTH, 20))
    assert reason(seen, "up.weight", 1).text == "meets an input or a constant"


def test_a_residual_stream_is_one_dimension_for_readers_and_writers() -> None:
    seen = traced(
        lambda m, x: (h := m.enter(x)) + m.down(m.up(h)),
        enter=nn.Linear(WIDTH, 16),
        up=nn.Linear(16, 20),
        down=nn.Linear(20, 16),
    )
    assert same(seen, ("enter.weight", 0), ("up.weight", 1), ("down.weight", 0), ("down.bias", 0))


def test_a_fused_projection_split_in_three_is_a_concatenation_of_three() -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        q, k, v = torch.addmm(m.bias, x.reshape(-1, WIDTH), m.fused).split(16, dim=-1)
        return (q * k) @ m.out + v @ m.other

    seen = traced(forward, fused=(WIDTH, 48), bias=(48,), out=(16, 6), other=(16, 6))
    assert structure(seen, "fused", 1) == "16 + 16 + 16"
    assert same(seen, ("fused", 1), ("bias", 0))
    q, k, v = leaves(seen.weight_dims["fused"][1])
    assert q is k is find(seen.weight_dims["out"][0])
    assert v is find(seen.weight_dims["other"][0]) is not q


def test_the_halves_of_a_gated_unit_shrink_together() -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        gate, value = m.fused(x).chunk(2, dim=-1)
        return m.down(F.gelu(gate) * value)

    seen = traced(forward, fused=nn.Linear(WIDTH, 32), down=nn.Linear(16, 6))
    gate, value = leaves(seen.weight_dims["fused.weight"][0])
    assert gate is value is find(seen.weight_dims["down.weight"][1])
    assert gate.frozen is None


def test_rotating_halves_by_a_constant_table_freezes_the_head_width_but_not_the_heads() -> None:
    table = torch.arange(TOKENS * 8.0).view(TOKENS, 8).cos()

    def forward(m: Model, x: Tensor) -> Tensor:
        q = m.q(x).view(3, TOKENS, 4, 8).transpose(1, 2)
        rotated = torch.cat([-q[..., 4:], q[..., :4]], dim=-1)
        return m.out((q * table + rotated * table).transpose(1, 2).reshape(3, TOKENS, 32))

    seen = traced(forward, q=nn.Linear(WIDTH, 32), out=nn.Linear(32, 6))
    heads, *width = leaves(seen.weight_dims["q.weight"][0])
    assert heads.size == 4 and heads.frozen is None
    assert sum(half.size for half in width) == 8
    assert {half.frozen.text for half in width} == {"meets an input or a constant"}


def test_rotating_halves_by_a_number_makes_the_halves_one_dimension() -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        q = m.q(x)
        return m.out(q * 0.8 + torch.cat([-q[..., 8:], q[..., :8]], dim=-1) * 0.6)

    seen = traced(forward, q=nn.Linear(WIDTH, 16), out=nn.Linear(16, 6))
    first, second = leaves(seen.weight_dims["q.weight"][0])
    assert first is second and first.frozen is None


def test_an_embedding_freezes_its_rows_and_leaves_its_width_free() -> None:
    seen = traced(lambda m, x: m.out(F.embedding(x[..., 0].long().abs(), m.table)), table=(9, 16), out=nn.Linear(16, 6))
    assert reason(seen, "table", 0).text == "is looked up by number"
    assert same(seen, ("table", 1), ("out.weight", 1)) and free(seen, "table", 1)


def test_summed_lookups_are_remembered_as_tables_of_one_space() -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        rows = x[..., 0].long().abs()
        return m.out(F.embedding(rows, m.words) + F.embedding(rows, m.kinds) + F.embedding(rows, m.places))

    seen = traced(forward, words=(9, 16), kinds=(9, 16), places=(9, 16), out=nn.Linear(16, 6))
    assert seen.tables == [{"words", "kinds", "places"}]


def test_an_unknown_operation_freezes_its_inputs_and_is_named() -> None:
    seen = traced(lambda m, x: m.out(torch.fft.fft(m.up(x)).real), up=nn.Linear(WIDTH, 20), out=nn.Linear(20, 6))
    for place in (("up.weight", 0), ("up.bias", 0), ("out.weight", 1)):
        assert reason(seen, *place) == Reason("", "aten._fft_r2c.default", NO_RULE)
    assert free(seen, "out.weight", 0)


@pytest.mark.parametrize(
    "function",
    [
        torch.special.bessel_j0,  # tagged as pointwise by torch, and nowhere named here
        lambda x: x.sin().acos(),
        lambda x: torch.frexp(x).mantissa,  # two results
        lambda x: torch.add(x, 1.0, out=torch.empty_like(x)),
        lambda x: torch.float_power(2.0, x).float(),
        lambda x: torch.xlogy(2.0, x.abs()),
        lambda x: x.clone().copysign_(x),  # the tag stands at `copysign` only
    ],
)
def test_what_torch_tags_as_pointwise_keeps_dimensions(function: Callable[[Tensor], Tensor]) -> None:
    seen = traced(lambda m, x: m.out(function(m.up(x))), up=nn.Linear(WIDTH, 20), out=nn.Linear(20, 6))
    assert same(seen, ("up.weight", 0), ("up.bias", 0), ("out.weight", 1)) and free(seen, "up.weight", 0)


def test_a_pointwise_operation_of_two_tensors_makes_them_one_dimension() -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        return m.out(torch.hypot(m.up(x), m.gain))

    seen = traced(forward, up=nn.Linear(WIDTH, 20), gain=(20,), out=nn.Linear(20, 6))
    assert same(seen, ("up.weight", 0), ("gain", 0), ("out.weight", 1)) and free(seen, "gain", 0)


def test_an_operation_that_draws_random_numbers_is_no_pointwise_one() -> None:
    seen = traced(
        lambda m, x: m.out(torch.rrelu(m.up(x), training=True)),
        prove=False,
        up=nn.Linear(WIDTH, 20),
        out=nn.Linear(20, 6),
    )
    assert not free(seen, "up.weight", 0)


def test_an_operation_without_a_rule_is_followed_through_its_decomposition() -> None:
    """`addmv`, `std_mean` and `trace` have no rule; torch says what they are made of."""

    def forward(m: Model, x: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(m.up(x), dim=1)
        return torch.addmv(m.bias, m.out, (deviation + mean).sum(0))

    seen = traced(forward, up=nn.Linear(WIDTH, 20), out=(6, 20), bias=(6,))
    assert same(seen, ("up.weight", 0), ("out", 1)) and free(seen, "out", 1)
    assert same(seen, ("bias", 0), ("out", 0)) and free(seen, "out", 0)


def test_a_decomposition_that_meets_what_has_no_rule_freezes_as_before() -> None:
    seen = traced(lambda m, x: torch.fft.fftshift(torch.fft.fft(m.up(x))).real, up=nn.Linear(WIDTH, 20))
    assert not free(seen, "up.weight", 0)


def test_a_name_that_the_installed_torch_does_not_have_is_passed_over() -> None:
    before = covered_operations()
    rule("aten.operation_of_the_future.default", "future.operation.default")(lambda *args: None)
    assert covered_operations() == before


def test_every_operation_that_has_a_rule_exists_in_the_torch_that_is_tested() -> None:
    """A misspelt name would be passed over in silence."""
    rules = Path(op_registry.__file__).parent / "ops"
    named = {name for file in rules.glob("*.py") for name in re.findall(r'"(aten\.\w+\.\w+)"', file.read_text("utf-8"))}
    assert sorted(named - set(covered_operations())) == []
    assert len(named) > 150


@pytest.mark.parametrize("written", [lambda x: x.tanh_(), lambda x: x.add_(1.0), lambda x: x.mul_(x.exp())])
def test_what_is_written_into_no_longer_scales_with_the_weights_that_made_it(
    written: Callable[[Tensor], Tensor],
) -> None:
    """A student's other number behind `tanh_` is folded into no weight: that would scale what is inside of it."""

    def forward(m: Model, x: Tensor) -> Tensor:
        return m.out(written(m.up(x)) * 0.25)

    seen = traced(forward, up=nn.Linear(WIDTH, 20), out=nn.Linear(20, 6))
    (scaling,) = [step for steps in seen.steps.values() for step in steps if step.factor == 0.25]
    assert scaling.carrier is None


def test_what_is_scaled_in_place_still_carries_its_weights() -> None:
    seen = traced(lambda m, x: m.out(m.up(x).mul_(0.5) * 0.25), up=nn.Linear(WIDTH, 20), out=nn.Linear(20, 6))
    carriers = [s.carrier for steps in seen.steps.values() for s in steps if s.factor in (0.5, 0.25)]
    assert [carrier and carrier.parameter for carrier in carriers] == ["up.weight", "up.weight"]


def test_a_rule_that_cannot_follow_freezes_its_inputs() -> None:
    seen = traced(
        lambda m, x: m.up(x).as_strided((3, TOKENS - 1, 20), (TOKENS * 20, 20, 1), 20), up=nn.Linear(WIDTH, 20)
    )
    assert reason(seen, "up.weight", 0).text == "has a structure the rule cannot follow"


def test_a_convolution_contracts_channels_and_freezes_its_kernel() -> None:
    seen = traced(
        lambda m, x: m.second(m.first(x.transpose(1, 2))),
        first=nn.Conv1d(WIDTH, 16, 3, padding=1),
        second=nn.Conv1d(16, 6, 1),
    )
    assert same(seen, ("first.weight", 0), ("first.bias", 0), ("second.weight", 1))
    assert reason(seen, "first.weight", 2).text == "is a position inside a convolution kernel"


def test_a_depthwise_convolution_keeps_in_and_out_one_dimension() -> None:
    seen = traced(
        lambda m, x: m.out(m.deep(m.up(x).transpose(1, 2)).transpose(1, 2)),
        up=nn.Linear(WIDTH, 16),
        deep=nn.Conv1d(16, 16, 3, padding=1, groups=16),
        out=nn.Linear(16, 6),
    )
    assert same(seen, ("up.weight", 0), ("deep.weight", 0), ("deep.bias", 0), ("out.weight", 1))
    assert free(seen, "up.weight", 0)


def test_a_convolution_that_walks_along_a_width_freezes_that_width() -> None:
    seen = traced(lambda m, x: F.conv1d(m.up(x), m.kernel, padding=1), up=nn.Linear(WIDTH, 16), kernel=(4, TOKENS, 3))
    assert reason(seen, "up.weight", 0).text == "is a position in space"


@pytest.mark.parametrize("norm", [nn.LayerNorm(16), nn.RMSNorm(16)])
def test_normalisation_shares_the_width_that_it_normalises(norm: nn.Module) -> None:
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_()
    seen = traced(lambda m, x: m.out(m.norm(m.up(x))), up=nn.Linear(WIDTH, 16), norm=norm, out=nn.Linear(16, 6))
    names = [("norm.bias", 0)] if isinstance(norm, nn.LayerNorm) else []
    assert same(seen, ("up.weight", 0), ("norm.weight", 0), ("out.weight", 1), *names)
    assert free(seen, "up.weight", 0)


def test_repeating_keys_for_grouped_queries_makes_query_heads_a_product() -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        q = m.q(x).view(3, TOKENS, 4, 8).transpose(1, 2)
        k = m.k(x).view(3, TOKENS, 2, 8).transpose(1, 2)
        k = k[:, :, None].expand(3, 2, 2, TOKENS, 8).reshape(3, 4, TOKENS, 8)
        return (q @ k.transpose(2, 3)).sum(1)

    seen = traced(forward, q=nn.Linear(WIDTH, 32), k=nn.Linear(WIDTH, 16))
    assert structure(seen, "q.weight", 0) == "2 x 2 x 8"
    assert structure(seen, "k.weight", 0) == "2 x 8"
    q, k = list(leaves(seen.weight_dims["q.weight"][0])), list(leaves(seen.weight_dims["k.weight"][0]))
    assert (q[0], q[2]) == tuple(k)
    assert free(seen, "q.weight", 0)


def test_taking_one_index_freezes_the_dimension_and_says_which() -> None:
    seen = traced(lambda m, x: m.up(x)[..., 3], up=nn.Linear(WIDTH, 20))
    assert reason(seen, "up.weight", 0).text == "is indexed at 3"


@pytest.mark.parametrize(
    "read",
    [
        pytest.param(lambda h: h[..., ::2], id="stride"),
        pytest.param(lambda h: h.cumsum(-1), id="cumsum"),
        pytest.param(lambda h: h.roll(1, dims=-1), id="roll"),
        pytest.param(lambda h: h.roll((1, 2), dims=(1, 2)), id="roll of two"),
        pytest.param(lambda h: h.roll(1), id="roll of all"),
        pytest.param(lambda h: h.flip(-1), id="flip"),
        pytest.param(lambda h: h.argmax(-1), id="argmax"),
        pytest.param(lambda h: h.max(-1).indices, id="max"),
        pytest.param(lambda h: h.sort(-1).indices, id="sort"),
        pytest.param(lambda h: h.topk(3).indices, id="topk"),
        pytest.param(lambda h: h.index_select(-1, torch.tensor([1, 0])), id="index_select"),
        pytest.param(lambda h: h[..., torch.tensor([1, 0])], id="index"),
        pytest.param(lambda h: h.gather(2, torch.zeros(3, TOKENS, 2, dtype=torch.long)), id="gather"),
        pytest.param(lambda h: h.tril(), id="tril"),
    ],
)
def test_reading_indices_by_number_freezes_the_dimension(read: Callable[[Tensor], Tensor]) -> None:
    seen = traced(lambda m, x: read(m.up(x)), up=nn.Linear(WIDTH, 20))
    assert not free(seen, "up.weight", 0)


def test_sorting_a_middle_dimension_freezes_that_one() -> None:
    seen = traced(lambda m, x: m.up(x).transpose(1, 2).sort(dim=1).values, up=nn.Linear(WIDTH, 20))
    assert reason(seen, "up.weight", 0).text == "is ranked, and the ranks are numbers"


@pytest.mark.parametrize(
    "read",
    [
        pytest.param(lambda h: h.mean(-1), id="mean"),
        pytest.param(lambda h: h.amax(-1), id="amax"),
        pytest.param(lambda h: h.var(-1), id="var"),
        pytest.param(lambda h: F.normalize(h, dim=-1).sum(-1), id="normalize"),
        pytest.param(lambda h: h.softmax(-1).square().sum(-1), id="softmax"),
        pytest.param(lambda h: h.flip(1).sum(-1), id="flip of another"),
        pytest.param(lambda h: h.roll(1, dims=1).sum(-1), id="roll of another"),
        pytest.param(lambda h: h.index_select(-2, torch.tensor([1, 0])).sum(-1), id="select of another"),
    ],
)
def test_what_treats_all_indices_alike_leaves_the_dimension_free(read: Callable[[Tensor], Tensor]) -> None:
    seen = traced(lambda m, x: read(m.up(x)), up=nn.Linear(WIDTH, 20))
    assert free(seen, "up.weight", 0)


@pytest.mark.parametrize(
    "fill",
    [
        pytest.param(lambda h: torch.full(h.shape, 2.0), id="full"),
        pytest.param(lambda h: torch.zeros(h.shape), id="zeros"),
        pytest.param(lambda h: h.new_ones(h.shape), id="new_ones"),
        pytest.param(torch.ones_like, id="ones_like"),
    ],
)
def test_a_tensor_of_one_value_does_not_freeze_what_it_meets(fill: Callable[[Tensor], Tensor]) -> None:
    seen = traced(lambda m, x: (h := m.up(x)) + fill(h), up=nn.Linear(WIDTH, 20))
    assert free(seen, "up.weight", 0)


def test_a_tensor_that_counts_freezes_what_it_meets() -> None:
    seen = traced(lambda m, x: m.up(x) + torch.arange(20), up=nn.Linear(WIDTH, 20))
    assert reason(seen, "up.weight", 0).text == "counts positions"


def test_a_buffer_freezes_what_it_meets_and_is_named() -> None:
    model = Model(lambda m, x: m.up(x) * m.table, up=nn.Linear(WIDTH, 20))
    model.register_buffer("table", torch.rand(20), persistent=False)
    seen = trace(model, {"x": torch.randn(3, TOKENS, WIDTH)})
    assert reason(seen, "up.weight", 0).text == "meets buffer `table`"


def test_copying_in_place_into_slices_couples_each_slice_with_its_source() -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        both = torch.zeros(3, TOKENS, 28)
        both[..., :20] = m.first(x)
        both[..., 20:] = m.second(x)
        return m.out(both)

    seen = traced(forward, first=nn.Linear(WIDTH, 20), second=nn.Linear(WIDTH, 8), out=nn.Linear(28, 6))
    assert structure(seen, "out.weight", 1) == "20 + 8"
    first, second = leaves(seen.weight_dims["out.weight"][1])
    assert first is find(seen.weight_dims["first.weight"][0])
    assert second is find(seen.weight_dims["second.weight"][0])
    assert first.frozen is second.frozen is None


def test_stacked_tensors_lie_along_a_frozen_dimension() -> None:
    seen = traced(
        lambda m, x: torch.einsum("nbtc,nc->bt", torch.stack([m.a(x), m.b(x)]), m.mix),
        a=nn.Linear(WIDTH, 16),
        b=nn.Linear(WIDTH, 16),
        mix=(2, 16),
    )
    assert same(seen, ("a.weight", 0), ("b.weight", 0), ("mix", 1))
    assert reason(seen, "mix", 0).text == "counts stacked tensors"


def test_a_slice_that_starts_before_the_beginning_is_cut_at_the_beginning() -> None:
    seen = traced(lambda m, x: m.out(m.up(x)[..., -99:8]), up=nn.Linear(WIDTH, 20), out=nn.Linear(8, 6))
    assert structure(seen, "up.weight", 0) == "8 + 12"


def test_a_second_rule_for_an_operation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"aten\.mm\.default has a rule already: matrix_product"):
        rule(torch.ops.aten.mm.default)(lambda *args: None)
    assert covered_operations().count("aten.mm.default") == 1


def carriers(seen: Trace) -> dict[float, str | None]:
    """For each number that a product was recorded with, the weight that carries it."""
    return {
        round(step.factor, 6): step.carrier and step.carrier.parameter
        for steps in seen.steps.values()
        for step in steps
        if step.factor is not None
    }


def test_a_number_on_attention_logits_is_carried_by_the_query_weights() -> None:
    seen = traced(lambda m, x: (m.q(x) @ m.k(x).transpose(1, 2)) * 0.3, q=nn.Linear(WIDTH, 8), k=nn.Linear(WIDTH, 8))
    assert carriers(seen) == {0.3: "q.weight"}


def test_a_number_after_a_normalisation_by_the_tensor_itself_is_carried_by_no_weight() -> None:
    seen = traced(lambda m, x: F.normalize(m.q(x), dim=-1) * 0.3, q=nn.Linear(WIDTH, 8))
    assert carriers(seen) == {0.3: None}


def test_a_number_on_logits_of_a_tensor_with_itself_is_carried_by_no_weight() -> None:
    seen = traced(lambda m, x: ((q := m.q(x)) @ q.transpose(1, 2)) * 0.3, q=nn.Linear(WIDTH, 8))
    assert carriers(seen) == {0.3: None}


def test_queries_and_keys_cut_out_of_each_head_are_carried_by_no_weight() -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        q, k, v = m.fused(x).view(3, TOKENS, 4, 12).transpose(1, 2).chunk(3, dim=-1)
        return (q @ k.transpose(2, 3)) * 0.3 @ v

    seen = traced(forward, fused=nn.Linear(WIDTH, 48))
    assert carriers(seen) == {0.3: None}


def test_the_factor_of_a_biased_batched_product_is_recorded() -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        bias = torch.zeros(3, TOKENS, TOKENS)
        return torch.baddbmm(bias, m.q(x), m.k(x).transpose(1, 2), beta=1.0, alpha=0.3)

    seen = traced(forward, q=nn.Linear(WIDTH, 8), k=nn.Linear(WIDTH, 8))
    assert carriers(seen) == {0.3: "q.weight"}


def test_a_number_divided_by_a_tensor_is_not_carried_by_its_weight() -> None:
    seen = traced(lambda m, x: (x.new_ones(8) / m.q(x)) * 0.3, q=nn.Linear(WIDTH, 8))
    assert carriers(seen) == {0.3: None}


def test_a_piece_of_each_head_is_carried_by_no_weight_until_all_pieces_are_joined_again() -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        first, second = m.q(x).view(3, TOKENS, 4, 12).chunk(2, dim=-1)
        return first * 0.3 + (torch.cat([second, first], dim=-1) * 0.7).sum(-1, keepdim=True)

    seen = traced(forward, q=nn.Linear(WIDTH, 48))
    assert carriers(seen) == {0.3: None, 0.7: "q.weight"}


def test_an_index_that_is_taken_only_for_its_shape_freezes_nothing() -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        hidden = x @ m.w
        length = hidden[:, :, -1].shape[1]
        return hidden @ m.v * length

    assert free(traced(forward, w=(WIDTH, 8), v=(8, 3)), "v", 0)


def test_a_weight_that_the_inputs_never_reach_is_frozen() -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        return (x @ m.w) @ (m.rare if x.shape[0] > 99 else m.v)

    seen = traced(forward, w=(WIDTH, 8), v=(8, 3), rare=(8, 3))
    assert str(reason(seen, "rare", 0)) == "was not reached by the example inputs"
    assert free(seen, "v", 0)


def test_a_grouped_convolution_splits_channels_into_groups() -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        return m.conv((x @ m.w).transpose(1, 2))

    seen = traced(forward, w=(WIDTH, 8), conv=nn.Conv1d(8, 12, 3, groups=4))
    assert structure(seen, "w", 1) == "4 x 2"
    assert structure(seen, "conv.weight", 0) == "4 x 3"
    inside = find(seen.weight_dims["w"][1]).factors[1]
    assert find(inside) is find(seen.weight_dims["conv.weight"][1])


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(8).eval(), nn.GroupNorm(2, 8)], ids=["batch", "group"])
def test_channel_norms_lie_along_the_channels_running_statistics_too(norm: nn.Module) -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        return m.norm((x @ m.w).transpose(1, 2)).transpose(1, 2) @ m.v

    seen = traced(forward, w=(WIDTH, 8), v=(8, 3), norm=norm)
    along = [(name, 0) for name, dims in seen.weight_dims.items() if name.startswith("norm.") and len(dims) == 1]
    assert len(along) in (2, 4)
    assert same(seen, ("w", 1), ("v", 0), *along)
    assert free(seen, "v", 0)


def test_a_gated_linear_unit_in_one_operation_makes_its_halves_one_dimension() -> None:
    seen = traced(lambda m, x: F.glu(x @ m.w) @ m.v, w=(WIDTH, 16), v=(8, 3))
    assert structure(seen, "w", 1) == "8 + 8"
    assert {id(find(part)) for part in find(seen.weight_dims["w"][1]).parts} == {id(find(seen.weight_dims["v"][0]))}


def test_a_weight_normed_weight_shares_axes_with_its_length() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(8, 6))
    seen = traced(lambda m, x: m.layer(x @ m.w) @ m.v, w=(WIDTH, 8), v=(6, 3), layer=layer)
    direction, length = "layer.parametrizations.weight.original1", "layer.parametrizations.weight.original0"
    assert same(seen, (direction, 0), (length, 0), ("v", 0))
    assert same(seen, (direction, 1), ("w", 1))


@pytest.mark.parametrize(
    "write",
    [
        lambda into, rows: into.index_put((torch.tensor([0, 2]),), rows),
        lambda into, rows: into.index_add(0, torch.tensor([0, 2]), rows),
        lambda into, rows: into.scatter(0, torch.tensor([[0], [2]]).expand(2, 8), rows),
        lambda into, rows: into.scatter_add(0, torch.tensor([[0], [2]]).expand(2, 8), rows),
    ],
    ids=["index_put", "index_add", "scatter", "scatter_add"],
)
def test_writing_rows_by_number_couples_their_width_and_freezes_the_numbered_axis(
    write: Callable[[Tensor, Tensor], Tensor],
) -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        return write(m.table, x[0, :2] @ m.w) @ m.v

    seen = traced(forward, table=(5, 8), w=(WIDTH, 8), v=(8, 3))
    assert same(seen, ("table", 1), ("w", 1), ("v", 0))
    assert reason(seen, "table", 0) is not None


@pytest.mark.parametrize(
    "read", [lambda h: F.pad(h, (1, 1)), lambda h: h.unfold(2, 3, 1)[..., 0]], ids=["pad", "unfold"]
)
def test_padding_and_windows_freeze_the_dimension_that_they_walk(read: Callable[[Tensor], Tensor]) -> None:
    assert reason(traced(lambda m, x: read(x @ m.w), w=(WIDTH, 8)), "w", 1) is not None


def test_experts_keep_their_number_and_share_the_width_that_they_read() -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        tokens = (x @ m.w).flatten(0, 1)[:8].to(torch.bfloat16)
        ends = torch.tensor([3, 8], dtype=torch.int32)
        return torch._grouped_mm(tokens, m.experts.to(torch.bfloat16), ends).float() @ m.v

    seen = traced(forward, prove=False, w=(WIDTH, 16), experts=(2, 16, 24), v=(24, 3))
    assert same(seen, ("w", 1), ("experts", 1))
    assert same(seen, ("experts", 2), ("v", 0))
    assert "chosen by number" in str(reason(seen, "experts", 0))


def test_a_gate_interleaved_with_its_values_is_pairs_times_two() -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        both = m.fused(x)
        return m.down(both[..., ::2].sigmoid() * both[..., 1::2])

    seen = traced(forward, fused=nn.Linear(WIDTH, 20), down=nn.Linear(10, 6))
    pairs, two = find(seen.weight_dims["fused.weight"][0]).factors
    assert find(pairs) is find(seen.weight_dims["down.weight"][1])
    assert find(pairs).frozen is None
    assert find(two).frozen.text == "is read with a stride"


def test_a_stride_that_leaves_a_rest_freezes_the_dimension() -> None:
    seen = traced(lambda m, x: m.up(x)[..., 1::3], up=nn.Linear(WIDTH, 20))
    assert reason(seen, "up.weight", 0).text == "is read with a stride"


def test_overlapping_windows_over_positions_leave_heads_and_their_width_free() -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        h = m.q(x).view(3, TOKENS, 4, 8).transpose(1, 2).reshape(12, TOKENS, 8)
        a, b, c = h.stride()
        chunks = h.as_strided((12, 3, 3, 8), (a, b, b, c))
        return m.out(chunks.sum(2).view(3, 4, 3, 8).transpose(1, 2).reshape(3, 3, 32))

    seen = traced(forward, q=nn.Linear(WIDTH, 32), out=nn.Linear(32, 6))
    assert structure(seen, "q.weight", 0) == "4 x 8"
    assert same(seen, ("q.weight", 0), ("out.weight", 1))
    assert free(seen, "q.weight", 0)


@pytest.mark.parametrize(
    ("sizes", "strides"),
    [
        pytest.param((3, TOKENS, 16), (TOKENS * 16, 8, 1), id="windows of another dimension reach into it"),
        pytest.param((3, TOKENS, 16), (TOKENS * 16, 0, 5), id="another step"),
        pytest.param((3, 4, 16), (TOKENS * 16, 17, 1), id="steps that shift it"),
    ],
)
def test_addresses_that_mix_indices_of_a_width_freeze_it(sizes: tuple[int, ...], strides: tuple[int, ...]) -> None:
    seen = traced(lambda m, x: m.up(x).as_strided(sizes, strides), up=nn.Linear(WIDTH, 16))
    assert not free(seen, "up.weight", 0)


@pytest.mark.parametrize(
    "pool",
    [
        pytest.param(lambda h: F.avg_pool2d(h[:, None], (2, 1), stride=(2, 1))[:, 0], id="average"),
        pytest.param(lambda h: F.max_pool2d(h[:, None], (2, 1), stride=(2, 1))[:, 0], id="maximum"),
        pytest.param(lambda h: F.avg_pool1d(h.transpose(1, 2), 2).transpose(1, 2), id="channels"),
    ],
)
def test_pooling_over_positions_passes_the_width_by(pool: Callable[[Tensor], Tensor]) -> None:
    seen = traced(lambda m, x: m.out(pool(m.up(x))), up=nn.Linear(WIDTH, 16), out=nn.Linear(16, 6))
    assert same(seen, ("up.weight", 0), ("out.weight", 1))
    assert free(seen, "up.weight", 0)


def test_pooling_over_the_width_freezes_it() -> None:
    seen = traced(lambda m, x: F.avg_pool1d(m.up(x), 2), up=nn.Linear(WIDTH, 16))
    assert reason(seen, "up.weight", 0).text == "is a position in space"


def test_a_convolution_passes_by_what_its_kernel_does_not_walk() -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        return m.out(m.conv(m.up(x)[:, None])[:, 0])

    seen = traced(forward, up=nn.Linear(WIDTH, 16), conv=nn.Conv2d(1, 1, (3, 1), padding=(1, 0)), out=nn.Linear(16, 6))
    assert same(seen, ("up.weight", 0), ("out.weight", 1))
    assert free(seen, "up.weight", 0)


@pytest.mark.parametrize("groups", [1, 4])
def test_a_transposed_convolution_contracts_the_rows_of_its_kernel(groups: int) -> None:
    conv = nn.ConvTranspose1d(8, 12, 2, stride=2, groups=groups)
    seen = traced(
        lambda m, x: m.out(m.conv(m.up(x).transpose(1, 2)).transpose(1, 2)),
        up=nn.Linear(WIDTH, 8),
        conv=conv,
        out=nn.Linear(12, 6),
    )
    assert same(seen, ("up.weight", 0), ("conv.weight", 0))
    assert same(seen, ("conv.bias", 0), ("out.weight", 1))
    assert free(seen, "up.weight", 0) and free(seen, "out.weight", 1)
    assert structure(seen, "out.weight", 1) == ("12" if groups == 1 else "4 x 3")


def test_patches_unfolded_and_folded_again_keep_their_channels() -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        image = m.up(x).transpose(1, 2)[:, :, :4].reshape(3, 8, 2, 2)
        rows = F.unfold(F.interpolate(image, scale_factor=2), 2, stride=2) * 2
        return m.out(F.fold(rows, (4, 4), 2, stride=2).flatten(2).transpose(1, 2))

    seen = traced(forward, up=nn.Linear(WIDTH, 8), out=nn.Linear(8, 6))
    assert same(seen, ("up.weight", 0), ("out.weight", 1))
    assert free(seen, "up.weight", 0)


def test_pixels_shuffled_into_space_and_back_leave_their_channels_free() -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        image = m.up(x).transpose(1, 2)[:, :, :4].reshape(3, 24, 2, 2)
        wide = F.pixel_shuffle(image, 2)
        return m.out(F.pixel_unshuffle(wide * 2, 2).flatten(2).transpose(1, 2))

    seen = traced(forward, up=nn.Linear(WIDTH, 24), out=nn.Linear(24, 5))
    assert same(seen, ("up.weight", 0), ("out.weight", 1))
    assert structure(seen, "up.weight", 0) == "6 x 2 x 2"
    assert [leaf.frozen is None for leaf in leaves(seen.weight_dims["up.weight"][0])] == [True, False, False]


def test_reading_an_image_between_its_points_leaves_its_channels_free() -> None:
    grid = torch.rand(3, 3, 2, 2, generator=torch.Generator().manual_seed(0))

    def forward(m: Model, x: Tensor) -> Tensor:
        image = m.up(x).transpose(1, 2)[:, :, :4].reshape(3, 8, 2, 2)
        return m.out(F.grid_sample(image, grid, align_corners=False).flatten(2).transpose(1, 2))

    seen = traced(forward, up=nn.Linear(WIDTH, 8), out=nn.Linear(8, 6))
    assert same(seen, ("up.weight", 0), ("out.weight", 1))
    assert free(seen, "up.weight", 0)


def test_rotation_by_complex_numbers_leaves_heads_free_and_freezes_their_width() -> None:
    angles = torch.polar(torch.ones(TOKENS, 4), torch.arange(TOKENS * 4.0).view(TOKENS, 4))

    def forward(m: Model, x: Tensor) -> Tensor:
        q = torch.view_as_complex(m.q(x).view(3, TOKENS, 4, 4, 2))
        rotated = torch.view_as_real(q * angles[:, None]).flatten(3)
        return m.out(rotated.flatten(2))

    seen = traced(forward, q=nn.Linear(WIDTH, 32), out=nn.Linear(32, 6))
    assert structure(seen, "q.weight", 0) == structure(seen, "out.weight", 1) == "4 x 4 x 2"
    assert next(leaves(seen.weight_dims["q.weight"][0])) is next(leaves(seen.weight_dims["out.weight"][1]))
    assert [leaf.frozen is None for leaf in leaves(seen.weight_dims["q.weight"][0])] == [True, False, False]


def test_solving_along_positions_leaves_the_width_free() -> None:
    lower = torch.eye(TOKENS) + torch.ones(TOKENS, TOKENS).tril(-1)

    def forward(m: Model, x: Tensor) -> Tensor:
        return m.out(torch.linalg.solve_triangular(lower, m.up(x), upper=False))

    seen = traced(forward, up=nn.Linear(WIDTH, 8), out=nn.Linear(8, 6))
    assert same(seen, ("up.weight", 0), ("out.weight", 1))
    assert free(seen, "up.weight", 0)


@pytest.mark.parametrize(("offset", "is_free"), [(0, True), (1, False)])
def test_only_the_main_diagonal_of_a_square_is_the_same_whatever_its_order(offset: int, is_free: bool) -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        scores = m.q(x).transpose(1, 2) @ m.k(x)
        return scores.diagonal(offset, 1, 2).square().sum(-1)

    seen = traced(forward, q=nn.Linear(WIDTH, 8), k=nn.Linear(WIDTH, 8))
    assert free(seen, "q.weight", 0) is is_free
    assert same(seen, ("q.weight", 0), ("k.weight", 0)) is is_free


def test_heads_taken_from_the_end_leave_those_before_them_free() -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        heads = m.fused(x).view(3, TOKENS, 6, 8)
        q, k, v = heads[..., :-2, :], heads[..., [-2], :], heads[..., [-1], :]
        return m.out((q * k.sigmoid() + v).flatten(2))

    seen = traced(forward, fused=nn.Linear(WIDTH, 48), out=nn.Linear(32, 6))
    queries, *others = leaves(find(seen.weight_dims["fused.weight"][0]).factors[0])
    assert queries.size == 4 and queries.frozen is None
    assert [other.frozen.text for other in others] == ["is looked up by number"] * len(others)
    assert queries is next(leaves(seen.weight_dims["out.weight"][1]))


def test_numbers_from_the_end_that_are_data_freeze_the_whole_dimension() -> None:
    seen = traced(lambda m, x: m.up(x)[..., -1 - x[0, :2, 0].abs().long()], up=nn.Linear(WIDTH, 20))
    assert reason(seen, "up.weight", 0).text == "is looked up by number"


def test_a_fused_attention_kernel_couples_heads_and_widths_of_queries_keys_and_values() -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (m.q, m.k, m.v))
        mixed, *_ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
        return m.out(mixed.transpose(1, 2).flatten(2))

    seen = traced(forward, q=nn.Linear(WIDTH, 16), k=nn.Linear(WIDTH, 16), v=nn.Linear(WIDTH, 16), out=nn.Linear(16, 6))
    assert same(seen, ("q.weight", 0), ("k.weight", 0))
    assert same(seen, ("v.weight", 0), ("out.weight", 1))
    assert structure(seen, "q.weight", 0) == "2 x 8"
    of_queries, of_values = (find(find(seen.weight_dims[name][0]).factors[0]) for name in ("q.weight", "v.weight"))
    assert of_queries is of_values


@pytest.mark.skipif(not hasattr(torch.ops.aten, "_fused_rms_norm"), reason="this torch has no fused kernel")
def test_a_fused_rms_norm_lies_along_the_width() -> None:
    seen = traced(
        lambda m, x: m.out(torch.ops.aten._fused_rms_norm(m.up(x), [20], m.scale, 1e-6)[0]),
        up=nn.Linear(WIDTH, 20),
        scale=(20,),
        out=nn.Linear(20, 6),
    )
    assert same(seen, ("up.weight", 0), ("scale", 0), ("out.weight", 1))
    assert free(seen, "up.weight", 0)


def test_a_sum_with_a_scaled_product_couples_both_and_carries_its_number() -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        return torch.addmm(flat @ m.skip, flat @ m.up, m.down, alpha=0.5)

    seen = traced(forward, skip=(WIDTH, 8), up=(WIDTH, 20), down=(20, 8))
    assert same(seen, ("up", 1), ("down", 0))
    assert same(seen, ("skip", 1), ("down", 1))
    assert [step.factor for steps in seen.steps.values() for step in steps if step.factor] == [0.5]


def test_a_part_that_gather_reads_of_another_dimension_is_frozen() -> None:
    seen = traced(
        lambda m, x: m.up(x).gather(1, torch.zeros(3, 2, 4, dtype=torch.long)), up=nn.Linear(WIDTH, 20), prove=False
    )
    assert reason(seen, "up.weight", 0).text == "is read in part"


def test_a_mask_that_stands_behind_other_dimensions_freezes_what_it_meets() -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        h = m.up(x)
        h[:, torch.ones(TOKENS, dtype=torch.bool)] = 0.0
        return m.out(h)

    seen = traced(forward, up=nn.Linear(WIDTH, 20), out=nn.Linear(20, 6))
    assert not free(seen, "up.weight", 0)


def test_a_mask_that_takes_parts_of_rows_freezes_their_width() -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        h = m.up(x)
        return m.out(h.masked_scatter(torch.arange(20) < 10, h * 2))

    seen = traced(forward, up=nn.Linear(WIDTH, 20), out=nn.Linear(20, 6))
    assert not free(seen, "up.weight", 0)


def test_an_empty_slice_freezes_the_dimension_it_is_taken_of() -> None:
    seen = traced(lambda m, x: torch.cat([m.up(x), m.up(x)[..., :0]], -1), up=nn.Linear(WIDTH, 20))
    assert reason(seen, "up.weight", 0).text == "is read in part"


def test_filling_in_place_and_log_sigmoid_keep_the_dimension() -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        h = m.up(x)
        return m.out(F.logsigmoid(h) + h.clone().fill_(1.0))

    seen = traced(forward, up=nn.Linear(WIDTH, 20), out=nn.Linear(20, 6))
    assert same(seen, ("up.weight", 0), ("out.weight", 1))
    assert free(seen, "up.weight", 0)


def test_a_constant_times_a_projection_is_carried_by_the_projections_weight() -> None:
    seen = traced(lambda m, x: (torch.ones(3, TOKENS, 1) * m.up(x)) * 0.5, up=nn.Linear(WIDTH, 20, bias=False))
    assert carriers(seen) == {0.5: "up.weight"}


def test_a_triangular_system_is_solved_in_order() -> None:
    seen = traced(
        lambda m, x: torch.linalg.solve_triangular(m.a.expand(3, -1, -1), m.up(x).transpose(1, 2), upper=True),
        a=(20, 20),
        up=nn.Linear(WIDTH, 20),
    )
    assert reason(seen, "up.weight", 0).text == reason(seen, "a", 0).text == "is order-dependent"
