"""Predicts the most likely tokens for the [MASK]s of a few fixed sentences (`train.examples`) during training.

Shapes: `N` sentences, `L` positions, `P` masks per sentence, `K` fillers per mask.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from bert_jax.console import say
from bert_jax.evaluation.evaluator import Evaluation, is_due_every
from bert_jax.model.family import PretrainingModel
from bert_jax.model.inputs import Array, Inputs
from bert_jax.model.layer_stack import Gather
from bert_jax.runtime.mesh import BATCH_AXES, batch_sharding
from bert_jax.text.tokenizer import Tokenizer
from bert_jax.text.vocabulary import encode_with_masks
from bert_jax.train.program import TrainProgram
from bert_jax.train.state import distribute

_NUM_FILLERS = 3


class _Sentences(NamedTuple):
    input_ids: Array  # [N, L] int32
    sequence_ids: Array  # [N, L] int32, 1 for tokens and 0 for padding
    mask_positions: Array  # [N, P] int32, padded with 0


class Examples:
    """Predicts the most likely tokens for each mask, with the parameters sharded as they are.

    Every process must call it: all processes run one program, in which each device computes some of the sentences.
    """

    def __init__(self, texts: Sequence[str], tokenizer: Tokenizer, programs: Sequence[TrainProgram], max_length: int):
        """Encodes the texts; those with more than `max_length` tokens, the most that the run trains on, are skipped.

        Args:
          programs: of each phase.
        """
        encoded = [(text, encode_with_masks(tokenizer, text)) for text in texts]
        fitting = [(text, ids) for text, ids in encoded if len(ids) <= max_length]
        if num_skipped := len(encoded) - len(fitting):
            say(f'train.examples: {num_skipped} of {len(encoded)} skipped, because longer than {max_length} tokens')
        self._tokenizer = tokenizer
        self._texts = [text for text, _ in fitting]
        self._mask_positions = [np.flatnonzero(ids == tokenizer.mask_id) for _, ids in fitting]
        rows = [ids for _, ids in fitting]
        self._batch = _batch(rows, self._mask_positions, tokenizer.pad_id, programs[0].device_mesh) if rows else None
        self._programs, self._fill = programs, functools.cache(lambda program: program.forward(_most_likely))

    def __bool__(self) -> bool:
        return self._batch is not None

    def __call__(self, params: nnx.State, phase: int = 0) -> list[dict[str, Any]]:
        """Returns [{text, fillers}], where `fillers` has a list [{token, score}] per mask, by falling probability."""
        if self._batch is None:
            return []
        scores, tokens = jax.device_get(self._fill(self._programs[phase])(params, self._batch))  # NPK

        def fillers(row: int, mask: int) -> list[dict[str, Any]]:
            pairs = zip(tokens[row, mask], scores[row, mask], strict=True)
            return [{'token': self._tokenizer.token(int(t)), 'score': round(float(s), 4)} for t, s in pairs]

        return [
            {'text': text, 'fillers': [fillers(row, mask) for mask in range(len(positions))]}
            for row, (text, positions) in enumerate(zip(self._texts, self._mask_positions, strict=True))
        ]


@dataclasses.dataclass(frozen=True)
class FillIn:
    """The evaluator that fills in the example sentences; `every` is `train.evaluate_every`.

    Attributes:
      phase_at: maps a step to the index of its phase.
      phases: those in which the masked-LM head learns to fill masks.
    """

    examples: Examples
    phase_at: Callable[[int], int]
    every: int
    phases: Sequence[int]
    activity: str = 'filling in the example sentences'

    def is_due(self, step: int, *, is_final: bool) -> bool:
        is_due = bool(self.examples) and is_due_every(self.every, step, is_final=is_final)
        return is_due and self.phase_at(step) in self.phases

    def __call__(self, params: nnx.State, step: int, stop_now: Callable[[], bool]) -> Evaluation:
        return Evaluation(examples=self.examples(params, self.phase_at(step)))


def _batch(rows: list[np.ndarray], mask_positions: list[np.ndarray], pad_id: int, mesh: Mesh) -> _Sentences:
    """Returns one batch on the devices, with empty rows at the end so that the mesh divides the number of rows."""
    num_shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    num_rows = -(-len(rows) // num_shards) * num_shards
    shape = num_rows, max(map(len, rows))
    input_ids, sequence_ids = np.full(shape, pad_id, np.int32), np.zeros(shape, np.int32)
    padded_positions = np.zeros((num_rows, max(map(len, mask_positions))), np.int32)
    for row, (ids, positions) in enumerate(zip(rows, mask_positions, strict=True)):
        input_ids[row, : len(ids)], sequence_ids[row, : len(ids)] = ids, 1
        padded_positions[row, : len(positions)] = positions
    sentences = _Sentences(input_ids, sequence_ids, padded_positions)
    return jax.tree.map(lambda array: distribute(array, batch_sharding(mesh)), sentences)


def _most_likely(model: PretrainingModel, sentences: _Sentences, gather: Gather | None) -> tuple[jax.Array, jax.Array]:
    """Returns (probabilities, token ids) of the most likely tokens, each [N, P, K]."""
    ids = sentences.input_ids
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)
    hidden = model.encode(Inputs(ids, jnp.zeros_like(ids), sentences.sequence_ids, positions), gather=gather)
    return tuple(jax.lax.top_k(jax.nn.softmax(model.mlm_logits(hidden, sentences.mask_positions)), _NUM_FILLERS))
