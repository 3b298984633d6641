"""Random streams that depend on names, not on the order of calls.

``rng(7, "questions", "train")`` gives the same numbers in every process and on every machine, and
adding another stream elsewhere does not shift it.
"""

import hashlib
import random


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream called ``names`` under the master ``seed``."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def rng(seed: int, *names: str | int) -> random.Random:
    """A ``random.Random`` for the stream called ``names`` under the master ``seed``."""
    return random.Random(derive_seed(seed, *names))
