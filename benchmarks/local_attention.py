"""Compares local attention with full attention behind the mask of the window, forward and backward, on this machine.

    python -m benchmarks.local_attention [--lengths=512,4096] [--radius=64] [--dtype=float32]

Both take the same rows and alternate in one process. A batch has 4,096 positions, or one row if that is longer. Half of
the rows are packed with three sequences, and the others end in padding.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.model.local_attention import attend_locally
from bert_jax.model.plain_attention import attend_by_scores
from bert_jax.runtime.devices import select_platform

_POSITIONS = 4096  # of a batch


def masked_full_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array, *, num_heads: int, radius: int
) -> jax.Array:
    """[B, L, D] -> [B, L, D]; all scores of a row are computed."""
    heads = (*q.shape[:2], num_heads, q.shape[2] // num_heads)
    q, k, v = (x.reshape(heads).transpose(0, 2, 1, 3) for x in (q, k, v))
    position = jnp.arange(heads[1])
    sees = jnp.abs(position[:, None] - position) <= radius
    sees = sees & (ids[:, :, None] == ids[:, None, :]) & (ids[:, None, :] > 0)
    attended = attend_by_scores(q, k, v, sees[:, None], 0.0, None, 1)
    return attended.transpose(0, 2, 1, 3).reshape(*heads[:2], -1)


def local_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array, *, num_heads: int, radius: int
) -> jax.Array:
    """[B, L, D] -> [B, L, D], with the arguments of `masked_full_attention`."""
    return attend_locally(q, k, v, ids, num_heads, radius, 0.0, None, 1)


def sequence_ids(rows: int, length: int) -> np.ndarray:
    """[B, L] int32: packed rows and rows that end in padding, in turn."""
    ids = np.ones((rows, length), np.int32)
    ids[::2] += np.arange(length) // (length // 3 + 1)
    ids[1::2, length * 7 // 8 :] = 0
    return ids


def measure(length: int, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Returns the milliseconds of each call."""
    rows, size = max(1, _POSITIONS // length), arguments.num_heads * arguments.head_size
    ids = jnp.asarray(sequence_ids(rows, length))
    rng = np.random.default_rng(length)
    q, k, v, gradient = (jnp.asarray(rng.standard_normal((rows, length, size)), arguments.dtype) for _ in range(4))
    gradient = jnp.where(ids[..., None] > 0, gradient, 0)
    calls: dict[str, Callable] = {}
    for attention in (local_attention, masked_full_attention):
        forward = functools.partial(attention, ids=ids, num_heads=arguments.num_heads, radius=arguments.radius)

        def run(q: jax.Array, k: jax.Array, v: jax.Array, forward: Callable = forward) -> tuple:
            attended, pull = jax.vjp(forward, q, k, v)
            return attended, *pull(gradient)

        calls[attention.__name__] = jax.jit(run)
    results = [call(q, k, v) for call in calls.values()]
    for local, full in zip(*results, strict=True):
        real = ids[..., None] > 0
        print(f'  largest difference {jnp.abs(jnp.where(real, local - full, 0)).max():.1e}')
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(arguments.turns):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call(q, k, v))
            times[name].append((time.perf_counter() - start) * 1e3)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--lengths', default='512,4096', help='positions of a row (default: 512,4096)')
    parser.add_argument('--radius', type=int, default=64, help='positions to either side (default: 64)')
    parser.add_argument('--num_heads', type=int, default=4, help='default: 4')
    parser.add_argument('--head_size', type=int, default=64, help='default: 64')
    parser.add_argument('--dtype', default='float32', help='float32 (default) or bfloat16')
    parser.add_argument('--turns', type=int, default=10, help='calls of each (default: 10)')
    arguments = parser.parse_args()
    select_platform('')
    for length in map(int, arguments.lengths.split(',')):
        print(f'{length} positions, radius {arguments.radius}, {arguments.dtype}')
        times = measure(length, arguments)
        for name, values in times.items():
            print(f'  {name:21} min {min(values):7.1f} ms, median {statistics.median(values):7.1f} ms')
        local, full = times.values()
        ratios = min(full) / min(local), statistics.median(full) / statistics.median(local)
        print(f'  local attention is {ratios[0]:.2f} times as fast (min), {ratios[1]:.2f} (median)')


if __name__ == '__main__':
    main()
