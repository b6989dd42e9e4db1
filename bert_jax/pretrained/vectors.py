"""Computes the vectors of many texts: batches of similar length, few compiled shapes, tokens prepared meanwhile.

`B` rows of a batch, `L` positions, `D` hidden, `M` ways of pooling.
"""

import functools
import hashlib
import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bert_jax.model.inputs import Inputs
from bert_jax.pretrained.load import Pretrained
from bert_jax.pretrained.sentences import SentenceSettings, pool

_BATCH_TOKENS = 4096  # padding included
_SHORTEST = 16
_FEWEST_ROWS = 8
_FEW_TEXTS = 2048  # fewer are not worth compiling many shapes for
_FINE_STEPS, _COARSE_STEPS = 4, 1  # lengths per power of two
_IN_FLIGHT = 2  # batches that are computed while the next one is prepared


class TextEncoder:
    """Turns texts into the vectors that sentence-transformers computes.

    Attributes:
      longest: number of tokens to which a text is truncated.
    """

    def __init__(
        self, pretrained: Pretrained, settings: SentenceSettings, dims: int | None = None, dtype: str = 'float32'
    ):
        """Args: dims: as of `SentenceSettings.finish`.  dtype: of the computation; vectors are float32."""
        self._pretrained, self._settings, self._dims = pretrained, settings, dims
        self.longest = settings.limit(pretrained.max_length, pretrained.config.max_positions)
        self._graph, self._params = nnx.split(_in_dtype(pretrained.model, dtype))

    def encode_chunks(self, chunks: Iterable[list[str]]) -> Iterator[tuple[np.ndarray, int]]:
        """Yields (vectors [texts, dims] float32, number of truncated texts) of each chunk.

        While one chunk is computed, the next is tokenized in another thread.
        """
        with ThreadPoolExecutor(1) as pool_of_one:
            remaining = iter(chunks)

            def submit() -> Any:
                texts = next(remaining, None)
                return None if texts is None else pool_of_one.submit(self._tokenize, texts)

            pending = submit()
            while pending is not None:
                input_ids, num_truncated = pending.result()
                pending = submit()
                yield self._vectors(input_ids), num_truncated

    def encode(self, texts: list[str]) -> tuple[np.ndarray, int]:
        """Returns what `encode_chunks` yields, for one chunk."""
        input_ids, num_truncated = self._tokenize(texts)
        return self._vectors(input_ids), num_truncated

    def weights_digest(self) -> str:
        """Returns a hash of the names and values of the parameters."""
        digest = hashlib.blake2b(digest_size=16)
        for path, leaf in sorted(nnx.to_flat_state(self._params), key=lambda item: repr(item[0])):
            value = np.ascontiguousarray(leaf.get_value())
            digest.update(f'{path} {value.shape} {value.dtype} '.encode())
            digest.update(value.view(np.uint8).data)
        return digest.hexdigest()

    def _tokenize(self, texts: list[str]) -> tuple[list[list[int]], int]:
        return self._pretrained.to_ids([self._settings.prepare(text) for text in texts], True, self.longest)

    def _vectors(self, input_ids: list[list[int]]) -> np.ndarray:
        size = len(self._settings.modes) * self._pretrained.config.hidden_size
        vectors, in_flight = np.zeros((len(input_ids), size), np.float32), deque()

        def collect() -> None:
            rows, pooled = in_flight.popleft()
            vectors[rows] = np.asarray(pooled)[: len(rows)]

        for rows, num_rows, length in plan_batches(list(map(len, input_ids)), self._pretrained.config.max_positions):
            batch, lengths = (
                np.full((num_rows, length), self._pretrained.tokenizer.pad_id, np.int32),
                np.zeros(num_rows, np.int32),
            )
            for index, row in enumerate(rows):
                lengths[index] = len(input_ids[row])
                batch[index, : lengths[index]] = input_ids[row]
            in_flight.append((rows, _pooled(self._graph, self._params, batch, lengths, self._settings.modes)))
            if len(in_flight) > _IN_FLIGHT:
                collect()
        while in_flight:
            collect()
        return self._settings.finish(vectors, self._dims)


def plan_batches(lengths: list[int], max_length: int) -> list[tuple[list[int], int, int]]:
    """Groups texts of similar length; returns [(indices of texts, B, L)], where B is at least the number of texts.

    L takes few values, and B has one value for each L, except in the last batch. Texts that do not fill a batch move
    to the next longer L.
    """
    steps = _FINE_STEPS if len(lengths) >= _FEW_TEXTS else _COARSE_STEPS
    rounded = [min(_round_up(length, steps), max_length) for length in lengths]
    order = sorted(range(len(lengths)), key=rounded.__getitem__)
    batches: list[tuple[list[int], int, int]] = []
    waiting: list[int] = []
    length = 0
    for length, group in itertools.groupby(order, key=rounded.__getitem__):
        waiting += group
        size = max(1, _BATCH_TOKENS // length)
        while len(waiting) >= size:
            batches.append((waiting[:size], size, length))
            waiting = waiting[size:]
    if waiting:
        batches.append((waiting, max(_FEWEST_ROWS, 1 << (len(waiting) - 1).bit_length()), length))
    return batches


def _round_up(length: int, steps: int) -> int:
    """Returns the next of the lengths of which there are `steps` between two powers of two, evenly spaced."""
    power = max(1 << (length - 1).bit_length(), _SHORTEST)
    step = max(power // 2 // steps, 8)
    return max(-(-length // step) * step, _SHORTEST) if steps > 1 else power


def _in_dtype(model: Any, dtype: str) -> Any:
    """Returns a model that computes in `dtype`, with the same parameters. Every module computes in its own `dtype`."""
    copy = nnx.clone(model)
    for _, module in nnx.iter_graph(copy):
        if isinstance(module, nnx.Module) and isinstance(getattr(module, 'dtype', None), str):
            module.dtype = dtype
    return copy


@functools.partial(jax.jit, static_argnums=(0, 4))
def _pooled(
    graph: nnx.GraphDef, params: nnx.State, input_ids: jax.Array, lengths: jax.Array, modes: tuple[str, ...]
) -> jax.Array:
    """Returns [B, M x D] float32 of ids [B, L] with lengths [B]."""
    positions = jnp.broadcast_to(jnp.arange(input_ids.shape[1]), input_ids.shape)
    present = (positions < lengths[:, None]).astype(jnp.int32)
    hidden = nnx.merge(graph, params).encode(Inputs(input_ids, jnp.zeros_like(input_ids), present, positions))
    return pool(hidden.astype(jnp.float32), lengths, modes)
