"""What the model puts at the [MASK]s of a few fixed sentences (`train.examples`), to be looked at as a run goes.

`N` sentences, `L` positions, `P` masks of a sentence, `K` fillers of a mask.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from bert_jax.console import say
from bert_jax.evaluation.evaluator import Evaluation, is_due_every
from bert_jax.model.inputs import Inputs
from bert_jax.runtime.mesh import replicated
from bert_jax.text.tokenizer import Tokenizer
from bert_jax.text.vocabulary import encode_with_masks
from bert_jax.train.gradients import Exchange
from bert_jax.train.program import TrainProgram

_NUM_FILLERS = 3


class Examples:
    """The best fillers of every mask, by the parameters where they lie.

    The program is one for all processes, which all have to call it; each device works out all sentences.
    """

    def __init__(self, texts: Sequence[str], tokenizer: Tokenizer, program: TrainProgram):
        """Texts of more tokens than the model has positions are left out, with a message."""
        encoded = [(text, encode_with_masks(tokenizer, text)) for text in texts]
        kept = [(text, ids) for text, ids in encoded if len(ids) <= program.model.max_positions]
        if len(kept) < len(encoded):
            num_left_out, num_positions = len(encoded) - len(kept), program.model.max_positions
            say(f'train.examples: {num_left_out} do not fit into {num_positions} positions; left out')
        self._tokenizer = tokenizer
        self._masks = [(text, np.flatnonzero(ids == tokenizer.mask_id)) for text, ids in kept]
        self._best = _make_best(*_batch(kept, self._masks, tokenizer.pad_id), program) if kept else None

    def __bool__(self) -> bool:
        return self._best is not None

    def __call__(self, params: nnx.State) -> list[dict[str, Any]]:
        """[{text, fillers: for each mask [{token, score}], best first}]; scores are probabilities."""
        if self._best is None:
            return []
        scores, tokens = jax.device_get(self._best(params))  # NPK

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
    kept: list[tuple[str, np.ndarray]], masks: list[tuple[str, np.ndarray]], pad_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(input_ids [N, L], 1 where there is a token [N, L], positions of the masks [N, P]), int32."""
    shape = len(kept), max(len(ids) for _, ids in kept)
    input_ids, present = np.full(shape, pad_id, np.int32), np.zeros(shape, np.int32)
    positions = np.zeros((len(kept), max(len(places) for _, places in masks)), np.int32)
    for row, ((_, ids), (_, places)) in enumerate(zip(kept, masks, strict=True)):
        input_ids[row, : len(ids)], present[row, : len(ids)] = ids, 1
        positions[row, : len(places)] = places
    return input_ids, present, positions


def _make_best(input_ids: np.ndarray, present: np.ndarray, masks: np.ndarray, program: TrainProgram) -> Any:
    """parameters -> (scores, token ids), [N, P, K] each, whole on every device; under `jax.jit`."""
    exchange = Exchange(program.mesh, program.shardings.params)
    positions = np.broadcast_to(np.arange(input_ids.shape[1], dtype=np.int32), input_ids.shape)

    def best(params: nnx.State) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(program.graph, exchange.gather_outside_layers(params))
        ids = jnp.asarray(input_ids)
        inputs = Inputs(ids, jnp.zeros_like(ids), jnp.asarray(present), jnp.asarray(positions))
        hidden = model.bert(inputs, gather=exchange.gather_layer)
        return tuple(jax.lax.top_k(jax.nn.softmax(model.mlm_logits(hidden, jnp.asarray(masks))), _NUM_FILLERS))

    of_all = exchange.over_rows(best, (exchange.specs,), PartitionSpec())
    return jax.jit(of_all, out_shardings=replicated(program.mesh))
