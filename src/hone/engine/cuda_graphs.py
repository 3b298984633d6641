"""Blocks whose launches are recorded: a GPU repeats them without being told each one.

Attention stays outside, since the cache's tables change from pass to pass: at each attention one
recording ends and the next begins.

Shapes: N rows, E hidden size, C width of queries, keys and values, H width of the heads' outputs.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from hone.engine.compiled_blocks import Attend
from hone.kernels import AttentionRule
from hone.kernels.attention import Bias
from hone.models.blocks import Step
from hone.models.context import Context


class _Piece(NamedTuple):
    """A recording, and the attention that follows it."""

    graph: torch.cuda.CUDAGraph
    layer: int
    qkv_NC: Tensor  # noqa: N815 - where the recording leaves it
    out_NH: Tensor  # noqa: N815 - where the next one looks for it


class GraphedBlocks:
    """The blocks of a body for passes of one number of rows, on a GPU."""

    @torch.inference_mode()
    def __init__(self, layers: Sequence[nn.Module], x_NE: Tensor, head_dim: int) -> None:
        """Record all launches; ``x_NE`` says how many rows, and of which dtype.

        Raises:
            RuntimeError: a block does what cannot be recorded.
        """
        self._head_dim = head_dim
        self._pieces: list[_Piece] = []
        self._x_NE = x_NE.clone()
        stream = torch.cuda.Stream(x_NE.device)
        stream.wait_stream(torch.cuda.current_stream(x_NE.device))
        with torch.cuda.stream(stream):
            # Libraries take their memory when they are first called, which is not to be recorded.
            self._recording = False
            self._through(layers)
            self._pieces.clear()
            torch.cuda.synchronize(x_NE.device)
            self._pool = torch.cuda.graph_pool_handle()
            self._recording = True
            self._begin()
            try:
                self._out_NE = self._through(layers)
            except BaseException:
                with suppress(RuntimeError):
                    self._graph.capture_end()
                raise
            self._graph.capture_end()
        torch.cuda.current_stream(x_NE.device).wait_stream(stream)

    def __call__(self, x_NE: Tensor, attend: Attend) -> Tensor:
        """What comes out of the last block ``[N, E]``; the next call overwrites it."""
        self._x_NE.copy_(x_NE)
        for piece in self._pieces:
            piece.graph.replay()
            piece.out_NH.copy_(attend(piece.layer, piece.qkv_NC))
        self._graph.replay()
        return self._out_NE

    def attend(
        self,
        layer: int,
        qkv_NC: Tensor,
        rotary: Tensor | None,
        rule: AttentionRule,
        bias: Bias | None,
    ) -> Tensor:
        """See :class:`hone.models.Context`: here one recording ends and the next begins."""
        if self._recording:
            self._graph.capture_end()
        out_NH = qkv_NC.new_zeros(len(qkv_NC), rule.heads * self._head_dim)
        if self._recording:
            self._pieces.append(_Piece(self._graph, layer, qkv_NC, out_NH))
            self._begin()
        return out_NH

    def _through(self, layers: Sequence[nn.Module]) -> Tensor:
        x_NE, step = self._x_NE, Step(cast(Context, self))
        for block in layers:
            x_NE = block(x_NE, step)
        return x_NE

    def _begin(self) -> None:
        self._graph = torch.cuda.CUDAGraph()
        # Other threads of the process, e.g. one that copies weights, are nobody's business here.
        self._graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
