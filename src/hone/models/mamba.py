"""The mixers of Mamba and Mamba-2, and their block.

Shapes: N tokens of all sequences behind one another, n sequences, E hidden, D channels, S numbers
that a channel remembers, W width of the convolution, R rank of the time step, H heads of P
channels, G groups.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from hone.kernels import causal_convolution, project, selective_scan, state_space_dual
from hone.models.blocks import RMSNorm, Step, make_norm, rows
from hone.models.config import ModelConfig

# Time steps begin log-uniform between these (Gu and Dao 2023, section 3.6).
_SMALLEST_STEP, _LARGEST_STEP = 0.001, 0.1


class MambaBlock(nn.Module):
    """A mixer that reads the normalised stream and adds to it (Gu and Dao 2023, figure 3)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.norm = make_norm(config)
        self.mixer = (MambaMixer if config.mixer == "mamba" else Mamba2Mixer)(config, layer)

    def forward(self, x_NE: Tensor, step: Step, keep: Tensor | None = None) -> Tensor:
        """The residual stream after this block, or only its rows ``keep``."""
        return rows(x_NE, keep) + self.mixer(step.keeper.cheap(self.norm, x_NE), step, keep)


class Convolution(nn.Module):
    """The causal convolution of each channel over the last W tokens of its own sequence."""

    def __init__(self, channels: int, width: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, width))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(
        self, x_NC: Tensor, bounds: list[int], state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """``silu(convolution(x))`` and each sequence's last inputs, for the next pass."""
        y_NC, state = causal_convolution(x_NC, self.weight[:, 0], self.bias, bounds, state)
        return functional.silu(y_NC), state

    def initial_value(self, name: str, generator: torch.Generator) -> Tensor | None:
        """Uniform, as PyTorch's own convolutions begin."""
        if name != "weight":
            return None
        bound = self.weight.shape[-1] ** -0.5
        return torch.empty(self.weight.shape).uniform_(-bound, bound, generator=generator)


class TimeStep(nn.Linear):
    """The projection to each channel's time step (Gu and Dao 2023, section 3.6)."""

    def initial_value(self, name: str, generator: torch.Generator) -> Tensor:
        """Small weights around time steps of all magnitudes."""
        if name == "bias":
            return initial_steps(self.out_features, generator)
        bound = self.in_features**-0.5
        return torch.empty(self.weight.shape).uniform_(-bound, bound, generator=generator)


class MambaMixer(nn.Module):
    """A selective state space (Gu and Dao 2023, algorithm 2): the step size, and how the state is
    written and read, depend on the token.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        space = config.state_space
        assert space is not None
        self.layer, self.space = layer, space
        size, inner = config.hidden_size, space.inner
        self.activated_widths = (inner,)
        self.in_proj = nn.Linear(size, 2 * inner, bias=space.bias)
        self.conv1d = Convolution(inner, space.width, space.conv_bias)
        self.x_proj = nn.Linear(inner, space.rank + 2 * space.state, bias=False)
        self.dt_proj = TimeStep(space.rank, inner)
        self.A_log = nn.Parameter(torch.empty(inner, space.state))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, size, bias=space.bias)

    def forward(self, x_NE: Tensor, step: Step, keep: Tensor | None = None) -> Tensor:
        """The mixer's output ``[N, E]``, or only its rows ``keep``."""
        bounds, state = step.context.bounds, step.context.state(self.layer)
        convolved, recurrent = (None, None) if state is None else state
        u_ND, gate_ND = project(x_NE, (self.in_proj,)).chunk(2, dim=-1)
        cheap = step.keeper.cheap
        u_ND, convolved = cheap(self.conv1d, u_ND[: bounds[-1]], bounds, convolved)
        # Products keep the rows of padding: a row's bits may depend on how many there are.
        u_ND = _padded(u_ND, gate_ND)
        sizes = (self.space.rank, self.space.state, self.space.state)
        step_NR, B_NS, C_NS = project(u_ND, (self.x_proj,)).split(sizes, dim=-1)
        delta_ND = cheap(functional.softplus, project(step_NR, (self.dt_proj,)))
        A_DS = -torch.exp(self.A_log.float())
        u_ND, delta_ND, B_NS, C_NS = (x[: bounds[-1]] for x in (u_ND, delta_ND, B_NS, C_NS))
        y_ND, recurrent = selective_scan(
            u_ND, delta_ND, A_DS, B_NS, C_NS, self.D, bounds, recurrent
        )
        step.context.keep(self.layer, (convolved, recurrent))
        y_ND = cheap(_gated, _padded(y_ND.to(gate_ND.dtype), gate_ND), gate_ND)
        return project(rows(y_ND, keep), (self.out_proj,))

    def initial_value(self, name: str, generator: torch.Generator) -> Tensor | None:
        """``A`` is minus 1 to S (Gu and Dao 2023, section 3.6, "S4D-Real"), D is one."""
        if name == "A_log":
            numbers = torch.arange(1, self.space.state + 1, dtype=torch.float32).log()
            return numbers.expand(self.space.inner, -1)
        return torch.ones(self.space.inner) if name == "D" else None


class GatedNorm(RMSNorm):
    """Gate, then normalise each group (Dao and Gu 2024, section 7.1)."""

    def __init__(self, size: int, eps: float, groups: int) -> None:
        super().__init__(size, eps)
        self.groups = groups

    def forward(self, x_ND: Tensor, gate_ND: Tensor | None = None) -> Tensor:
        """``norm(x · silu(gate))`` with the mean square over each group."""
        x_fp32 = x_ND.float()
        if gate_ND is not None:
            x_fp32 = x_fp32 * functional.silu(gate_ND.float())
        grouped = x_fp32.unflatten(-1, (self.groups, -1))
        scale = torch.rsqrt(grouped.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * (grouped * scale).flatten(-2).to(x_ND.dtype)


class Mamba2Mixer(nn.Module):
    """State space duality (Dao and Gu 2024, sections 6 and 7): one decay per head and token, so
    that a chunk of tokens is a few products.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        space = config.state_space
        assert space is not None
        self.layer, self.space = layer, space
        size, inner, heads = config.hidden_size, space.inner, space.heads
        mixed = inner + 2 * space.groups * space.state
        self.activated_widths = (inner, mixed, heads)
        self.in_proj = nn.Linear(size, inner + mixed + heads, bias=space.bias)
        self.conv1d = Convolution(mixed, space.width, space.conv_bias)
        self.dt_bias = nn.Parameter(torch.ones(heads))
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = GatedNorm(inner, config.norm_eps, space.groups)
        self.out_proj = nn.Linear(inner, size, bias=space.bias)

    def forward(self, x_NE: Tensor, step: Step, keep: Tensor | None = None) -> Tensor:
        """The mixer's output ``[N, E]``, or only its rows ``keep``."""
        space = self.space
        bounds, state = step.context.bounds, step.context.state(self.layer)
        convolved, recurrent = (None, None) if state is None else state
        mixed = space.inner + 2 * space.groups * space.state
        gate_ND, u_NC, delta_NH = project(x_NE, (self.in_proj,)).split(
            (space.inner, mixed, space.heads), dim=-1
        )
        cheap = step.keeper.cheap
        u_NC, convolved = cheap(self.conv1d, u_NC[: bounds[-1]], bounds, convolved)
        parts = (space.inner, space.groups * space.state, space.groups * space.state)
        x_ND, B_NS, C_NS = u_NC.split(parts, dim=-1)
        delta_NH = functional.softplus(delta_NH[: bounds[-1]] + self.dt_bias)
        y_NHP, recurrent = state_space_dual(
            x_ND.unflatten(-1, (space.heads, -1)),
            delta_NH.clamp(*space.step_limits),
            -torch.exp(self.A_log.float()),
            B_NS.unflatten(-1, (space.groups, -1)),
            C_NS.unflatten(-1, (space.groups, -1)),
            self.D,
            bounds,
            recurrent,
        )
        step.context.keep(self.layer, (convolved, recurrent))
        y_ND = _padded(y_NHP.flatten(1).to(gate_ND.dtype), gate_ND)
        y_ND = cheap(self.norm, y_ND, gate_ND)
        return project(rows(y_ND, keep), (self.out_proj,))

    def initial_value(self, name: str, generator: torch.Generator) -> Tensor | None:
        """``A`` is minus 1 to H, D is one, time steps are of all magnitudes."""
        if name == "A_log":
            return torch.arange(1, self.space.heads + 1, dtype=torch.float32).log()
        if name == "dt_bias":
            return initial_steps(self.space.heads, generator)
        return torch.ones(self.space.heads) if name == "D" else None


def initial_steps(count: int, generator: torch.Generator) -> Tensor:
    """Biases whose softplus is log-uniform between the smallest and the largest time step."""
    span = math.log(_LARGEST_STEP) - math.log(_SMALLEST_STEP)
    steps = torch.exp(torch.rand(count, generator=generator) * span + math.log(_SMALLEST_STEP))
    return steps + torch.log(-torch.expm1(-steps))


def _gated(y_ND: Tensor, gate_ND: Tensor) -> Tensor:
    return y_ND * functional.silu(gate_ND)


def _padded(y_ND: Tensor, like_ND: Tensor) -> Tensor:
    """Zeros behind ``y_ND`` for tokens of a pass that belong to no sequence."""
    missing = like_ND.shape[0] - y_ND.shape[0]
    return functional.pad(y_ND, (0, 0, 0, missing)) if missing else y_ND
