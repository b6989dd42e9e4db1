"""Random bits as a pure function of a key and a counter: no generator, no state, any order.

`splitmix64` (Steele et al. 2014, "Fast splittable pseudorandom number generators") mixes a key and
a counter; whole batches are drawn at once.
"""

import math

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK_64 = (1 << 64) - 1


def mix(x: np.ndarray) -> np.ndarray:
    """Applies the splitmix64 finaliser, a bijection of uint64 whose output bits pass as independent."""
    x = x ^ (x >> np.uint64(30))
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def fold_in(key: int | np.ndarray, data: int | np.ndarray) -> np.ndarray:
    """Derives a new key (uint64, of the broadcast shape) from a key and an integer."""
    key, data = np.atleast_1d(np.asarray(key, np.uint64)), np.asarray(data, np.uint64)
    return mix(mix(key + _GOLDEN) ^ (data * _GOLDEN + np.uint64(1)))


def fold_in_int(key: int, data: int) -> int:
    """Applies `fold_in` to two Python integers and returns a Python integer."""
    return int(fold_in(key & _MASK_64, data & _MASK_64)[0])


def bits(keys: np.ndarray, count: int) -> np.ndarray:
    """Returns uint64 random bits of shape keys.shape + (count,)."""
    return bits_at(keys[..., None], np.arange(count))


def bits_at(keys: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """Returns the random bits of `bits` at these counters, uint64 of the broadcast shape."""
    return mix(keys + (counters.astype(np.uint64) + np.uint64(1)) * _GOLDEN)


def below(random_bits: np.ndarray, limit: int | np.ndarray) -> np.ndarray:
    """Returns uniform integers in [0, limit) as int64, from uint64 bits; limit < 2**32 (bias below limit / 2**32)."""
    return (((random_bits >> np.uint64(32)) * np.asarray(limit, np.uint64)) >> np.uint64(32)).astype(np.int64)


def uniform(random_bits: np.ndarray) -> np.ndarray:
    """Returns uniform float64 in [0, 1) from uint64 bits."""
    return (random_bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def coin_flips(random_bits: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Counts the heads of `counts` fair coin flips: exactly Binomial(counts, 1/2).

    Args:
      random_bits: [N, W] uint64; 64 flips per word.
      counts: [N] int64, at most 64 W.
    """
    flips_in_word = np.clip(counts[:, None] - 64 * np.arange(random_bits.shape[1]), 0, 64)
    shift = np.minimum(64 - flips_in_word, 63).astype(np.uint64)
    kept = np.where(flips_in_word > 0, random_bits >> shift, np.uint64(0))
    return np.bitwise_count(kept).sum(axis=1, dtype=np.int64)


_ROUNDS = 6
_FEWEST_HALF = 8  # a smaller network is far from reaching all permutations equally often


def permute(positions: np.ndarray, sizes: int | np.ndarray, keys: np.ndarray, *, limit: int) -> np.ndarray:
    """Maps each position by a random permutation of 0 … size - 1, one permutation per key; int64.

    Uses a Feistel network over a grid of about `limit` integers, applied again until the result is below the size
    (Black and Rogaway 2002, "Ciphers with arbitrary finite domains", method 3).

    Args:
      positions: int64, each below its size.  keys: uint64, of the same shape.
      limit: upper bound of the sizes. A permutation depends on it, but not on the other positions of the call.
    """
    width = max(math.isqrt(limit - 1) + 1, _FEWEST_HALF)
    height = max(-(-limit // width), _FEWEST_HALF)

    def network(x: np.ndarray, keys: np.ndarray) -> np.ndarray:
        halves, sides = list(np.divmod(x, width)), (height, width)
        for round_index in range(_ROUNDS):
            turned, other = round_index % 2, 1 - round_index % 2
            drawn = below(bits_at(keys, halves[other] * _ROUNDS + round_index), sides[turned])
            halves[turned] = (halves[turned] + drawn) % sides[turned]
        return halves[0] * width + halves[1]

    found = network(positions, keys)
    while len(outside := np.flatnonzero(found >= sizes)):
        found[outside] = network(found[outside], keys[outside])
    return found
