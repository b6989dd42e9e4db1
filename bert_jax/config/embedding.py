"""The settings of an embedding model: how a text becomes a vector, and the loss that trains it.

Names are those of sentence-transformers where it has one.
"""

import dataclasses
from typing import Any, ClassVar

from bert_jax.config.fields import Role, setting
from bert_jax.errors import BadInput

SCORED = ('cosent', 'cosine')  # losses that learn from scores
SCORE, NEGATIVES = 'score', ('negative',)  # default names of columns


def _are_dims(value: Any) -> bool:
    return all(type(dim) is int and 0 < dim < 2**31 for dim in value) and list(value) == sorted({*value}, reverse=True)


def _are_weights(value: Any) -> bool:
    return all(type(weight) in (int, float) and 0 < weight < float('inf') for weight in value)


def _are_columns(value: Any) -> bool:
    return bool(value) and all(isinstance(name, str) and name for name in value) and len({*value}) == len(value)


@dataclasses.dataclass(frozen=True)
class Embedding:
    """Pooling, loss, prompts and columns of an embedding model (task.kind `embedding`)."""

    ROLE: ClassVar[Role] = Role.IDENTITY_IF_SET

    # how the vectors of a text's tokens become one: that of the first token ([CLS]), or the mean of all
    pooling: str = setting('mean', choices=('mean', 'cls'))
    # whether the model's last module scales vectors to length 1; the losses compare directions either way
    normalize: bool = True
    # infonce: find the positive among the texts of the whole batch (MultipleNegativesRankingLoss). cosent: rank pairs
    # as their scores do (CoSENTLoss). cosine: squared error of the cosine similarity (CosineSimilarityLoss)
    loss: str = setting('infonce', choices=('infonce', *SCORED))
    # infonce and cosent: cosine similarities are divided by it; 1 / `scale` of sentence-transformers
    temperature: float = setting(0.05, 'a number above 0', lambda value: value > 0)
    # infonce: also find the anchor of each positive (MultipleNegativesSymmetricRankingLoss)
    symmetric: bool = False
    # dimensions to which vectors may be truncated, largest first; the loss is the weighted sum over them (Kusupati et
    # al. 2022, "Matryoshka Representation Learning"). (): only the whole vector
    matryoshka_dims: tuple = setting((), 'a tuple of integers above 0, in falling order', _are_dims)
    # weights of these losses; (): 1 each
    matryoshka_weights: tuple = setting((), 'a tuple of numbers above 0', _are_weights)
    # infonce: hard negatives of each example. Of examples with more, each epoch takes some at random
    num_negatives: int = setting(0, 'a number from 0 to 64', lambda value: 0 <= value <= 64)
    # infonce: whether a negative with the same tokens as the anchor or its positive is left out
    mask_same_text: bool = True
    # infonce: leave out negatives whose similarity to the anchor exceeds the positive's by more than this; -0.1 leaves
    # out those that come within 0.1 of it. None: keep them
    mask_margin: float | None = setting(None, 'None, or a number from -2 to 2', lambda v: v is None or -2 <= v <= 2)
    # text put before every anchor
    query_prompt: str = setting('', role=Role.CONTENT)
    # text put before every positive and negative
    passage_prompt: str = setting('', role=Role.CONTENT)
    # column of the anchor: the query, or the first text of a pair
    anchor: str = setting('anchor', 'the name of a column', bool, role=Role.CONTENT)
    # column of the positive: the passage that answers the query, or the second text of a pair
    positive: str = setting('positive', 'the name of a column', bool, role=Role.CONTENT)
    # columns of the hard negatives, each with a text or a list of texts
    negatives: tuple = setting(NEGATIVES, 'a tuple of names, each once', _are_columns, role=Role.CONTENT)
    # column of the score of a pair; a validation file with such a column is measured by the correlation with it
    score: str = setting(SCORE, 'the name of a column', bool, role=Role.CONTENT)
    # score that stands for the cosine similarity 1 in the cosine loss; STS-B has scores from 0 to 5
    max_score: float = setting(1.0, 'a number above 0', lambda value: value > 0)
    # corpus: which texts form a pair. spans: two neighbouring spans of a document; dropout: the same span twice, which
    # dropout tells apart (Gao et al. 2021, "SimCSE")
    corpus_pairs: str = setting('spans', choices=('spans', 'dropout'))

    @property
    def is_scored(self) -> bool:
        """Whether the loss learns from scores."""
        return self.loss in SCORED


def check_embedding(embedding: Embedding, batch_size: int, reduction: str) -> None:
    """Checks what concerns more than one field.

    Args:
      batch_size, reduction: `train.global_batch_size` and `train.reduction`.

    Raises:
      BadInput: names the field.
    """
    dims, weights = embedding.matryoshka_dims, embedding.matryoshka_weights
    if weights and len(weights) != len(dims):
        found = f'has {len(weights)} weights for {len(dims)} dimensions'
        raise BadInput('config.embedding.matryoshka_weights', found, 'one weight for each of matryoshka_dims, or ()')
    if batch_size == 1 and embedding.loss != 'cosine':
        found = f'is 1; {embedding.loss} compares the examples of a batch'
        raise BadInput('config.train.global_batch_size', found, 'at least 2', '--config.train.global_batch_size=32')
    if embedding.loss != 'infonce':
        for name in ('symmetric', 'num_negatives', 'mask_margin'):
            if value := getattr(embedding, name):
                found = f'is {value!r}, but loss={embedding.loss} has no negatives'
                raise BadInput(f'config.embedding.{name}', found, 'unset, or loss=infonce')
    if reduction == 'exact':
        found = "is 'exact', which sums over rows; the loss of an embedding model compares texts of different rows"
        raise BadInput('config.train.reduction', found, "'fast'", '--config.train.reduction=fast')
    columns = [embedding.anchor, embedding.positive, *embedding.negatives, embedding.score]
    if len({*columns}) < len(columns):
        twice = next(name for name in columns if columns.count(name) > 1)
        found = f'the column {twice!r} is named twice'
        raise BadInput('config.embedding: anchor, positive, negatives and score', found, 'different columns')


def check_dims(dims: tuple[int, ...], hidden_size: int) -> None:
    """Checks Matryoshka dimensions against the size of the model's vectors.

    Raises:
      BadInput: if one is larger.
    """
    if dims and max(dims) > hidden_size:
        found = f'has the dimension {max(dims)}; the vectors of the model have {hidden_size}'
        fix = f'--config.embedding.matryoshka_dims={(hidden_size, *(dim for dim in dims if dim < hidden_size))!r}'
        raise BadInput('config.embedding.matryoshka_dims', found, f'at most {hidden_size}', fix.replace(' ', ''))
