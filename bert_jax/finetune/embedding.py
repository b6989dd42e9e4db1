"""Embedding models, an encoder whose token vectors are pooled, and their objective.

`B` rows, `L` positions, `E` texts of a row, `D` hidden, `Q` groups of a global batch.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax import config
from bert_jax.config.embedding import Embedding
from bert_jax.data.pair_batches import PairBatch
from bert_jax.finetune.heads import BertForTask, PreNormForTask, TaskModel, mean_of_examples
from bert_jax.model import eurobert, modernbert
from bert_jax.model.bert import Bert
from bert_jax.model.contrastive import Loss, Members, Part, cosent, cosine, group, info_nce, matryoshka
from bert_jax.model.dropout import DropoutKey
from bert_jax.model.layer_stack import Gather
from bert_jax.model.vocabulary import at_positions

EMBEDDING = 'embedding'  # the kind of task


class EmbeddingModel(TaskModel):
    """An encoder without a head: its outputs are one vector per text, float32 [B, E, D], not scaled.

    Attributes:
      pooling: `cls`, the vector of the first token, or `mean`, that of all tokens.
    """

    pooling: str

    @property
    def is_pooled(self) -> bool:
        return True

    def outputs(self, hidden: jax.Array, batch: Any, key: DropoutKey | None) -> jax.Array:
        if self.pooling == 'cls':
            return at_positions(hidden, batch.cls_positions).astype(jnp.float32)
        return mean_of_examples(hidden.astype(jnp.float32), batch)

    @classmethod
    def new_layer_above(cls, model: config.Model, initializer: str, rngs: nnx.Rngs) -> dict[tuple, nnx.Param]:
        return {}


class BertForEmbedding(EmbeddingModel, BertForTask):
    """BERT without its pooler."""

    LAYER_ABOVE: ClassVar[str | None] = None

    def __init__(self, pooling: str, model: config.Bert, vocab_size: int, rngs: nnx.Rngs):
        """Args: pooling: see `EmbeddingModel`; vocab_size: rows of the word embeddings, without padding."""
        self.kind, self.pooling = EMBEDDING, pooling
        self.bert = Bert(model, vocab_size, rngs)
        del self.bert.pooler


class PreNormForEmbedding(EmbeddingModel, PreNormForTask):
    """What the models with an encoder of `model/pre_norm.py` share."""

    def __init__(self, pooling: str, model: config.Model, vocab_size: int, rngs: nnx.Rngs):
        """Args: as for `BertForEmbedding`."""
        self.kind, self.pooling = EMBEDDING, pooling
        self.encoder = self.FAMILY.new_encoder(model, vocab_size, rngs)


class ModernBertForEmbedding(PreNormForEmbedding):
    """ModernBERT without its prediction head."""

    FAMILY: ClassVar[Any] = modernbert


class EuroBertForEmbedding(PreNormForEmbedding):
    """EuroBERT."""

    FAMILY: ClassVar[Any] = eurobert


EMBEDDING_MODELS: dict[str, Callable[..., EmbeddingModel]] = {
    'bert': BertForEmbedding,
    'modernbert': ModernBertForEmbedding,
    'eurobert': EuroBertForEmbedding,
}


@functools.cache
def embedding_builder(pooling: str) -> Callable[[config.Model, int, nnx.Rngs], EmbeddingModel]:
    """Returns a function that builds an embedding model; pooling: see `EmbeddingModel`."""

    def build(model: config.Model, num_tokens: int, rngs: nnx.Rngs) -> EmbeddingModel:
        rows, model = model.num_embeddings(num_tokens), model.with_dtype('float32')  # as `build_model`
        return EMBEDDING_MODELS[model.family](pooling, model, rows, rngs)

    return build


@dataclasses.dataclass(frozen=True)
class EmbeddingObjective:
    """The loss of `config.embedding` over the vectors of all texts of a global batch; a `VectorObjective`.

    Attributes:
      num_groups: Q of a global batch.
    """

    settings: Embedding
    num_groups: int

    def vectors(
        self, model: EmbeddingModel, batch: Any, key: DropoutKey | None, gather: Gather | None = None
    ) -> jax.Array:
        """Returns float32 [B, E, D] of a `PairBatch`; the vectors of empty slots have no meaning."""
        return model(batch, key, gather)

    def labels(self, batch: PairBatch) -> Members:
        """Returns the members of the groups, each field [B, E]."""
        return Members(batch.groups, batch.roles, batch.text_ids, batch.scores)

    def loss(self, vectors: jax.Array, labels: Members, part: Part) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns a part of the loss and of its metrics, from all vectors of a global batch."""
        settings, members = self.settings, Members(*map(jnp.ravel, labels))
        num_roles = 2 + settings.num_negatives
        groups = group(vectors.reshape(-1, vectors.shape[-1]), members, self.num_groups, num_roles)
        return matryoshka(self._loss, groups, part, settings.matryoshka_dims, settings.matryoshka_weights)

    @property
    def _loss(self) -> Loss:
        settings = self.settings
        if settings.loss == 'cosine':
            return cosine
        if settings.loss == 'cosent':
            return functools.partial(cosent, temperature=settings.temperature)
        return functools.partial(
            info_nce,
            temperature=settings.temperature,
            symmetric=settings.symmetric,
            mask_same_text=settings.mask_same_text,
            mask_margin=settings.mask_margin,
        )
