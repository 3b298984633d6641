"""What stays in memory from step to step: weights, masters, gradients, the optimizer's state.

Sizes per number of a trained weight: AdamW two float32 moments (Loshchilov and Hutter 2019); in 8
bits two bytes and two float32 scales for 256 numbers (Dettmers et al. 2022); Adafactor one number
for each row and column of a matrix (Shazeer and Stern 2018); Muon one float32 momentum for hidden
matrices. In 16 bits there are float32 masters and gradients beside (Micikevicius et al. 2018).
"""

from dataclasses import dataclass

from hone.plan.trained import SCORES, Numbers

_FLOAT32 = 4
# Smaller weights keep float32 state with an 8-bit optimizer; numbers of one block.
SMALLEST, BLOCK = 4096, 256
# NF4: numbers of a block, and blocks whose magnitudes share one (Dettmers et al. 2023, section 3).
NF4_BLOCK, NF4_NESTED = 64, 256
# Numbers that Muon orthogonalises at a time.
TOGETHER = 2**24


@dataclass(frozen=True, slots=True)
class States:
    """Bytes on the device, and in the host's memory.

    Attributes:
        weights: in the dtype that is computed in, quantized codes included.
        constants: of quantization.
        adapters: of LoRA, in the dtype that is computed in.
        masters: float32 copies.
        gradients: that sum up micro-batches, in float32.
        optimizer: its state.
        ema: the mean of the weights.
        host: what of the optimizer's state is in the host's memory.
        step: most bytes that the update takes for itself.
    """

    weights: int
    constants: int
    adapters: int
    masters: int
    gradients: int
    optimizer: int
    ema: int
    host: int
    step: int


@dataclass(frozen=True, slots=True)
class _Tensor:
    shape: tuple[int, ...]
    count: int
    hidden: bool


def states(numbers: Numbers, optimizer: str, ema: bool, cuda: bool) -> States:
    """Those of a job; on a CPU a paged state is where everything is."""
    c = numbers.size
    weights = constants = 0
    for weight in numbers.weights:
        if weight.name in numbers.quantized:
            codes, own = nf4_bytes(weight.count)
            weights += codes
            constants += own
        else:
            weights += c * weight.count
    trained = [
        _Tensor(w.shape, w.count, w.kind == "linear" and _is_hidden(w.module))
        for w in numbers.weights
        if w.name in numbers.trained
    ]
    adapters = [_Tensor(shape, shape[0] * shape[1], False) for shape in numbers.factors]
    every = trained + adapters
    total = sum(tensor.count for tensor in every)
    state, step = _optimizer_state(every, optimizer)
    paged = optimizer.startswith("paged_") and cuda
    if optimizer.startswith("paged_"):
        step = max(step, _visit(optimizer) if cuda else 0)
    return States(
        weights=weights,
        constants=constants,
        adapters=c * sum(tensor.count for tensor in adapters),
        masters=_FLOAT32 * total if c != _FLOAT32 else 0,
        gradients=_FLOAT32 * total,
        optimizer=0 if paged else state,
        ema=_FLOAT32 * total if ema else 0,
        host=state if paged else 0,
        step=step,
    )


def nf4_bytes(count: int, double: bool = True) -> tuple[int, int]:
    """Bytes of the codes of so many weights in NF4, and of their constants."""
    blocks = -(count // -NF4_BLOCK)
    codes = -(count // -2)
    if not double:
        return codes, _FLOAT32 * blocks
    nested = -(blocks // -NF4_NESTED)
    # A byte for each block, a float32 for each block of those; the levels, and the mean.
    return codes, blocks + _FLOAT32 * (nested + 256 + 1)


def int8_bytes(rows: int, columns: int) -> tuple[int, int]:
    """Bytes of the codes of a matrix in int8, and of its constants: a scale for each output."""
    return rows * columns, 2 * rows


def _optimizer_state(tensors: list[_Tensor], name: str) -> tuple[int, int]:
    """Bytes of the state, and the most that the update needs for itself."""
    kind = name.removeprefix("paged_")
    if kind == "adamw":
        return 2 * _FLOAT32 * sum(tensor.count for tensor in tensors), 0
    if kind == "adafactor":
        state = sum(_factored(tensor.shape) for tensor in tensors)
        return _FLOAT32 * state, _FLOAT32 * max((t.count for t in tensors), default=0)
    if kind == "adamw_8bit":
        state = 0
        for tensor in tensors:
            if tensor.count < SMALLEST:
                state += 2 * _FLOAT32 * tensor.count
            else:
                blocks = -(tensor.count // -BLOCK)
                state += 2 * blocks * (BLOCK + _FLOAT32)
        return state, 10 * _FLOAT32 * 2**16
    state = step = 0
    shapes: dict[tuple[int, int], int] = {}
    for tensor in tensors:
        if tensor.hidden:
            state += _FLOAT32 * tensor.count
            rows, columns = sorted(tensor.shape)
            shapes[rows, columns] = shapes.get((rows, columns), 0) + 1
        else:
            state += 2 * _FLOAT32 * tensor.count
    for (rows, columns), count in shapes.items():
        together = min(count, max(1, TOGETHER // (rows * columns)))
        wide, square = together * rows * columns, together * rows * rows
        # The blended gradient, its normalised form, the result; Gram matrices and their powers.
        step = max(step, _FLOAT32 * (3 * wide + 2 * square), _FLOAT32 * (2 * wide + 5 * square))
    return state, step


def _factored(shape: tuple[int, ...]) -> int:
    if len(shape) < 2:
        return shape[0]
    *stack, rows, columns = shape
    copies = 1
    for size in stack:
        copies *= size
    return copies * (rows + columns)


def _visit(name: str) -> int:
    """Bytes of a part of a paged state that visits the device."""
    part = 2**24
    return part * (8 * _FLOAT32 if "8bit" in name else 2 * _FLOAT32)


def _is_hidden(module: str) -> bool:
    return module.rpartition(".")[2] not in SCORES
