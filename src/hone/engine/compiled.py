"""The decode step with compiled blocks, where that pays.

A pass in which every sequence reads one token is padded to a bucket of rows, so that few shapes are
compiled. Which bucket is worth it is measured when the engine is made; without a compiler, or in
exact mode, the step stays as it is.

Shapes: N rows, E hidden size.
"""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from hone.engine.compiled_blocks import Attend, BlockCompiler, bare_block
from hone.engine.options import CompileChoice
from hone.engine.paged import PagedCache, Row
from hone.models import CausalLM, Seq2SeqLM
from hone.models.blocks import Block
from hone.models.stack import Stack

_log = logging.getLogger("hone.engine")
# Less is noise.
_LEAST_GAIN = 0.05
_TURNS = 9
# Compiled sums have another order; more than this share of the largest number is an error.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}


class Blocks(Protocol):
    """All blocks of a body, for one number of rows."""

    def __call__(self, x_NE: Tensor, attend: Attend) -> Tensor:
        """``[N, E]`` to ``[N, E]``."""


def compile_decoder(
    model: CausalLM | Seq2SeqLM,
    cache: PagedCache,
    choice: CompileChoice,
    most_rows: int,
) -> "CompiledDecoder | None":
    """The compiled decoder of ``model`` for passes of up to ``most_rows`` rows.

    Args:
        choice: "on" for all buckets, "auto" for those that are faster than what they replace.

    Returns:
        None with a warning where it cannot be, and where it is not worth it.
    """
    if choice == "off":
        return None
    obstacle = _obstacle(model, cache)
    if obstacle is not None:
        _log.log(
            logging.WARNING if choice == "on" else logging.INFO,
            "The decode step is not compiled: %s.",
            obstacle,
        )
        return None
    try:
        compiled = CompiledDecoder(model.decoder, cache, buckets(most_rows))
        compiled.choose(measured=choice == "auto")
    except Exception as error:  # noqa: BLE001 - a compiler can fail in any way, and none matters
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        _log.warning("The decode step cannot be compiled (%s); it runs as it is.", reason)
        return None
    return compiled if compiled.used else None


def buckets(most_rows: int) -> tuple[int, ...]:
    """The powers of two up to the first that holds ``most_rows``."""
    return tuple(1 << power for power in range((most_rows - 1).bit_length() + 1))


class CompiledDecoder:
    """A body whose blocks are compiled for some numbers of rows."""

    def __init__(self, body: Stack, cache: PagedCache, counts: Sequence[int]) -> None:
        """Compile.

        Args:
            body: its weights may be written to later, but not exchanged.
            counts: the buckets, ascending.

        Raises:
            Exception: the compiler's.
            RuntimeError: what is compiled computes something else.
        """
        self._body, self._cache = body, cache
        self._rules = [block.self_attn.rule for block in body.layers if isinstance(block, Block)]
        self._local = [block.self_attn.local for block in body.layers if isinstance(block, Block)]
        self._device = body.embed_tokens.weight.device
        self._blocks: dict[int, Blocks] = {}
        make = self._maker()
        for rows in counts:
            self._blocks[rows] = make(rows)
            self._check(rows)
        self._bucket_of = [0]

    @property
    def used(self) -> list[int]:
        """The buckets that passes go to, ascending."""
        return sorted(set(self._bucket_of) - {0})

    def choose(self, measured: bool) -> None:
        """Say which numbers of rows are padded to which bucket.

        Args:
            measured: only where a padded pass takes less time than a plain one.
        """
        counts = list(self._blocks)
        times = {rows: self._seconds(rows) for rows in counts} if measured else {}
        smaller = 0
        for bucket in counts:
            for rows in range(smaller + 1, bucket + 1):
                pays = True
                if measured:
                    plain, compiled = times[bucket]
                    if smaller:  # between two buckets a plain pass takes a time between theirs
                        share = (rows - smaller) / (bucket - smaller)
                        plain = times[smaller][0] + share * (plain - times[smaller][0])
                    pays = compiled < plain * (1 - _LEAST_GAIN)
                self._bucket_of.append(bucket if pays else 0)
            smaller = bucket

    def __call__(self, ids_N: Tensor, positions_N: Tensor) -> Tensor | None:
        """The hidden states ``[N, E]`` of a pass that the cache was told of; None where a plain
        pass is the better one. Every sequence has one token.
        """
        rows = len(ids_N)
        bucket = self._bucket_of[rows] if rows < len(self._bucket_of) else 0
        return self._run(bucket, ids_N, positions_N)[:rows] if bucket else None

    def _run(self, bucket: int, ids_N: Tensor, positions_N: Tensor) -> Tensor:
        body, cache, missing = self._body, self._cache, bucket - len(ids_N)
        if missing:
            ids_N, positions_N = (functional.pad(x_N, (0, missing)) for x_N in (ids_N, positions_N))
        x_NE = body.embed(ids_N, positions_N)
        step = body.step(cache, positions_N, x_NE.dtype)

        def attend(layer: int, qkv_NC: Tensor) -> Tensor:
            rotary = step.local_rotary if self._local[layer] else step.rotary
            return cache.attend(layer, qkv_NC, rotary, self._rules[layer], step.bias)

        x_NE = self._blocks[bucket](x_NE, attend)
        return x_NE if body.norm is None else body.norm(x_NE)

    def _maker(self) -> Callable[[int], Blocks]:
        if self._device.type != "cuda":
            return BlockCompiler(self._body)
        from hone.engine.cuda_graphs import GraphedBlocks

        config, weight = self._body.config, self._body.embed_tokens.weight
        layers = list(self._body.layers)
        return lambda rows: GraphedBlocks(
            layers, weight.new_zeros(rows, config.hidden_size), config.head_dim
        )

    def _sample(self, rows: int) -> tuple[Tensor, Tensor]:
        """A pass of ``rows`` sequences of one token, all in block 0, which is nobody's."""
        self._cache.begin([Row(table=[0], held=0, new=1) for _ in range(rows)])
        ids_N = torch.arange(rows, device=self._device) % self._body.config.vocab_size
        return ids_N, self._cache.positions().to(self._device)

    @torch.inference_mode()
    def _check(self, rows: int) -> None:
        """Raises RuntimeError where the compiled blocks compute something else."""
        pass_ = self._sample(rows)
        wanted, found = self._body(*pass_, self._cache).float(), self._run(rows, *pass_).float()
        most = _TOLERANCE[self._body.embed_tokens.weight.dtype] * wanted.abs().max()
        if not bool((wanted - found).abs().max() <= most):
            raise RuntimeError("what was compiled computes something else")

    @torch.inference_mode()
    def _seconds(self, rows: int) -> tuple[float, float]:
        """The least seconds of a plain and of a compiled pass, taken in turn."""
        ids_N, positions_N = self._sample(rows)
        plain = partial(self._body, ids_N, positions_N, self._cache)
        compiled = partial(self._run, rows, ids_N, positions_N)
        turns = [(self._time(plain), self._time(compiled)) for _ in range(_TURNS)]
        return min(first for first, _ in turns), min(second for _, second in turns)

    def _time(self, work: Callable[[], object]) -> float:
        start = time.perf_counter()
        work()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - start


def _obstacle(model: CausalLM | Seq2SeqLM, cache: PagedCache) -> str | None:
    """Why a model's decode step is not compiled."""
    config = model.config
    if cache.exact:
        return "compiled code rounds otherwise, and this engine is exact"
    if config.mixer != "attention" or config.encoder is not None or config.experts is not None:
        return "its body has states, a source or experts"
    if model.device.type == "cuda":
        return None
    for layer, block in enumerate(model.decoder.layers):
        bare = bare_block(config, layer)
        if [type(module) for module in block.modules()] != [type(x) for x in bare.modules()]:
            return "it has quantized or adapted layers"
    return None
