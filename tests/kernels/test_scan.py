"""Both scans: their fast forms against their recurrences, and against transformers' mixers."""

from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from hone.kernels import scan
from hone.kernels.convolution import causal_convolution
from hone.kernels.scan import selective_scan, selective_scan_reference
from hone.kernels.scan_dual import state_space_dual, state_space_dual_reference

FORMS = {
    "mamba": (selective_scan, selective_scan_reference),
    "mamba2": (state_space_dual, state_space_dual_reference),
}
both_kinds = pytest.mark.parametrize("kind", FORMS)


class Case(NamedTuple):
    """The arguments of a scan, in order; the first five have a row per token, save A."""

    x: torch.Tensor
    delta: torch.Tensor
    A: torch.Tensor
    B: torch.Tensor
    C: torch.Tensor
    D: torch.Tensor | None
    bounds: list[int]
    state: torch.Tensor | None

    def part(self, start, end, bounds, state):
        """The same for some of the tokens."""
        x, delta, B, C = (rows[start:end] for rows in (self.x, self.delta, self.B, self.C))
        return Case(x, delta, self.A, B, C, self.D, bounds, state)

    def to(self, dtype):
        return Case(*(a.to(dtype) if isinstance(a, torch.Tensor) else a for a in self))


def case(kind, lengths, shape=None, decay=3.0, skip=True, state=True):
    """Random arguments in float64; ``shape`` is (D, S), or (G, H, P, S) for Mamba-2."""
    torch.manual_seed(sum(lengths))
    bounds = torch.tensor([0, *lengths]).cumsum(0).tolist()
    if kind == "mamba":
        channels, size = shape or (6, 3)
        x, step, transition, key = (channels,), (channels,), (channels, size), (size,)
        carried = transition
    else:
        groups, heads, width, size = shape or (2, 4, 3, 5)
        x, step, transition, key = (heads, width), (heads,), (heads,), (groups, size)
        carried = (heads, width, size)

    def draw(rows, shape, source=torch.randn):
        return source(*rows, *shape, dtype=torch.float64)

    tokens = (bounds[-1],)
    return Case(
        x=draw(tokens, x),
        delta=draw(tokens, step, torch.rand),
        A=-decay * draw((), transition, torch.rand),
        B=draw(tokens, key),
        C=draw(tokens, key),
        D=draw((), step) if skip else None,
        bounds=bounds,
        state=draw((len(lengths),), carried) if state else None,
    )


def outcome(function, arguments, *more):
    """Outputs, states and the gradients of all tensors."""
    leaves = [a.detach().requires_grad_() if isinstance(a, torch.Tensor) else a for a in arguments]
    y, state = function(*leaves, *more)
    pull = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    wanted = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    # The last term has no gradient: an empty reference depends on nothing.
    loss = (y * pull).sum() + state.square().sum() + 0 * sum(leaf.sum() for leaf in wanted)
    return y, state, *torch.autograd.grad(loss, wanted)


def agree(fast, slow, tolerance):
    """Within ``tolerance`` of the largest number of each tensor."""
    for ours, theirs in zip(fast, slow, strict=True):
        assert ours.shape == theirs.shape
        assert ours.isfinite().all()
        if ours.numel():
            assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max().clamp_min(1e-6)


LENGTHS = st.lists(st.integers(0, 20), min_size=1, max_size=5)


@settings(max_examples=25)
@given(LENGTHS, st.integers(1, 5), st.integers(1, 4), st.booleans(), st.booleans())
def test_selective_scan_is_its_recurrence_with_gradients(lengths, channels, tokens, skip, state):
    arguments = case("mamba", lengths, (channels, 3), skip=skip, state=state)
    with pytest.MonkeyPatch.context() as patch:
        # Blocks of a few tokens and two channels.
        patch.setattr(scan, "_FEWEST_TOKENS", tokens)
        patch.setattr(scan, "_MOST_TOKENS", tokens)
        patch.setattr(scan, "_BLOCK", tokens * 3 * 2)
        fast = outcome(selective_scan, arguments)
    agree(fast, outcome(selective_scan_reference, arguments), 1e-12)


@settings(max_examples=25)
@given(
    LENGTHS,
    st.sampled_from([(1, 1), (1, 4), (2, 4), (3, 3)]),
    st.integers(1, 9),
    st.booleans(),
    st.booleans(),
)
def test_state_space_dual_is_its_recurrence_with_gradients(lengths, heads, chunk, skip, state):
    arguments = case("mamba2", lengths, (*heads, 3, 5), skip=skip, state=state)
    fast = outcome(state_space_dual, arguments, chunk)
    agree(fast, outcome(state_space_dual_reference, arguments), 1e-12)


@both_kinds
@pytest.mark.parametrize("decay", [0.01, 1.0, 30.0, 1e4])
def test_float32_is_exact_to_its_precision_whatever_the_decay(kind, decay):
    fast, slow = FORMS[kind]
    arguments = case(kind, [1, 300, 0, 64, 65], decay=decay)
    exact = outcome(slow, arguments)
    ours = outcome(fast, arguments.to(torch.float32))
    assert all(tensor.dtype == torch.float32 for tensor in ours)
    agree(ours, exact, 1e-5)


@both_kinds
@pytest.mark.parametrize("decay", [0.01, 100.0])
def test_long_sequences_neither_overflow_nor_drift(kind, decay):
    fast, slow = FORMS[kind]
    arguments = case(kind, [4096], decay=decay)
    with torch.no_grad():
        exact, ours = slow(*arguments), fast(*arguments.to(torch.float32))
    agree(ours, exact, 1e-5)
    assert all(tensor.isfinite().all() for tensor in outcome(fast, arguments.to(torch.float32)))


def test_decay_after_a_stretch_of_strong_decay_keeps_its_precision():
    # Sums of exponents are in the thousands by then, and the differences that matter below one.
    arguments = case("mamba2", [64], decay=1.0).to(torch.float32)
    arguments.delta[:32] *= 500
    arguments.delta[32:] *= 0.1
    exact = outcome(state_space_dual_reference, arguments.to(torch.float64))
    agree(outcome(state_space_dual, arguments), exact, 1e-5)


def test_the_gradient_of_a_strong_decay_is_no_noise():
    # It is tiny beside that of a weak one, so that each head is held to its own size.
    decays = torch.tensor([-0.1, -3.0, -30.0, -100.0], dtype=torch.float64)
    arguments = case("mamba2", [150])._replace(A=decays).to(torch.float32)
    exact = outcome(state_space_dual_reference, arguments.to(torch.float64))
    ours = outcome(state_space_dual, arguments)
    torch.testing.assert_close(ours[4].double(), exact[4], atol=0, rtol=1e-5)


@both_kinds
@settings(max_examples=10)
@given(st.lists(st.integers(1, 90) | st.just(1), min_size=2, max_size=5))
def test_a_sequence_in_a_pack_has_the_bits_of_the_same_alone(kind, lengths):
    fast, _ = FORMS[kind]
    arguments = case(kind, lengths).to(torch.float32)
    with torch.no_grad():
        y, state = fast(*arguments)
        for i, (start, end) in enumerate(pairwise(arguments.bounds)):
            own = arguments.part(start, end, [0, end - start], arguments.state[i : i + 1])
            y_alone, state_alone = fast(*own)
            assert torch.equal(y[start:end], y_alone)
            assert torch.equal(state[i], state_alone[0])


@both_kinds
@settings(max_examples=10)
@given(st.lists(st.integers(1, 70), min_size=1, max_size=5), st.integers(0, 6))
def test_a_sequence_in_pieces_is_the_whole(kind, pieces, steps):
    fast, _ = FORMS[kind]
    pieces = pieces + [1] * steps
    shape = (16, 3) if kind == "mamba" else None
    arguments = case(kind, [sum(pieces)], shape).to(torch.float32)
    with torch.no_grad():
        whole = fast(*arguments)
        outputs, state, start = [], arguments.state, 0
        for piece in pieces:
            own = arguments.part(start, start + piece, [0, piece], state)
            y, state = fast(*own)
            outputs.append(y)
            start += piece
    agree((torch.cat(outputs), state), whole, 1e-5)
    if kind == "mamba":  # bit for bit, where channels fill a processor's vectors
        assert torch.equal(state, whole[1])


@both_kinds
def test_decoding_many_sequences_is_decoding_each(kind):
    fast, slow = FORMS[kind]
    arguments = case(kind, [1] * 7)
    exact = outcome(slow, arguments)
    agree(outcome(fast, arguments), exact, 1e-12)
    with torch.no_grad():
        agree(fast(*arguments), exact[:2], 1e-12)


@both_kinds
@settings(max_examples=15)
@given(st.lists(st.sampled_from([0, 1, 1, 1, 2, 9]), min_size=1, max_size=9), st.booleans())
def test_decoding_beside_longer_passes(kind, lengths, state):
    fast, slow = FORMS[kind]
    arguments = case(kind, lengths, state=state)
    with torch.no_grad():
        agree(fast(*arguments), slow(*arguments), 1e-12)


@both_kinds
def test_a_broken_sequence_spoils_no_other(kind):
    fast, _ = FORMS[kind]
    arguments = case(kind, [70, 3, 80]).to(torch.float32)
    clean = outcome(fast, arguments)
    arguments.x[71], arguments.B[72] = float("nan"), float("inf")
    spoilt = outcome(fast, arguments)
    for before, after in zip(clean[:4], spoilt[:4], strict=True):
        if len(before) == 3:  # states
            assert torch.equal(before[[0, 2]], after[[0, 2]])
            assert after[1].isnan().any()
        else:  # outputs, and the gradients of x and delta
            assert torch.equal(before[:70], after[:70])
            assert torch.equal(before[73:], after[73:])


@both_kinds
def test_bfloat16_goes_in_and_out_of_float32_arithmetic(kind):
    fast, _ = FORMS[kind]
    arguments = case(kind, [100, 30]).to(torch.bfloat16)
    y, state, *gradients = outcome(fast, arguments)
    assert y.dtype == torch.bfloat16
    assert state.dtype == torch.float32
    assert {gradient.dtype for gradient in gradients} == {torch.bfloat16}
    exact, exact_state, *_ = outcome(fast, arguments.to(torch.float32))
    assert torch.equal(y, exact.bfloat16())
    assert torch.equal(state, exact_state)


@both_kinds
def test_the_same_without_gradients_and_with_some_inputs_frozen(kind):
    fast, _ = FORMS[kind]
    arguments = case(kind, [40, 9], state=False).to(torch.float32)
    full = outcome(fast, arguments)
    with torch.no_grad():
        y, state = fast(*arguments)
    assert torch.equal(y, full[0])
    assert torch.equal(state, full[1])
    for trained in range(6):
        leaf = arguments[trained].detach().requires_grad_()
        y, state = fast(*arguments[:trained], leaf, *arguments[trained + 1 :])
        pull = torch.linspace(-1, 1, y.numel()).view(y.shape)
        (gradient,) = torch.autograd.grad((y * pull).sum() + state.square().sum(), leaf)
        torch.testing.assert_close(gradient, full[2 + trained])


@both_kinds
def test_arguments_with_gaps_between_their_rows_and_states_of_any_layout(kind):
    fast, _ = FORMS[kind]
    arguments = case(kind, [33, 40, 1, 1]).to(torch.float32)

    def gapped(rows):
        wide = torch.full((len(rows), 3, *rows.shape[1:]), float("nan"))
        wide[:, 1] = rows
        return wide[:, 1]

    x, delta, A, B, C, D, bounds, state = arguments
    apart = Case(
        gapped(x), gapped(delta), A, gapped(B), gapped(C), D, bounds, state.mT.contiguous().mT
    )
    agree(outcome(fast, apart), outcome(fast, arguments), 1e-6)
    with torch.no_grad():
        agree(fast(*apart), fast(*arguments), 1e-6)


# Mixers of transformers, with everything but convolution and scan done here.


def mixer_of(family, **sizes):
    """A mixer with random weights, A and D included, and its configuration."""
    import importlib

    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    name = family.capitalize()
    shape = {"hidden_size": 24, "state_size": 5, "num_hidden_layers": 1, "vocab_size": 8}
    config = getattr(module, f"{name}Config")(**shape, **sizes)
    torch.manual_seed(0)
    mixer = getattr(module, f"{name}Mixer")(config, layer_idx=0).eval()
    with torch.no_grad():
        for name, weight in mixer.named_parameters():
            if name in {"A_log", "D", "dt_bias"} or name.endswith("bias"):
                weight.copy_(torch.randn(weight.shape))
    return mixer, config


def by_sequence(rows_NC, batch):
    return rows_NC.view(batch, -1, rows_NC.shape[-1])


def compare_with_mixer(mixer, ours, hidden_BTE):
    """Outputs and the gradients of every weight, whole and packed."""
    results = []
    for forward in (mixer, ours):
        y = forward(hidden_BTE)
        pull = torch.linspace(-1, 1, y.numel()).view(y.shape)
        results.append((y, *torch.autograd.grad((y * pull).sum(), [*mixer.parameters()])))
    agree(*results, 2e-5)


@pytest.mark.parametrize(("conv_kernel", "use_conv_bias"), [(4, True), (3, False)])
def test_mamba_mixer_of_transformers(conv_kernel, use_conv_bias):
    mixer, config = mixer_of("mamba", conv_kernel=conv_kernel, use_conv_bias=use_conv_bias)
    batch, length = 2, 21
    bounds = [0, length, 2 * length]

    def ours(hidden_BTE):
        x_NC, gate_NC = mixer.in_proj(hidden_BTE.flatten(0, 1)).chunk(2, -1)
        weight_CW = mixer.conv1d.weight[:, 0]
        x_NC = functional.silu(causal_convolution(x_NC, weight_CW, mixer.conv1d.bias, bounds)[0])
        sizes = (mixer.time_step_rank, config.state_size, config.state_size)
        step_NR, B_NS, C_NS = mixer.x_proj(x_NC).split(sizes, -1)
        delta_NC = functional.softplus(mixer.dt_proj(step_NR))
        y_NC, _ = selective_scan(x_NC, delta_NC, -mixer.A_log.exp(), B_NS, C_NS, mixer.D, bounds)
        return by_sequence(mixer.out_proj(y_NC * functional.silu(gate_NC)), batch)

    compare_with_mixer(mixer, ours, torch.randn(batch, length, config.hidden_size))


@pytest.mark.parametrize("groups", [1, 2])
def test_mamba2_mixer_of_transformers(groups):
    limit = (0.05, 2.0)
    mixer, config = mixer_of(
        "mamba2", n_groups=groups, num_heads=4, head_dim=12, chunk_size=8, time_step_limit=limit
    )
    batch, length = 2, 21
    bounds = [0, length, 2 * length]
    inner, size = mixer.intermediate_size, config.state_size

    def ours(hidden_BTE):
        projected = mixer.in_proj(hidden_BTE.flatten(0, 1))
        gate_NC, xBC, step_NH = projected.split((inner, mixer.conv_dim, config.num_heads), -1)
        weight_CW = mixer.conv1d.weight[:, 0]
        xBC = functional.silu(causal_convolution(xBC, weight_CW, mixer.conv1d.bias, bounds)[0])
        x, B, C = xBC.split((inner, groups * size, groups * size), -1)
        dt_NH = functional.softplus(step_NH + mixer.dt_bias).clamp(*limit)
        y_NHP, _ = state_space_dual(
            x.unflatten(-1, (config.num_heads, -1)),
            dt_NH,
            -mixer.A_log.exp(),
            B.unflatten(-1, (groups, -1)),
            C.unflatten(-1, (groups, -1)),
            mixer.D,
            bounds,
            chunk=9,
        )
        y_NC = mixer.norm(by_sequence(y_NHP.flatten(1), batch), by_sequence(gate_NC, batch))
        return mixer.out_proj(y_NC)

    compare_with_mixer(mixer, ours, torch.randn(batch, length, config.hidden_size))
