"""An encoder that detects which tokens a small generator has replaced (Clark et al. 2020, "ELECTRA").

`B` rows, `L` positions, `D` hidden of the discriminator, `d` of the generator, `V` vocabulary (padded).

Both read embeddings of width D. They are the same (`full`), or those of the discriminator are the generator's, without
a gradient, plus a difference that it learns: gradient-disentangled sharing (He et al. 2021, "DeBERTaV3", section 3.2).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax import config
from bert_jax.model.dropout import DropoutKey
from bert_jax.model.family import Build, build_model, family_of, matmuls
from bert_jax.model.inputs import Array, Inputs
from bert_jax.model.layer_stack import Gather
from bert_jax.model.layers import Dense, LayerNorm, gelu, logical_axes, parameter
from bert_jax.model.masked_lm import MaskedLM
from bert_jax.model.matmul import Matmul
from bert_jax.model.vocabulary import at_positions, padded_vocab_size

_EPS = 1e-12  # of the norm in the head of the generator


def generator_model(model: config.Model, width: float) -> Any:
    """Returns the model section of the generator: as deep, and narrower by whole heads. width: as a share."""
    num_heads = max(1, round(model.num_heads * width))
    inner = max(1, round(model.intermediate_size * num_heads / model.num_heads))
    size = model.hidden_size // model.num_heads * num_heads
    return dataclasses.replace(model, num_heads=num_heads, hidden_size=size, intermediate_size=inner)


class Projected(nnx.Module):
    """Embeddings of width D for layers of width d."""

    def __init__(self, embeddings: Any, model: config.Model, narrow: config.Model, rngs: nnx.Rngs):
        self.embeddings = embeddings
        sizes, axes = (model.hidden_size, narrow.hidden_size), ('embed', 'pooled')
        self.project = Dense(*sizes, axes, model.initializer_range, model.dtype, rngs)

    def __call__(self, inputs: Any, key: DropoutKey | None) -> jax.Array:
        """Returns [B, L, d]; arguments as for the embeddings of the family."""
        return self.project(self.embeddings(inputs, key))


class Generator(MaskedLM):
    """A narrow encoder with a masked-LM head, whose decoder is tied to the embeddings of width D."""

    def __init__(self, model: config.Model, narrow: config.Model, vocab_size: int, embeddings: Any, rngs: nnx.Rngs):
        """Args: model, of the discriminator; narrow: `generator_model`; vocab_size: without padding."""
        new_encoder = family_of(model).new_encoder
        assert new_encoder is not None  # `config.checks` refuses other families
        self.encoder = new_encoder(narrow, vocab_size, rngs, Projected(embeddings, model, narrow, rngs))
        sizes = narrow.hidden_size, model.hidden_size
        self.transform = Dense(*sizes, ('embed', 'pooled'), model.initializer_range, model.dtype, rngs)
        self.norm = LayerNorm(model.hidden_size, _EPS, model.dtype)
        self.bias = parameter(jnp.zeros(padded_vocab_size(vocab_size)), 'vocab')
        self.vocab_size, self.dtype = vocab_size, model.dtype

    @property
    def embeddings(self) -> Any:
        """Those of width D."""
        return self.encoder.embeddings.embeddings

    def encode(self, inputs: Inputs, key: DropoutKey | None = None, gather: Gather | None = None) -> jax.Array:
        """Returns contextual vectors [B, L, d]; arguments as for `PretrainingModel.encode`."""
        return self.encoder(inputs, key, gather)

    def decoder_inputs(self, hidden: jax.Array, positions: Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        x = self.norm(gelu(self.transform(at_positions(hidden, positions))))
        return x, self.embeddings.word[...], self.bias[...]


class Detector(nnx.Module):
    """The head of the discriminator: a dense layer with gelu, and a logit at each position."""

    def __init__(self, model: config.Model, rngs: nnx.Rngs):
        size, stddev = model.hidden_size, model.initializer_range
        self.dense = Dense(size, size, ('embed', 'pooled'), stddev, model.dtype, rngs)
        self.output = Dense(size, 1, ('embed', 'labels'), stddev, 'float32', rngs)

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """[B, L, D] -> float32 [B, L]; positive for a replaced token."""
        return self.output(gelu(self.dense(hidden)).astype(jnp.float32))[..., 0]


class ReplacedTokens(nnx.Module):
    """The discriminator, a `PretrainingModel` without its heads, with its detector and the generator."""

    def __init__(self, settings: config.Objective, model: config.Model, vocab_size: int, rngs: nnx.Rngs):
        """Args: vocab_size: rows of the word embeddings, without padding."""
        family = family_of(model)
        self.discriminator = family.build(model, vocab_size, rngs)
        for *parents, name in family.heads:
            delattr(functools.reduce(getattr, parents, self.discriminator), name)
        self._is_disentangled, self._path = settings.share_embeddings == 'gdes', family.embeddings
        embeddings = functools.reduce(getattr, family.embeddings, self.discriminator)
        if self._is_disentangled:
            graph, values = nnx.split(embeddings)
            embeddings = nnx.merge(graph, values)  # the generator's; those of the discriminator begin as a difference
            own = functools.reduce(getattr, family.embeddings[:-1], self.discriminator)
            setattr(
                own, family.embeddings[-1], nnx.merge(graph, jax.tree.map(_zeros_of_table, values, is_leaf=_is_leaf))
            )
        narrow = generator_model(model, settings.generator_width)
        self.generator = Generator(model, narrow, vocab_size, embeddings, rngs)
        self.detector = Detector(model, rngs)

    def whole_discriminator(self) -> Any:
        """Returns the discriminator with the sum of both embeddings; those of the generator get no gradient."""
        if not self._is_disentangled:
            return self.discriminator
        graph, values = nnx.split(self.discriminator)
        flat = dict(nnx.to_flat_state(values))
        for path, theirs in nnx.to_flat_state(nnx.state(self.generator.embeddings)):
            if _is_table(theirs):
                own = flat[*self._path, *path]
                total = own.get_value() + jax.lax.stop_gradient(theirs.get_value())
                flat[*self._path, *path] = own.replace(total)
        return nnx.merge(graph, nnx.from_flat_state(flat))


def _is_leaf(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


def _is_table(variable: nnx.Variable) -> bool:
    return len(logical_axes(variable)) == 2


def _zeros_of_table(variable: nnx.Variable) -> nnx.Variable:
    """Returns zeros for a table of embeddings, and a copy of a norm."""
    value = variable.get_value()
    return variable.replace(jnp.zeros_like(value) if _is_table(variable) else jnp.copy(value))


@functools.cache
def builder(settings: config.Objective) -> Callable[[Any, int, nnx.Rngs], ReplacedTokens]:
    """Returns a function that builds `ReplacedTokens`."""

    def build(model: Any, num_tokens: int, rngs: nnx.Rngs) -> ReplacedTokens:
        return ReplacedTokens(settings, model.with_dtype('float32'), model.num_embeddings(num_tokens), rngs)

    return build


def build_of(settings: config.Objective) -> Build:
    """Returns the function that builds the model of a pretraining run."""
    return builder(settings) if settings.name == 'rtd' else build_model


def to_family(params: nnx.State, settings: config.Objective, model: config.Model, vocab_size: int) -> nnx.State:
    """Returns the parameters of the `PretrainingModel` of a run, whose heads are new ones if it has replaced tokens.

    Args:
      params: of the model that `build_of` builds.
      vocab_size: tokens of the tokenizer.
    """
    if settings.name != 'rtd':
        return params
    graph = nnx.split(nnx.eval_shape(lambda: builder(settings)(model, vocab_size, nnx.Rngs(0))))[0]
    trained = dict(nnx.to_flat_state(nnx.state(nnx.merge(graph, params).whole_discriminator(), nnx.Param)))
    new = nnx.to_flat_state(nnx.state(build_model(model, vocab_size, nnx.Rngs(0)), nnx.Param))
    return nnx.from_flat_state({path: trained.get(path, value) for path, value in new})


def replaced_token_matmuls(
    settings: config.Objective, model: config.Model, vocab_size: int, **counts: Any
) -> list[Matmul]:
    """Returns the matmuls of one forward pass of both models; arguments as for `family.matmuls`.

    Tokens are drawn from logits that are computed once more, which does not count.
    """
    narrow, tensor = generator_model(model, settings.generator_width), counts.get('tensor', 1)
    tokens, headless = counts['rows'] * counts['length'], counts | {'predictions': 0, 'sequences': 0}
    D, d, predictions = model.hidden_size, narrow.hidden_size, counts['predictions']
    of_generator = [each._replace(name=f'generator: {each.name}') for each in matmuls(narrow, 0, **headless) if each.m]
    return [
        Matmul('generator: embeddings', 1, tokens, D, d, 1),
        *of_generator,
        Matmul('generator: transform', 1, predictions, d, D, 1),
        Matmul('generator: vocabulary', 1, predictions, D, vocab_size // tensor, 1),
        *(each for each in matmuls(model, 0, **headless) if each.m),
        Matmul('detector', 1, tokens * bool(predictions), D, D, 1),
        Matmul('detector logits', 1, tokens * bool(predictions), D, 1, 1),
    ]
