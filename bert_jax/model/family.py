"""The encoder families: one record each, with everything that the rest of the project needs to know."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
from flax import nnx

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.model import bert, eurobert, modernbert
from bert_jax.model.dropout import DropoutKey
from bert_jax.model.inputs import Array, Inputs
from bert_jax.model.layer_stack import Gather
from bert_jax.model.layers import is_variable, logical_axes
from bert_jax.model.matmul import Matmul
from bert_jax.model.pre_norm import layer_kept_per_token
from bert_jax.model.vocabulary import padded_vocab_size

Build = Callable[[Any, int, nnx.Rngs], nnx.Module]  # a model from its section of the config and its vocabulary size
_SLACK = 4  # how many times its weights an imported model may claim to have
_SMALL_MODEL = 10_000_000  # parameters that are allowed in any case


class PretrainingModel(Protocol):
    """An encoder with its pretraining heads. `B` rows, `L` positions, `D` hidden, `P` predictions, `E` sequences."""

    def encode(self, inputs: Inputs, key: DropoutKey | None = None, gather: Gather | None = None) -> jax.Array:
        """Returns contextual vectors [B, L, D].

        Args:
          key: dropout key; None for no dropout.
          gather: as for `layer_stack.run_layers`.
        """

    def mlm_logits(self, hidden: jax.Array, positions: Array) -> jax.Array:
        """As `MaskedLM.mlm_logits`."""

    def mlm_losses(self, hidden: jax.Array, positions: Array, labels: Array) -> tuple[jax.Array, jax.Array]:
        """As `MaskedLM.mlm_losses`."""

    def nsp_logits(self, hidden: jax.Array, cls_positions: Array) -> jax.Array | None:
        """Returns float32 [B, E, 2]: column 0 'B follows A', column 1 'it does not'; None without a head for pairs."""


class Family(NamedTuple):
    """Everything that the rest of the project needs to know about an architecture.

    Attributes:
      build: makes a `PretrainingModel`.
      matmuls: of one forward pass, with the arguments of `matmuls`; FLOPs, ceilings and plans follow from it.
      kept_per_token: (model, bytes of an activation, size of the tensor axis) -> bytes that a layer keeps of a token
        for the backward pass, without its attention scores.
      decoder_norm: the path of the norm whose output the decoder over the vocabulary reads.
      attention_radii: model -> for each layer, the positions that a position sees to either side; None for all.
      is_post_norm: whether norms follow the residual connections; otherwise they precede attention and feed-forward.
      has_position_table: whether positions are embeddings that are learned.
      absent_parameters: model -> parameters that are stored but not part of the architecture.
      new_encoder: (model, vocab size, rngs, embeddings) -> an encoder without heads on these embeddings, for the
        generator of replaced tokens; None for a family that does not support them.
      embeddings: the path of the embeddings in the `PretrainingModel`.
      heads: the paths of its heads.
    """

    build: Build
    matmuls: Callable[..., list[Matmul]]
    kept_per_token: Callable[[Any, int, int], float]
    decoder_norm: tuple[str, ...]
    attention_radii: Callable[[Any], list[int | None]] = lambda model: [None] * model.num_layers
    is_post_norm: bool = False
    has_position_table: bool = False
    absent_parameters: Callable[[Any], int] = lambda model: 0
    new_encoder: Callable[..., Any] | None = None
    embeddings: tuple[str, ...] = ('encoder', 'embeddings')
    heads: tuple[tuple[str, ...], ...] = ()


FAMILIES: dict[str, Family] = {
    'bert': Family(
        build=bert.BertForPreTraining,
        matmuls=bert.matmuls,
        kept_per_token=bert.kept_per_token,
        decoder_norm=('mlm_norm',),
        is_post_norm=True,
        has_position_table=True,
        new_encoder=bert.new_encoder,
        embeddings=('bert', 'embeddings'),
        heads=(('bert', 'pooler'), ('mlm_transform',), ('mlm_norm',), ('mlm_bias',), ('nsp',)),
    ),
    'modernbert': Family(
        build=modernbert.ModernBertForMaskedLM,
        matmuls=modernbert.matmuls,
        kept_per_token=layer_kept_per_token,
        decoder_norm=('head', 'norm'),
        attention_radii=modernbert.attention_radii,
        absent_parameters=lambda model: model.hidden_size * (1 + model.norm_bias),  # the norm of the first layer
        new_encoder=modernbert.new_encoder,
        heads=(('head',), ('decoder_bias',)),
    ),
    'eurobert': Family(
        build=eurobert.EuroBertForMaskedLM,
        matmuls=eurobert.matmuls,
        kept_per_token=layer_kept_per_token,
        decoder_norm=('encoder', 'final_norm'),
    ),
}


def family_of(model: config.Model) -> Family:
    """Returns the record of a model's family."""
    return FAMILIES[model.family]


def build_model(model: config.Model, vocab_size: int, rngs: nnx.Rngs) -> Any:
    """Builds the `PretrainingModel` of a config with a tokenizer of `vocab_size` tokens.

    A dtype of 'auto', which a run has resolved, is float32 here.
    """
    return family_of(model).build(model.with_dtype('float32'), model.num_embeddings(vocab_size), rngs)


def matmuls(model: config.Model, vocab_size: int, **counts: Any) -> list[Matmul]:
    """Returns the matmuls of one forward pass, the one list that all counts of work derive from.

    Args:
      vocab_size: columns of the vocabulary projection, padded or not.
      counts:
        rows and length: positions of a row.  visible_length: of them, those in a position's own sequence.
        predictions: slots of the masked-LM head in all rows.  sequences: slots of the pooler in all rows.
        tensor: devices that heads, intermediate layer and vocabulary are split over; the matmuls are those of one.
        as_computed: count local attention by the blocks that the program multiplies, instead of by what the window lets
          a position see. Rows then have a whole number of positions.
    """
    return family_of(model).matmuls(model, vocab_size, **counts)


def num_parameters(model: config.Model, vocab_size: int, build: Build = build_model) -> int:
    """Parameters of a model with its pretraining heads, padding of the vocabulary left out."""
    shapes = nnx.eval_shape(lambda: build(model, vocab_size, nnx.Rngs(0)))
    variables = jax.tree.leaves(nnx.state(shapes, nnx.Param), is_leaf=is_variable)
    num_rows = model.num_embeddings(vocab_size)
    padding = padded_vocab_size(num_rows) - num_rows
    total = 0
    for variable in variables:
        value = variable.get_value()
        num_padded = padding * (value.size // value.shape[0]) if logical_axes(variable)[0] == 'vocab' else 0
        total += value.size - num_padded
    return total - family_of(model).absent_parameters(model)


def encoder_size(model: config.Model, vocab_size: int) -> int:
    """Estimates the parameters of the encoder from its matmuls and word embeddings, without building it."""
    one = {'rows': 1, 'length': 1, 'visible_length': 0, 'predictions': 0, 'sequences': 0}
    layers = sum(m.k * m.n * m.count for m in matmuls(model, 0, **one) if m.m and m.batch == 1)
    num_embeddings = vocab_size + model.max_positions * family_of(model).has_position_table
    return int(layers) + num_embeddings * model.hidden_size


def check_size(model: config.Model, vocab_size: int, num_elements: int, where: str, holds: str) -> None:
    """Checks the sizes of a model from somebody else's config against its weights, before anything is built.

    The code that reads the weights reports other shapes. This check is for sizes that would not fit in memory.

    Args:
      num_elements: of all weights that come with the config.
      where: the directory of the config.
      holds: the file or directory of the weights.

    Raises:
      BadInput: when the encoder is far larger than its weights.
    """
    size = encoder_size(model, vocab_size)
    if size > _SLACK * num_elements + _SMALL_MODEL:
        sizes = f'{model.num_layers:,} layers, hidden size {model.hidden_size:,}, {vocab_size:,} tokens'
        found = f'its config describes an encoder of {size:,} parameters ({sizes})'
        raise BadInput(where, found, f'at most the {num_elements:,} numbers in {holds}', 'the config of these weights')
