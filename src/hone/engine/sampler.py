"""Choosing tokens: the sampler of all requests that run.

A step works on all rows at once, each with its own parameters. What no row asks for is not
computed. What a row gets depends on its own scores, parameters, tokens and place only: not on the
rows beside it, nor on how many of its places are looked at in one step.

Shapes: R rows, V vocabulary, W = V / 32 words of a mask (rounded up), C edited scores.
"""

import math
import secrets
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hone.core.errors import RequestError
from hone.engine.drawing import draw, floors, largest, likeliest
from hone.engine.params import SamplingParams
from hone.engine.random_numbers import uniforms
from hone.engine.request import TokenLogprobs

# What is known of a request from the start, one row of a table each.
_PARAMETERS = np.dtype(
    [
        ("seed", np.uint64),
        ("stream", np.uint32),
        ("greedy", np.bool_),
        ("temperature", np.float32),
        ("top_k", np.int64),
        ("top_p", np.float64),
        ("min_p", np.float32),
        ("repetition", np.float32),
        ("presence", np.float32),
        ("frequency", np.float32),
        ("counted", np.bool_),  # one of the three before is in use
        ("biased", np.bool_),
        ("min_tokens", np.int64),
        ("first", np.int64),  # -1: no token is forced
        ("last", np.int64),
        ("final", np.int64),  # the index of the last token in the budget
        ("logprobs", np.int64),  # -1: none are told
    ]
)
_NONE = -1


@dataclass(slots=True)
class Place:
    """A token to be chosen.

    Attributes:
        key: whose; see :meth:`Sampler.open`.
        index: which token of the output it will be, from 0.
        drafted: tokens assumed between those committed and this place.
    """

    key: int
    index: int
    drafted: tuple[int, ...] = ()


@dataclass(slots=True)
class Sampled:
    """The chosen tokens, and their log-probabilities where asked for.

    Attributes:
        ids: -1 where there is nothing to choose from: the scores are not numbers, or no token is
            allowed.
        logprobs: None where ``ids`` has -1, and for requests that ask for none.
    """

    ids: list[int]
    logprobs: list[TokenLogprobs | None]


class Sampler:
    """Chooses tokens for the requests that are open."""

    def __init__(self, vocabulary: int, device: torch.device | str = "cpu") -> None:
        self.vocabulary, self.device = vocabulary, torch.device(device)
        self._table = np.zeros(8, dtype=_PARAMETERS)
        self._free = list(range(8))
        self._biases: dict[int, tuple[NDArray[np.int64], NDArray[np.float32]]] = {}
        self._ends: dict[int, NDArray[np.int64]] = {}
        self._histories: dict[int, _History] = {}

    def open(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        ends: Collection[int],
        budget: int,
        first: int | None = None,
        last: int | None = None,
        stream: int = 0,
    ) -> int:
        """Take in a request; returns its key, which is given again once it is closed.

        Args:
            prompt: the tokens that count for the repetition penalty from the start.
            ends: the tokens that end the output; forbidden for the first ``min_tokens``.
            budget: the most tokens that the output will have.
            first: the first token of the output, whatever the model scores.
            last: that at the end of the budget.
            stream: which of the outputs with this seed it is.

        Raises:
            RequestError: ``logit_bias`` names a token that there is not.
        """
        if unknown := [token for token in params.logit_bias if token >= self.vocabulary]:
            raise RequestError(
                f"logit_bias names the token {unknown[0]}; those of the model are 0 to "
                f"{self.vocabulary - 1}."
            )
        if not self._free:
            size = len(self._table)
            self._table = np.concatenate((self._table, np.zeros(size, dtype=_PARAMETERS)))
            self._free = list(range(size, 2 * size))
        key = self._free.pop()
        p, vocabulary = params, self.vocabulary
        counted = p.repetition_penalty != 1 or p.presence_penalty != 0 or p.frequency_penalty != 0
        self._table[key] = (
            secrets.randbits(64) if p.seed is None else p.seed % 2**64,
            stream,
            p.greedy,
            1.0 if p.greedy else p.temperature,
            vocabulary if p.top_k < 1 else min(p.top_k, vocabulary),
            p.top_p,
            p.min_p,
            p.repetition_penalty,
            p.presence_penalty,
            p.frequency_penalty,
            counted,
            bool(p.logit_bias),
            p.min_tokens,
            _NONE if first is None else first,
            _NONE if last is None else last,
            budget - 1,
            _NONE if p.logprobs is None else p.logprobs,
        )
        if counted:
            self._histories[key] = history = _History()
            if p.repetition_penalty != 1:
                history.add(dict.fromkeys(prompt), 0)
        if p.logit_bias:
            tokens = np.fromiter(p.logit_bias.keys(), np.int64)
            self._biases[key] = tokens, np.fromiter(p.logit_bias.values(), np.float32)
        if p.min_tokens:
            known = [token for token in ends if token < vocabulary]
            self._ends[key] = np.array(known, dtype=np.int64)
        return key

    def close(self, key: int) -> None:
        """Forget a request."""
        self._histories.pop(key, None)
        self._biases.pop(key, None)
        self._ends.pop(key, None)
        self._free.append(key)

    def commit(self, key: int, tokens: Sequence[int]) -> None:
        """These tokens belong to the output from now on; the penalties count them."""
        if key in self._histories:
            self._histories[key].add(tokens, 1)

    def __call__(
        self, logits_RV: Tensor, places: Sequence[Place], allowed_RW: Tensor | None = None
    ) -> Sampled:
        """Choose a token for each place.

        Args:
            logits_RV: the model's scores; they may be overwritten.
            allowed_RW: int32 on the CPU, bit i of word w set where token 32w + i is allowed; a row
                of -1 allows all.
        """
        indices = np.array([place.index for place in places], dtype=np.int64)
        rows = self._table[[place.key for place in places]]
        told = np.flatnonzero(rows["logprobs"] >= 0)
        logs_LV = _take(logits_RV, told).float().log_softmax(-1) if len(told) else None
        x_RV = logits_RV.float()
        self._add_biases(x_RV, places, np.flatnonzero(rows["biased"]))
        self._penalise(x_RV, places, rows)
        self._forbid_ends(x_RV, places, np.flatnonzero(indices < rows["min_tokens"]))
        if allowed_RW is not None:
            _restrict(x_RV, allowed_RW)
        best_R, ids_R = likeliest(x_RV)
        drawing = np.flatnonzero(~rows["greedy"])
        if len(drawing):
            drawn = self._draw(_take(x_RV, drawing), rows[drawing], indices[drawing])
            ids_R[self._to_device(drawing)] = drawn
        ids = torch.where(best_R.isfinite(), ids_R, _NONE).cpu().numpy()
        ids = _forced(ids, rows["first"], indices == 0)
        ids = _forced(ids, rows["last"], indices == rows["final"])
        logprobs: list[TokenLogprobs | None] = [None] * len(ids)
        if logs_LV is not None:
            for row, found in zip(
                told, _told(logs_LV, ids[told], rows["logprobs"][told]), strict=True
            ):
                logprobs[row] = found
        return Sampled(ids.tolist(), logprobs)

    def _to_device(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values.copy()).to(self.device)

    def _column(self, values: NDArray[Any]) -> Tensor:
        return self._to_device(values[:, None])

    def _add_biases(self, x_RV: Tensor, places: Sequence[Place], which: NDArray[np.intp]) -> None:
        if len(which):
            found = [self._biases[places[row].key] for row in which.tolist()]
            at = self._where(which, [tokens for tokens, _ in found])
            x_RV[at] += self._to_device(np.concatenate([values for _, values in found]))

    def _penalise(self, x_RV: Tensor, places: Sequence[Place], rows: NDArray[np.void]) -> None:
        """The penalties, of the tokens that a row has; the dense version is :func:`penalise`."""
        which = np.flatnonzero(rows["counted"])
        if not len(which):
            return
        found = [
            self._histories[places[row].key].with_drafted(places[row].drafted)
            for row in which.tolist()
        ]
        at = self._where(which, tokens := [tokens for tokens, _ in found])
        counts_C = self._to_device(np.concatenate([counts for _, counts in found]))
        lengths = [len(each) for each in tokens]
        repetition_C, presence_C, frequency_C = (
            self._to_device(rows[name][which].repeat(lengths))
            for name in ("repetition", "presence", "frequency")
        )
        x_RV[at] = penalise(x_RV[at], counts_C, repetition_C, presence_C, frequency_C)

    def _forbid_ends(self, x_RV: Tensor, places: Sequence[Place], which: NDArray[np.intp]) -> None:
        if len(which):
            x_RV[
                self._where(which, [self._ends[places[row].key] for row in which.tolist()])
            ] = -math.inf

    def _where(
        self, rows: NDArray[np.intp], tokens: Sequence[NDArray[np.int64]]
    ) -> tuple[Tensor, Tensor]:
        """The indices of each row's ``tokens``."""
        lengths = [len(each) for each in tokens]
        return self._to_device(rows.repeat(lengths)), self._to_device(np.concatenate(tokens))

    def _draw(self, x_DV: Tensor, rows: NDArray[np.void], indices: NDArray[np.int64]) -> Tensor:
        """One token ``[D]`` of each row, after temperature, top-k, top-p and min-p."""
        if (rows["temperature"] != 1).any():
            x_DV = x_DV.div_(self._column(rows["temperature"]))
        weights_DV = x_DV.softmax(-1)
        limited = rows["top_k"] < self.vocabulary
        if (limited | (rows["top_p"] < 1) | (rows["min_p"] > 0)).any():
            floor_D1 = floors(
                weights_DV, *(self._column(rows[name]) for name in ("top_k", "top_p", "min_p"))
            )
            # A float mask: comparing into bool and masking by it takes six times as long.
            weights_DV *= torch.ge(weights_DV, floor_D1, out=torch.empty_like(weights_DV))
        uniform = uniforms(rows["seed"], rows["stream"], indices)
        return draw(weights_DV, self._column(uniform))


class _History:
    """How often an output has each token that it, or its prompt, has at all."""

    def __init__(self) -> None:
        self._places: dict[int, int] = {}
        self._tokens = np.empty(64, dtype=np.int64)
        self._counts = np.zeros(64, dtype=np.float32)

    def add(self, tokens: Iterable[int], times: int) -> None:
        """Count ``tokens`` so many times more."""
        for token in tokens:
            place = self._places.setdefault(token, len(self._places))
            if place == len(self._tokens):
                self._tokens = np.concatenate((self._tokens, np.empty_like(self._tokens)))
                self._counts = np.concatenate((self._counts, np.zeros_like(self._counts)))
            self._tokens[place] = token
            self._counts[place] += times

    def with_drafted(self, drafted: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The tokens and their counts, as if the output went on with ``drafted``."""
        size = len(self._places)
        tokens, counts = self._tokens[:size], self._counts[:size]
        if not drafted:
            return tokens, counts
        new = [token for token in dict.fromkeys(drafted) if token not in self._places]
        places = {token: size + i for i, token in enumerate(new)}
        tokens = np.concatenate((tokens, np.array(new, dtype=np.int64)))
        counts = np.concatenate((counts, np.zeros(len(new), dtype=np.float32)))
        for token in drafted:
            counts[self._places.get(token, places.get(token, 0))] += 1
        return tokens, counts


def penalise(
    scores: Tensor, counts: Tensor, repetition: Tensor, presence: Tensor, frequency: Tensor
) -> Tensor:
    """The scores of tokens that the prompt or the output has; all of one shape.

    Positive ones are divided and negative ones multiplied by ``repetition`` (Keskar et al. 2019,
    section 4.1). Then ``counts``, how often the output has the token, takes ``frequency`` from
    them each time, and ``presence`` once (the API of OpenAI).
    """
    scores = torch.where(scores > 0, scores / repetition, scores * repetition)
    return scores - counts * frequency - (counts > 0) * presence


def _take(x_RV: Tensor, rows: NDArray[np.intp]) -> Tensor:
    """These rows; all of them without a copy."""
    return x_RV if len(rows) == len(x_RV) else x_RV[torch.from_numpy(rows).to(x_RV.device)]


def _restrict(x_RV: Tensor, allowed_RW: Tensor) -> None:
    """Put what a mask forbids at -inf; tokens behind its end are forbidden too."""
    words = allowed_RW.numpy()
    which = np.flatnonzero((words != -1).any(1))
    if not len(which):
        return
    octets = np.ascontiguousarray(words[which]).view(np.uint8)
    allowed = np.unpackbits(octets, axis=1, count=x_RV.shape[1], bitorder="little")
    forbidden_RV = torch.from_numpy(allowed).to(x_RV.device).logical_not()
    if len(which) == len(x_RV):
        x_RV.masked_fill_(forbidden_RV, -math.inf)
    else:
        rows = torch.from_numpy(which).to(x_RV.device)
        x_RV[rows] = x_RV[rows].masked_fill_(forbidden_RV, -math.inf)


def _forced(
    ids: NDArray[np.int64], tokens: NDArray[np.int64], when: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """``ids`` with those of ``tokens`` that there are in their places ``when`` it is time."""
    return np.where(when & (tokens >= 0), tokens, ids)


def _told(
    logs_LV: Tensor, ids: NDArray[np.int64], counts: NDArray[np.int64]
) -> list[TokenLogprobs | None]:
    """The log-probabilities of the chosen tokens, and of the ``counts`` most likely ones."""
    chosen = torch.from_numpy(ids).to(logs_LV.device).clamp_min(0)[:, None]
    own = logs_LV.gather(1, chosen).squeeze(1).tolist()
    most = min(int(counts.max()), logs_LV.shape[1])
    tops: list[tuple[tuple[int, float], ...]] = [()] * len(own)
    if most:
        values, tokens = (x.tolist() for x in largest(logs_LV, most))
        tops = [tuple(zip(*pair, strict=True)) for pair in zip(tokens, values, strict=True)]
    return [
        TokenLogprobs(token, log, top[:count]) if token >= 0 else None
        for token, log, top, count in zip(ids.tolist(), own, tops, counts.tolist(), strict=True)
    ]
