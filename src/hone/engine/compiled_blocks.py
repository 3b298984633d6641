"""Blocks compiled for one number of rows, the code of a kind of block shared by all its layers.

PyTorch's inductor (Ansel et al. 2024, section 4) gets the operations of one block, with the weights
as inputs, and attention as an operation that it does not look into: the cache's tables change from
pass to pass. Its guarded entry, ``torch.compile``, costs as much per call as a small block gains.

Shapes: N rows, E hidden size, C width of queries, keys and values, H width of the heads' outputs.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import local
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.library import Library, register_fake

from hone.kernels.linear import adjoin, joined
from hone.models import ModelConfig
from hone.models.blocks import Step
from hone.models.context import Context
from hone.models.meta import without_memory
from hone.models.stack import Stack, make_block

# Attention of a layer: its number and the queries, keys and values [N, C] to [N, H].
Attend = Callable[[int, Tensor], Tensor]
Code = Callable[..., Any]
# What a kind of block is known by: the names, shapes and dtypes of its weights.
Kind = tuple[tuple[str, torch.Size, torch.dtype], ...]


# Where inductor keeps code; it knows no other way to be told.
_PLACE = "TORCHINDUCTOR_CACHE_DIR"


class _Joined(nn.Module):
    """Stands for a layer that is computed together with others; the first has all weights."""

    def __init__(self, weight: bool, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0, device="meta")) if weight else None
        self.bias = nn.Parameter(torch.empty(0, device="meta")) if bias else None

    @staticmethod
    def joint_product(x_NE: Tensor, modules: Sequence[nn.Module]) -> Tensor:
        """See :func:`hone.kernels.project`."""
        biases = cast(list[Tensor], [layer.bias for layer in modules if layer.bias is not None])
        weight = cast(Tensor, modules[0].weight)
        return nn.functional.linear(x_NE, weight, torch.cat(biases) if biases else None)


class _Traced:
    """A context whose attention is one operation, whatever the layer."""

    def __init__(self, width: int) -> None:
        self._width = width

    def attend(self, layer: int, qkv_NC: Tensor, *settings: object) -> Tensor:
        """The operation, by its name."""
        return cast(Tensor, torch.ops.hone.attend(qkv_NC, self._width))


class _Here(local):
    """What attention is in the block that this thread computes."""

    attend: Callable[[Tensor], Tensor]


_here = _Here()
_library = Library("hone", "FRAGMENT")
_library.define("attend(Tensor qkv, int width) -> Tensor")
_library.impl("attend", lambda qkv_NC, width: _here.attend(qkv_NC), "CompositeExplicitAutograd")


def _attended(qkv_NC: Tensor, width: int) -> Tensor:
    return qkv_NC.new_empty(len(qkv_NC), width)


register_fake("hone::attend", _attended, lib=_library)


class CompiledBlocks:
    """The blocks of a body for passes of one number of rows."""

    def __init__(self, layers: "list[tuple[Code, list[Tensor]]]") -> None:
        """Take the code of each layer, and its weights."""
        self._layers = layers

    def __call__(self, x_NE: Tensor, attend: Attend) -> Tensor:
        """What comes out of the last block, ``[N, E]``."""
        for layer, (code, weights) in enumerate(self._layers):
            _here.attend = lambda qkv_NC, layer=layer: attend(layer, qkv_NC)  # type: ignore[misc]
            (x_NE,) = code(*weights, x_NE)
        return x_NE


class BlockCompiler:
    """Compiles the blocks of one body."""

    def __init__(self, body: Stack) -> None:
        """Bring weights that are read together side by side, where they do not lie so."""
        self._config = body.config
        self._templates: dict[Kind, nn.Module] = {}
        self._layers = [self._weights(block, layer) for layer, block in enumerate(body.layers)]
        self._device = body.embed_tokens.weight.device
        self._dtype = body.embed_tokens.weight.dtype

    @torch.no_grad()
    def __call__(self, rows: int) -> CompiledBlocks:
        """Code for so many rows; from the disk where it was compiled before.

        Raises:
            Exception: whatever the compiler, or the C++ compiler that it calls, fails with.
        """
        codes: dict[Kind, Code] = {}
        layers = []
        for weights in self._layers:
            kind = _kind(weights)
            if kind not in codes:
                codes[kind] = self._compile(self._templates[kind], weights, rows)
            layers.append((codes[kind], list(weights.values())))
        return CompiledBlocks(layers)

    def _compile(self, template: nn.Module, weights: dict[str, Tensor], rows: int) -> Code:
        width = self._config.num_attention_heads * self._config.head_dim
        step = Step(cast(Context, _Traced(width)))

        def block(*inputs: Tensor) -> tuple[Tensor]:
            *values, x_NE = inputs
            named = dict(zip(weights, values, strict=True))
            return (functional_call(template, named, (x_NE, step)),)

        size = self._config.hidden_size
        x_NE = torch.zeros(rows, size, dtype=self._dtype, device=self._device)
        # Code is only kept on disk where the compiler may ask about shapes, though all are fixed.
        fake = FakeTensorMode(shape_env=ShapeEnv())
        inputs: list[Any] = [
            fake.from_tensor(x, static_shapes=True) for x in (*weights.values(), x_NE)
        ]
        graph = make_fx(block)(*inputs)
        # One process: a server that is told to stop leaves no compiler behind.
        with kept_on_disk():
            code = torch._inductor.compile(graph, inputs, options={"compile_threads": 1})
        return cast(Code, code)

    def _weights(self, block: nn.Module, layer: int) -> dict[str, Tensor]:
        """The weights of a block by their names in its template, which is noted."""
        template = bare_block(self._config, layer)
        weights = {name: weight.detach() for name, weight in block.named_parameters()}
        names = {module: name for name, module in block.named_modules()}
        for module in block.modules():
            for group in getattr(module, "joint_products", ()):
                linears = [layer for layer in group if isinstance(layer, nn.Linear)]
                values = [linear.weight for linear in linears]
                if joined(values).data_ptr() != values[0].data_ptr():
                    adjoin(linears)
                for number, linear in enumerate(linears):
                    name = names[linear]
                    del weights[f"{name}.weight"]
                    stand_in = _Joined(weight=number == 0, bias=linear.bias is not None)
                    parent, _, child = name.rpartition(".")
                    setattr(template.get_submodule(parent), child, stand_in)
                weights[f"{names[linears[0]]}.weight"] = joined([x.weight for x in linears])
        self._templates.setdefault(_kind(weights), template)
        return weights


def bare_block(config: ModelConfig, layer: int) -> nn.Module:
    """Block number ``layer`` without memory."""
    with without_memory():
        return make_block(config, layer).eval()


def _kind(weights: dict[str, Tensor]) -> Kind:
    return tuple((name, weight.shape, weight.dtype) for name, weight in weights.items())


@contextmanager
def kept_on_disk() -> Iterator[None]:
    """The compiler keeps what it makes among the user's files, unless told where else."""
    # Importing it writes its own choice, a folder that a restart empties, where a user's would be.
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    before = os.environ.get(_PLACE)
    if before in (None, default_cache_dir()):
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        os.environ[_PLACE] = str(home / "hone" / "compiled")
    try:
        yield
    finally:
        if before is None:
            del os.environ[_PLACE]
        else:
            os.environ[_PLACE] = before
