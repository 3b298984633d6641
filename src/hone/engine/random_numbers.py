"""Random numbers that are a function of their place: no state, no order, no neighbours.

Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3"
(SC 2011): ten rounds of multiplications and exclusive ors turn a key and a counter into bits.
"""

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 10
_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], dtype=np.uint64)
_WEYL = np.array([[0x9E3779B9], [0xBB67AE85]], dtype=np.uint32)
# Where the halves of a 64-bit number lie in memory.
_LOW, _HIGH = (0, 1) if np.little_endian else (1, 0)


def philox(counters_4N: NDArray[np.uint32], keys_2N: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Four random words ``[4, N]`` for each counter of four words and key of two."""
    # Words 0 and 2 are multiplied, words 1 and 3 are mixed in.
    even_2N, odd_2N, keys_2N = counters_4N[0::2], counters_4N[1::2], keys_2N.copy()
    for _ in range(_ROUNDS):
        products = np.multiply(even_2N, _MULTIPLIERS, dtype=np.uint64, order="C")
        halves_2N2 = products.view(np.uint32).reshape(*products.shape, 2)
        even_2N = halves_2N2[::-1, :, _HIGH] ^ odd_2N ^ keys_2N
        odd_2N = halves_2N2[::-1, :, _LOW]
        keys_2N += _WEYL
    return np.stack((even_2N[0], odd_2N[0], even_2N[1], odd_2N[1]))


def uniforms(
    seeds_N: NDArray[np.uint64], streams_N: NDArray[np.uint32], indices_N: NDArray[np.int64]
) -> NDArray[np.float64]:
    """One number in [0, 1) of 53 random bits for each (seed, stream, index).

    Args:
        streams_N: tells apart what has one seed, as the outputs of a request.
        indices_N: from 0.
    """
    low, high = np.uint64(0xFFFFFFFF), np.uint64(32)
    indices_N = indices_N.astype(np.uint64)
    counters_4N = np.stack(
        (indices_N & low, indices_N >> high, streams_N, np.zeros_like(streams_N))
    ).astype(np.uint32)
    keys_2N = np.stack((seeds_N & low, seeds_N >> high)).astype(np.uint32)
    words_4N = philox(counters_4N, keys_2N)
    return ((words_4N[0] >> 5) * 67_108_864.0 + (words_4N[1] >> 6)) / 2.0**53
