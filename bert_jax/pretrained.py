"""A trained model and its tokenizer, from wherever they lie, ready to use.

`B` texts, `L` positions, `D` hidden.
"""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bert_jax import config, run
from bert_jax.errors import BadInput
from bert_jax.interop import hugging_face
from bert_jax.model.bert import BertForPreTraining
from bert_jax.text.tokenizer import Tokenizer, load_tokenizer
from bert_jax.train.checkpoint import restore_on_one_device
from bert_jax.train.state import model_graph


@dataclasses.dataclass(frozen=True)
class Filler:
    """A token that may stand at a [MASK], and its probability."""

    token: str
    score: float


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model with its tokenizer; float32, no dropout."""

    model: BertForPreTraining
    tokenizer: Tokenizer
    config: config.Model
    step: int | None  # of the run that it comes from, where known

    def fill_mask(self, text: str, top_k: int = 5) -> list[list[Filler]]:
        """The best fillers for every [MASK] of a text, best first.

        Raises:
          BadInput: when the text has no [MASK] or is longer than the model has positions.
        """
        ids = self._encode_with_masks(text)
        if len(ids) > self.config.max_positions:
            raise BadInput('the text', f'has {len(ids)} tokens', f'at most {self.config.max_positions}')
        where = np.flatnonzero(ids == self.tokenizer.mask_id)
        if not len(where):
            raise BadInput('the text', 'has no [MASK]', 'a text with [MASK] where a word is to be found')
        row = jnp.asarray(ids)[None]
        hidden = _encode(self._parts[0], self._parts[1], row, jnp.ones_like(row))
        logits = _mlm_logits(*self._parts, hidden, jnp.asarray(where)[None])[0]
        scores = np.asarray(jax.nn.softmax(logits, axis=-1))
        best = np.argsort(-scores, axis=-1, kind='stable')[:, :top_k]
        return [
            [Filler(self.tokenizer.token(int(token)), float(scores[slot, token])) for token in tokens]
            for slot, tokens in enumerate(best)
        ]

    def _encode_with_masks(self, text: str) -> np.ndarray:
        """[L] int32: [CLS] text [SEP], each '[MASK]' of the text as the mask token."""
        tokenizer = self.tokenizer
        ids = [tokenizer.cls_id]
        for number, piece in enumerate(tokenizer.encode_batch(text.split('[MASK]'))):
            ids += [tokenizer.mask_id] * (number > 0) + list(piece)
        return np.array([*ids, tokenizer.sep_id], np.int32)

    @functools.cached_property
    def _parts(self) -> tuple[nnx.GraphDef, nnx.State]:
        return nnx.split(self.model)


@functools.partial(jax.jit, static_argnums=0)
def _encode(graph: nnx.GraphDef, params: nnx.State, input_ids: jax.Array, present: jax.Array) -> jax.Array:
    """[B, L] ids and presence -> [B, L, D]."""
    positions = jnp.broadcast_to(jnp.arange(input_ids.shape[1]), input_ids.shape)
    return nnx.merge(graph, params).bert(input_ids, jnp.zeros_like(input_ids), present, positions)


@functools.partial(jax.jit, static_argnums=0)
def _mlm_logits(graph: nnx.GraphDef, params: nnx.State, hidden: jax.Array, positions: jax.Array) -> jax.Array:
    return nnx.merge(graph, params).mlm_logits(hidden, positions)


def load_pretrained(directory: str, step: int | None = None) -> Pretrained:
    """The model and the tokenizer in a workdir (newest checkpoint, or `step`), an export or a Hugging Face directory.

    Raises:
      BadInput: naming the file that is missing or does not fit.
    """
    if run.is_workdir(directory):
        return _from_workdir(directory, step)
    path = Path(directory)
    hugging_face.read_model_json(path)  # first, so that a directory of anything else is told as that
    tokenizer = hugging_face.read_tokenizer(path)
    params, model, vocab_size = hugging_face.read_model(path, tokenizer.vocab_size)
    return Pretrained(nnx.merge(model_graph(model, vocab_size), params), tokenizer, model, None)


def _from_workdir(workdir: str, step: int | None) -> Pretrained:
    resolved = run.load_config(workdir)
    model = dataclasses.replace(resolved.model, dtype='float32', remat='none')
    tokenizer = load_tokenizer(Path(workdir) / 'tokenizer', lowercase=True, strip_accents=False)
    state, _ = restore_on_one_device(workdir, dataclasses.replace(resolved, model=model), tokenizer.vocab_size, step)
    merged = nnx.merge(model_graph(model, tokenizer.vocab_size), state.params)
    return Pretrained(merged, tokenizer, model, int(state.step))
