"""Memory over time of a computation that is differentiated, operation by operation.

A :class:`Tape` lists what each operation reads, makes and keeps for the backward pass. Walking it
forwards and backwards, as reverse-mode differentiation does (Griewank and Walther 2008, chapter 4),
gives the most bytes that are held at one time. A part that repeats is walked once: its
:class:`Span` says what it adds, and spans follow one another by addition.

All sizes are bytes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

# How selective recomputation treats an operation (``hone.models.recompute``): it is computed again
# inside and its result kept, or its result is computed again too.
Piece = Literal["", "inside", "cheap"]
# What is kept inside of a piece all the same: less than this share of its input.
_SMALL = 32


@dataclass(slots=True, eq=False)
class Buffer:
    """One tensor.

    Attributes:
        size: its bytes; 0 for a view of another.
        wanted: a gradient flows through it.
        gradient: bytes of its gradient.
    """

    size: int
    wanted: bool = True
    gradient: int = -1

    def __post_init__(self) -> None:
        if self.gradient < 0:
            self.gradient = self.size


@dataclass(slots=True, eq=False)
class _Op:
    reads: tuple[Buffer, ...]
    out: Buffer
    keeps: tuple[Buffer, ...]
    extra: int
    work: int
    back: int
    weights: int
    same: bool
    piece: Piece


@dataclass(frozen=True, slots=True)
class Span:
    """What a part of the computation does to memory, relative to when it begins.

    The part owns its input: where it keeps none of it, the input is gone after it.

    Attributes:
        quiet: most bytes in a forward pass that keeps nothing for a backward pass.
        ahead: most bytes in a forward pass.
        kept: bytes more after the forward pass than before.
        back: most bytes in the backward pass.
        freed: bytes more after the backward pass than before it; below 0 in general.
        entry, exit: sizes of what enters and leaves.
        weights: gradients of weights that are made.
    """

    quiet: int
    ahead: int
    kept: int
    back: int
    freed: int
    entry: int
    exit: int
    weights: int = 0

    def recomputed(self) -> "Span":
        """The same, keeping its input only (Chen et al. 2016, section 4.1): the backward pass
        begins with another forward pass.
        """
        again = self.kept - self.exit  # its result is not needed a second time
        return Span(
            quiet=self.quiet,
            ahead=self.quiet,
            kept=self.exit,
            back=max(self.ahead, again + self.back),
            freed=again + self.freed,
            entry=self.entry,
            exit=self.exit,
            weights=self.weights,
        )


@dataclass(slots=True)
class Tape:
    """Operations in the order in which they are computed.

    Attributes:
        entry: what the part reads first.
        keeps_gradients: gradients of weights stay where they are made until the step is over;
            otherwise they are added to a sum right away.
    """

    entry: Buffer
    keeps_gradients: bool = False
    ops: list[_Op] = field(default_factory=list)

    def op(
        self,
        *reads: Buffer,
        size: int,
        keeps: Iterable[Buffer] = (),
        keeps_out: bool = False,
        extra: int = 0,
        work: int = 0,
        back: int = 0,
        weights: int = 0,
        same: bool = False,
        piece: Piece = "",
        gradient: int = -1,
    ) -> Buffer:
        """Note one operation; returns what it makes.

        Args:
            reads: its inputs.
            size: bytes of its output.
            keeps: which tensors it saves for the backward pass, its inputs or earlier ones.
            keeps_out: it saves its output too.
            extra: bytes that it saves besides.
            work: temporary bytes, forwards.
            back: temporary bytes backwards, besides the gradients of its inputs.
            weights: bytes of the gradients of its weights.
            same: the gradient of its output is that of every input: nothing is made for them.
            piece: what selective recomputation makes of it.
            gradient: bytes of the gradient of its output, where that is a view of size 0.
        """
        wanted = bool(weights) or any(read.wanted for read in reads)
        out = Buffer(size, wanted, gradient)
        kept = (*keeps, out) if keeps_out else tuple(keeps)
        if not wanted:
            kept, extra, work, piece = (), 0, work + extra, ""
        self.ops.append(_Op(reads, out, kept, extra, work, back, weights, same, piece))
        return out

    def span(self, selective: bool = False) -> Span:
        """Walk the operations; the last one's output is what leaves."""
        saved = [_Saved(op.keeps, op.extra, 0) for op in self.ops]
        if selective:
            saved = self._selected()
        nothing = [_Saved((), 0, 0)] * len(self.ops)
        quiet, _ = self._forwards(nothing)
        ahead, kept = self._forwards(saved)
        back, freed, weights = self._backwards(saved)
        exit_ = self.ops[-1].out
        if not exit_.wanted:  # nothing comes back
            back = freed = 0
        return Span(quiet, ahead, kept, back, freed, self.entry.size, exit_.size, weights)

    def _selected(self) -> "list[_Saved]":
        """What is saved when pieces are computed again."""
        makers = {id(op.out): op for op in self.ops if op.piece == "cheap"}
        saved = []
        for op in self.ops:
            asked = [*op.keeps, *(op.reads if op.piece else ())]
            asked = [buffer for buffer in dict.fromkeys(asked) if buffer is not op.out]
            again = [buffer for buffer in asked if id(buffer) in makers]
            keeps = [buffer for buffer in asked if id(buffer) not in makers]
            for made in again:  # what it is made of is kept in its place
                keeps += [read for read in makers[id(made)].reads if read not in keeps]
            recomputed = sum(made.size + makers[id(made)].work for made in again)
            if op.out in op.keeps and not op.piece:
                keeps.append(op.out)
            extra = op.extra
            if op.piece and op.extra * _SMALL > op.reads[0].gradient:
                recomputed += op.extra + op.out.size
                extra = 0
            saved.append(_Saved(tuple(keeps), extra, recomputed))
        return saved

    def _forwards(self, saved: "list[_Saved]") -> tuple[int, int]:
        exit_, readers = self.ops[-1].out, dict[int, int]()
        kept = {id(buffer) for each in saved for buffer in each.keeps}
        for op in self.ops:
            for read in op.reads:
                readers[id(read)] = readers.get(id(read), 0) + 1
        level = most = 0
        for op, each in zip(self.ops, saved, strict=True):
            level += op.out.size
            most = max(most, level + op.extra + op.work)
            level += each.extra
            for read in op.reads:
                readers[id(read)] -= 1
                if not readers[id(read)] and id(read) not in kept and read is not exit_:
                    level -= read.size
        return most, level

    def _backwards(self, saved: "list[_Saved]") -> tuple[int, int, int]:
        savers: dict[int, int] = {}
        for each in saved:
            for buffer in each.keeps:
                savers[id(buffer)] = savers.get(id(buffer), 0) + 1
        # Which gradient each tensor has, and how many tensors have the same one.
        exit_ = self.ops[-1].out
        gradients: dict[int, Buffer] = {id(exit_): Buffer(exit_.size)}
        users: dict[int, int] = {id(gradients[id(exit_)]): 1}
        level = most = weights = 0
        for op, each in zip(reversed(self.ops), reversed(saved), strict=True):
            gradient = gradients.pop(id(op.out), None)
            if not op.out.wanted or gradient is None:
                continue
            made = [read for read in op.reads if read.wanted]
            fresh = 0 if op.same else sum(read.gradient for read in made)
            most = max(most, level + fresh + op.back + op.weights + each.recomputed)
            weights += op.weights
            level += fresh + (op.weights if self.keeps_gradients else 0) - each.extra
            for buffer in each.keeps:
                savers[id(buffer)] -= 1
                if not savers[id(buffer)]:
                    level -= buffer.size
            for read in made:
                new = gradient if op.same else Buffer(read.gradient)
                users[id(new)] = users.get(id(new), 0) + 1
                old = gradients.setdefault(id(read), new)
                if old is new:
                    continue
                # Added to the one that is there, in place unless another tensor has it too.
                if users[id(old)] > 1:
                    users[id(old)] -= 1
                    gradients[id(read)] = both = Buffer(read.gradient)
                    users[id(both)] = 1
                    level += read.gradient
                    most = max(most, level)
                level -= _drop(users, new)
            level -= _drop(users, gradient)
        return most, level, weights


@dataclass(frozen=True, slots=True)
class _Saved:
    """What stays of one operation, and what is computed again for its backward pass."""

    keeps: tuple[Buffer, ...]
    extra: int
    recomputed: int


def _drop(users: dict[int, int], gradient: Buffer) -> int:
    """One user of ``gradient`` less; the bytes that are free now."""
    left = users.get(id(gradient), 1) - 1
    users[id(gradient)] = left
    return 0 if left else gradient.size


def chain(spans: Sequence[Span]) -> Span:
    """Spans one after another, as one."""
    quiet = ahead = level = still = 0
    for span in spans:
        quiet = max(quiet, still + span.quiet)
        ahead = max(ahead, level + span.ahead)
        level += span.kept
        # Nothing is kept: only what has just been made is there, beside the first input.
        still = span.exit
    back = freed = weights = 0
    for span in reversed(spans):
        back = max(back, freed + span.back)
        freed += span.freed
        weights += span.weights
    return Span(quiet, ahead, level, back, freed, spans[0].entry, spans[-1].exit, weights)
