"""What the model puts at the [MASK]s of a few fixed sentences (`train.examples`), to be looked at as a run goes.

`N` sentences, `L` positions, `P` masks of a sentence, `K` fillers of a mask.
"""

import dataclasses
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
    present: Array  # [N, L] int32, 1 where there is a token
    masks: Array  # [N, P] int32, their positions; 0 for filler


class Examples:
    """The best fillers of every mask, by the parameters where they lie.

    Every process must call it: they run one program, each device on its share of the sentences.
    """

    def __init__(self, texts: Sequence[str], tokenizer: Tokenizer, program: TrainProgram, max_length: int):
        """Texts of more than `max_length` tokens (as many as the run trains on) are left out, with a message."""
        encoded = [(text, encode_with_masks(tokenizer, text)) for text in texts]
        kept = [(text, ids) for text, ids in encoded if len(ids) <= max_length]
        if len(kept) < len(encoded):
            num_left_out = len(encoded) - len(kept)
            say(f'train.examples: {num_left_out} do not fit into {max_length} positions; left out')
        self._tokenizer = tokenizer
        self._masks = [(text, np.flatnonzero(ids == tokenizer.mask_id)) for text, ids in kept]
        self._batch = _batch(kept, self._masks, tokenizer.pad_id, program.device_mesh) if kept else None
        self._fill = program.forward(_best_fillers) if kept else None

    def __bool__(self) -> bool:
        return self._batch is not None

    def __call__(self, params: nnx.State) -> list[dict[str, Any]]:
        """[{text, fillers: for each mask [{token, score}], best first}]; scores are probabilities."""
        if self._fill is None:
            return []
        scores, tokens = jax.device_get(self._fill(params, self._batch))  # NPK

        def fillers(row: int, mask: int) -> list[dict[str, Any]]:
            pairs = zip(tokens[row, mask], scores[row, mask], strict=True)
            return [{'token': self._tokenizer.token(int(t)), 'score': round(float(s), 4)} for t, s in pairs]

        return [
            {'text': text, 'fillers': [fillers(row, mask) for mask in range(len(places))]}
            for row, (text, places) in enumerate(self._masks)
        ]


@dataclasses.dataclass(frozen=True)
class FillIn:
    """Fills in the masks of example sentences during training; `every` as in `train.evaluate_every`."""

    examples: Examples
    every: int
    activity: str = 'filling in the examples'

    def is_due(self, step: int, *, is_final: bool) -> bool:
        return bool(self.examples) and is_due_every(self.every, step, is_final=is_final)

    def __call__(self, params: nnx.State, step: int, stop_now: Callable[[], bool]) -> Evaluation:
        return Evaluation(examples=self.examples(params))


def _batch(
    kept: list[tuple[str, np.ndarray]], masks: list[tuple[str, np.ndarray]], pad_id: int, mesh: Mesh
) -> _Sentences:
    """On the devices; empty rows after the sentences make the rows divisible over them."""
    num_shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    num_rows = -(-len(kept) // num_shards) * num_shards
    shape = num_rows, max(len(ids) for _, ids in kept)
    input_ids, present = np.full(shape, pad_id, np.int32), np.zeros(shape, np.int32)
    positions = np.zeros((num_rows, max(len(places) for _, places in masks)), np.int32)
    for row, ((_, ids), (_, places)) in enumerate(zip(kept, masks, strict=True)):
        input_ids[row, : len(ids)], present[row, : len(ids)] = ids, 1
        positions[row, : len(places)] = places
    return jax.tree.map(
        lambda array: distribute(array, batch_sharding(mesh)), _Sentences(input_ids, present, positions)
    )


def _best_fillers(model: PretrainingModel, sentences: _Sentences, gather: Gather | None) -> tuple[jax.Array, jax.Array]:
    """(scores, token ids), [N, P, K] each."""
    ids = sentences.input_ids
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)
    hidden = model.encode(Inputs(ids, jnp.zeros_like(ids), sentences.present, positions), gather=gather)
    return tuple(jax.lax.top_k(jax.nn.softmax(model.mlm_logits(hidden, sentences.masks)), _NUM_FILLERS))
