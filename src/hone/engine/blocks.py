"""Blocks of the key/value cache: who holds them, what they remember, which is given up first.

A block has room for a fixed number of positions. Sequences that begin alike share the blocks of
their common beginning, found by a hash of a block's tokens and of all that come before it. A block
that nobody holds keeps what it remembers until its room is needed; the one unused for longest goes
first (Kwon et al. 2023, sections 4.3 and 4.4; Zheng et al. 2024, section 3).
"""

import hashlib
import heapq
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence


class BlockPool:
    """Blocks 1 to ``count``; block 0 is nobody's, and fills up tables.

    Attributes:
        size: positions of a block; 0 for one block of any length.
        queries, hits: tokens that were looked up, and those of them that were found.
    """

    def __init__(self, count: int, size: int, sharing: bool = True) -> None:
        """All blocks are free; without ``sharing`` none remembers anything."""
        self.count, self.size = count, size
        self.sharing = sharing and size > 0
        self.queries = self.hits = 0
        self._holders = [0] * (count + 1)
        # Low numbers first, so that what is in use lies close together in memory.
        self._empty = list(range(1, count + 1))
        self._remembering: OrderedDict[int, None] = OrderedDict()  # held by nobody; oldest first
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}
        self._forgotten = 0  # times; what was begun before is found by none that begins after

    @property
    def free(self) -> int:
        """How many blocks can be had."""
        return len(self._empty) + len(self._remembering)

    def blocks_for(self, positions: int) -> int:
        """How many blocks so many positions need."""
        return -(-positions // self.size) if self.size else int(positions > 0)

    def allocate(self, count: int) -> list[int]:
        """Blocks that remember nothing; there must be as many free ones."""
        assert count <= self.free, "whoever allocates asks for room first"
        found = []
        for _ in range(count):
            if self._empty:
                block = heapq.heappop(self._empty)
            else:
                block, _ = self._remembering.popitem(last=False)
                del self._block_of[self._hash_of.pop(block)]
            self._holders[block] = 1
            found.append(block)
        return found

    def hold(self, blocks: Iterable[int]) -> None:
        """One more holds each of ``blocks``."""
        for block in blocks:
            if not self._holders[block]:
                del self._remembering[block]
            self._holders[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """One less holds each of ``blocks``, a sequence's table or its end."""
        # The last first: a beginning is of more use to others than what follows it.
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            if block in self._hash_of:
                self._remembering[block] = None
            else:
                heapq.heappush(self._empty, block)

    def is_shared(self, block: int) -> bool:
        """Whether several hold ``block``, so that nobody may write to it."""
        return self._holders[block] > 1

    def hashes(self, tokens: Sequence[int], known: list[bytes], salt: bytes = b"") -> list[bytes]:
        """The hash of every full block of ``tokens``; ``known`` are the first of them.

        Args:
            salt: tells apart what the same tokens lead to, e.g. by adapter.
        """
        if not self.sharing:
            return known
        for number in range(len(known), len(tokens) // self.size):
            before = known[-1] if known else self._forgotten.to_bytes(8) + salt
            own = array("q", tokens[number * self.size : (number + 1) * self.size]).tobytes()
            known.append(hashlib.blake2b(before + own, digest_size=16).digest())
        return known

    def find(self, hashes: Sequence[bytes], most: int) -> list[int]:
        """The blocks that remember the beginning with these ``hashes``, ``most`` at most.

        They are not held yet.
        """
        found: list[int] = []
        for digest in hashes[:most]:
            block = self._block_of.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def remember(self, block: int, digest: bytes) -> None:
        """``block`` now holds the keys and values that ``digest`` stands for."""
        if self.sharing and digest not in self._block_of and block not in self._hash_of:
            self._block_of[digest] = block
            self._hash_of[block] = digest

    def forget_all(self) -> None:
        """Nothing is remembered any more, e.g. because the model's weights changed."""
        for block in self._remembering:
            heapq.heappush(self._empty, block)
        self._forgotten += 1
        self._remembering.clear()
        self._block_of.clear()
        self._hash_of.clear()
