"""Choosing the next token: the sampler of a batch of requests.

Every step works on all rows at once, each with its own parameters. Shapes: B rows, R rows that are
sampled, V vocabulary.
"""

import math
import secrets
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from hone.engine.params import SamplingParams


def penalise(logits_BV: Tensor, seen_BV: Tensor, penalty_B1: Tensor) -> Tensor:
    """Divide positive and multiply negative logits of seen tokens (Keskar et al. 2019, 4.1)."""
    changed = torch.where(logits_BV > 0, logits_BV / penalty_B1, logits_BV * penalty_B1)
    return torch.where(seen_BV, changed, logits_BV)


def restrict(logits_RV: Tensor, top_k_R1: Tensor, top_p_R1: Tensor, min_p_R1: Tensor) -> Tensor:
    """Set logits outside top-k, then top-p, then min-p to -inf; the likeliest token always stays.

    Args:
        top_k_R1: int64, V where every token may be chosen.
    """
    vocabulary = logits_RV.shape[1]
    low = -math.inf
    if bool((top_k_R1 < vocabulary).any()) or bool((top_p_R1 < 1).any()):
        ascending, order = logits_RV.sort(dim=-1)
        kth_R1 = ascending.gather(1, vocabulary - top_k_R1)
        ascending = ascending.masked_fill(ascending < kth_R1, low)
        # float64: over a long tail, float32 sums would miss top_p = 0.999 by several tokens.
        mass = ascending.double().softmax(dim=-1).cumsum(dim=-1)
        drop = (mass <= 1 - top_p_R1) & (top_p_R1 < 1)
        drop[:, -1] = False
        drop |= ascending == low
        logits_RV = logits_RV.masked_fill(drop.scatter(1, order, drop), low)
    if bool((min_p_R1 > 0).any()):
        floor_R1 = logits_RV.amax(dim=-1, keepdim=True) + min_p_R1.log()
        logits_RV = logits_RV.masked_fill(logits_RV < floor_R1, low)
    return logits_RV


def draw(logits_RV: Tensor, uniform_R1: Tensor) -> Tensor:
    """One token per row: the first whose cumulated probability exceeds ``uniform`` in [0, 1)."""
    mass = logits_RV.double().softmax(dim=-1).cumsum(dim=-1)
    ids = torch.searchsorted(mass, uniform_R1 * mass[:, -1:], right=True)
    return ids.clamp_max_(logits_RV.shape[1] - 1).squeeze(1)


class Sampler:
    """Chooses the next tokens of a batch; rows leave with :meth:`select_rows`."""

    def __init__(
        self,
        params: Sequence[SamplingParams],
        prompts: Sequence[Sequence[int]],
        ends: Sequence[Collection[int]],
        budgets: Sequence[int],
        vocabulary: int,
        device: torch.device | str = "cpu",
        first: int | None = None,
        last: Sequence[int | None] = (),
    ) -> None:
        """Prepare a batch.

        Args:
            prompts: the tokens that count for the repetition penalty from the start.
            ends: the token ids that end each row; forbidden for its first ``min_tokens`` steps.
            budgets: the steps that each row will make at most.
            first: the token of every row's first step, whatever the model scores.
            last: those of each row's last step, where not None.
        """

        def column(values: Sequence[float], dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)[:, None]

        self._all_greedy = all(p.greedy for p in params)
        self._rows: dict[str, Tensor] = {}
        if not self._all_greedy:
            wide = [vocabulary if p.top_k < 1 else min(p.top_k, vocabulary) for p in params]
            self._rows = {
                "greedy": torch.tensor([p.greedy for p in params], device=device),
                "temperature": column([1.0 if p.greedy else p.temperature for p in params]),
                "top_k": column(wide, torch.int64),
                "top_p": column([p.top_p for p in params], torch.float64),
                "min_p": column([p.min_p for p in params]),
                "uniform": _uniforms(params, budgets).to(device),
            }
        if any(p.repetition_penalty != 1 for p in params):
            seen = torch.zeros(len(params), vocabulary, dtype=torch.bool)
            for row, prompt in enumerate(prompts):
                seen[row, torch.tensor(prompt)] = True
            self._rows["seen"] = seen.to(device)
            self._rows["penalty"] = column([p.repetition_penalty for p in params])
        self._last_forbidden = max((p.min_tokens for p in params), default=0)
        if self._last_forbidden:
            ending = torch.zeros(len(params), vocabulary, dtype=torch.bool)
            for row, ids in enumerate(ends):
                ending[row, [i for i in ids if i < vocabulary]] = True
            self._rows["ending"] = ending.to(device)
            self._rows["min_tokens"] = column([p.min_tokens for p in params], torch.int64)

        self._first = first
        if any(token is not None for token in last):
            forced = [-1 if token is None else token for token in last]
            self._rows["last"] = torch.tensor(forced, device=device)
            self._rows["final_step"] = torch.tensor(budgets, device=device) - 1

    def select_rows(self, rows_R: Tensor) -> None:
        """Keep the rows ``rows_R`` (int64), in that order."""
        self._rows = {name: value.index_select(0, rows_R) for name, value in self._rows.items()}

    def __call__(self, logits_BV: Tensor, step: int) -> Tensor:
        """The tokens ``[B]`` of the step (the first is 0)."""
        rows, logits_BV = self._rows, logits_BV.float()
        if "seen" in rows:
            logits_BV = penalise(logits_BV, rows["seen"], rows["penalty"])
        if step < self._last_forbidden:
            forbidden = rows["ending"] & (rows["min_tokens"] > step)
            logits_BV = logits_BV.masked_fill(forbidden, -math.inf)
        ids_B = logits_BV.argmax(dim=-1)
        if not self._all_greedy:
            scaled = logits_BV / rows["temperature"]
            kept = restrict(scaled, rows["top_k"], rows["top_p"], rows["min_p"])
            drawn_B = draw(kept, rows["uniform"][:, step : step + 1])
            ids_B = torch.where(rows["greedy"], ids_B, drawn_B)
        if step == 0 and self._first is not None:
            ids_B = torch.full_like(ids_B, self._first)
        if "last" in rows:
            final_B = (rows["final_step"] == step) & (rows["last"] >= 0)
            ids_B = torch.where(final_B, rows["last"], ids_B)
        if "seen" in rows:
            rows["seen"].scatter_(1, ids_B[:, None], True)
        return ids_B


def _uniforms(params: Sequence[SamplingParams], budgets: Sequence[int]) -> Tensor:
    """All random numbers that each row will need, from its own seed: ``[B, steps]`` float64."""
    uniform = torch.zeros(len(params), max(budgets), dtype=torch.float64)
    for row, (p, budget) in enumerate(zip(params, budgets, strict=True)):
        if not p.greedy:
            seed = secrets.randbits(63) if p.seed is None else p.seed % 2**63
            generator = torch.Generator().manual_seed(seed)
            uniform[row, :budget] = torch.rand(budget, generator=generator, dtype=torch.float64)
    return uniform
