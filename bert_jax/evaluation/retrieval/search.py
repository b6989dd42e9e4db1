"""Exact search: the passages with the highest inner product, block by block on the device.

`Q` queries, `P` passages, `D` numbers per vector, `k` results, `E` exclusions; in a jitted function those of a block.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

QUERY_ROWS = 1024  # queries in a block
PASSAGE_ROWS = 1 << 14  # passages in a block: with QUERY_ROWS, 64 MiB of scores


class Hits(NamedTuple):
    """The best passages of each query, best first; of equal scores the lower index.

    Attributes:
      scores: [Q, k] float32; -inf where there is no further passage.
      indices: [Q, k] int32; -1 where there is no further passage.
    """

    scores: np.ndarray
    indices: np.ndarray


def search(
    queries: np.ndarray,
    passages: np.ndarray,
    k: int,
    excluded: Sequence[Sequence[int]] | None = None,
    *,
    query_rows: int = QUERY_ROWS,
    passage_rows: int = PASSAGE_ROWS,
) -> Iterator[Hits]:
    """Yields the best `k` passages of each block of queries.

    Memory on the host and on the device depends on the rows of a block, not on the number of queries or passages: both
    arrays may be memory maps.

    Args:
      queries: [Q, D] float32.
      passages: [P, D] float32.
      excluded: for each query, indices of passages to leave out; -1 stands for none.
    """
    rows = min(query_rows, max(len(queries), 1))
    for start in range(0, len(queries), rows):
        stop = min(start + rows, len(queries))
        left_out = excluded[start:stop] if excluded is not None else [()] * (stop - start)
        yield search_block(queries[start:stop], passages, k, left_out, query_rows=rows, passage_rows=passage_rows)


def search_block(
    queries: np.ndarray,
    passages: np.ndarray,
    k: int,
    excluded: Sequence[Sequence[int]],
    *,
    query_rows: int = QUERY_ROWS,
    passage_rows: int = PASSAGE_ROWS,
) -> Hits:
    """Returns the best `k` passages of at most `query_rows` queries; see `search`."""
    num_queries, num_passages = len(queries), len(passages)
    passage_rows = min(passage_rows, num_passages)
    device_queries = jnp.asarray(_padded(queries, query_rows))
    device_excluded = jnp.asarray(_as_array(excluded, query_rows))
    best = jnp.full((query_rows, k), -jnp.inf), jnp.full((query_rows, k), -1, jnp.int32)
    for start in range(0, num_passages, passage_rows):
        block = _padded(passages[start : start + passage_rows], passage_rows)
        best = _merge(*best, device_queries, block, device_excluded, start, num_passages)
    scores, indices = (np.asarray(each)[:num_queries] for each in best)
    return Hits(scores, np.where(np.isneginf(scores), -1, indices))


def _padded(vectors: np.ndarray, rows: int) -> np.ndarray:
    """Returns float32 vectors followed by zeros, [rows, D], so that all blocks have one shape."""
    block = np.zeros((rows, vectors.shape[1]), np.float32)
    block[: len(vectors)] = vectors
    return block


def _as_array(excluded: Sequence[Sequence[int]], rows: int) -> np.ndarray:
    """Returns int32 [rows, E] filled up with -1, where E is a power of two, so that few shapes are compiled."""
    longest = max((len(each) for each in excluded), default=0)
    array = np.full((rows, 1 << max(longest - 1, 0).bit_length()), -1, np.int32)
    for row, each in enumerate(excluded):
        array[row, : len(each)] = each
    return array


@jax.jit
def _merge(
    best_scores: jax.Array,
    best_indices: jax.Array,
    queries: jax.Array,
    passages: jax.Array,
    excluded: jax.Array,
    start: jax.Array,
    num_passages: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Merges a block of passages, the first with index `start`, into the running best, [Q, k].

    `top_k` puts the lower position first among equals. The running best precedes the block, and its indices are lower.
    """
    (Q, k), P = best_scores.shape, len(passages)
    scores = jnp.matmul(queries, passages.T, precision=jax.lax.Precision.HIGHEST)  # [Q, P]
    scores = jnp.where(start + jnp.arange(P) < num_passages, scores, -jnp.inf)
    columns = excluded - start
    columns = jnp.where((columns >= 0) & (columns < P), columns, P)  # a column out of bounds is dropped
    scores = scores.at[jnp.arange(Q)[:, None], columns].set(-jnp.inf, mode='drop')
    block_scores, block_columns = jax.lax.top_k(scores, min(k, P))
    scores = jnp.concatenate([best_scores, block_scores], axis=1)
    indices = jnp.concatenate([best_indices, start + block_columns], axis=1)
    best_scores, chosen = jax.lax.top_k(scores, k)
    return best_scores, jnp.take_along_axis(indices, chosen, axis=1)
