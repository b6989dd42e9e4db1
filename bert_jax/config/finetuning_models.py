"""The model section of a fine-tune: settings that differ from those of the initial model, which determines the rest."""

import dataclasses
from typing import ClassVar

from bert_jax import config
from bert_jax.config.fields import Role, as_in, setting
from bert_jax.errors import BadInput

_RATE = 'None (as the initial model has it), or a number from 0 up to, not including, 1'


def _is_rate(value: float | None) -> bool:
    return value is None or 0 <= value < 1


@dataclasses.dataclass(frozen=True)
class Bert(config.Bert):
    """A BERT encoder. The initial model determines its sizes and the fields that are None."""

    # standard deviation of new weights: head, reinitialized layers, a pooler that the initial model lacks; None: the
    # initial model's own
    initializer_range: float | None = setting(  # ty: ignore[incompatible-attribute-override]
        None, 'None (as the initial model has it), or a number above 0', lambda v: v is None or v > 0, before=0.02
    )
    # dropout of embeddings, attention output, feed-forward and head; None: the initial model's own
    dropout_rate: float | None = setting(None, _RATE, _is_rate, before=0.1)  # ty: ignore[incompatible-attribute-override]
    # dropout of the attention weights; None: the initial model's own
    attention_dropout_rate: float | None = setting(None, _RATE, _is_rate, before=0.1)  # ty: ignore[incompatible-attribute-override]


@dataclasses.dataclass(frozen=True)
class ModernBert(config.ModernBert):
    """A ModernBERT encoder; None as in `Bert`."""

    TRAINING_FIELDS: ClassVar[tuple[str, ...]] = (*config.Model.TRAINING_FIELDS, 'classifier_pooling')

    initializer_range: float | None = as_in(Bert, 'initializer_range')  # ty: ignore[incompatible-attribute-override]
    # what the classifier reads: the vector of [CLS], or the mean of all vectors; None: as the initial model
    classifier_pooling: str | None = setting(  # ty: ignore[incompatible-attribute-override]
        None, choices=(None, 'cls', 'mean'), role=Role.IDENTITY_IF_SET
    )
    # dropout before the classifier; None: the initial model's own
    classifier_dropout: float | None = setting(None, _RATE, _is_rate)  # ty: ignore[incompatible-attribute-override]
    # dropout of the embeddings; None: the initial model's own
    embedding_dropout: float | None = setting(None, _RATE, _is_rate)  # ty: ignore[incompatible-attribute-override]
    # dropout of the attention weights, and of the output of attention; None: the initial model's own
    attention_dropout: float | None = setting(None, _RATE, _is_rate)  # ty: ignore[incompatible-attribute-override]
    # dropout of the gated values of the feed-forward layer; None: the initial model's own
    mlp_dropout: float | None = setting(None, _RATE, _is_rate)  # ty: ignore[incompatible-attribute-override]


@dataclasses.dataclass(frozen=True)
class EuroBert(config.EuroBert):
    """A EuroBERT encoder; None as in `Bert`."""

    TRAINING_FIELDS: ClassVar[tuple[str, ...]] = (*config.Model.TRAINING_FIELDS, 'classifier_pooling')

    initializer_range: float | None = as_in(Bert, 'initializer_range')  # ty: ignore[incompatible-attribute-override]
    # what the classifier reads: the first vector (bos), the mean of all vectors, or each vector, with the mean taken of
    # its outputs (late); None: as the initial model
    classifier_pooling: str | None = setting(  # ty: ignore[incompatible-attribute-override]
        None, choices=(None, 'bos', 'mean', 'late'), role=Role.IDENTITY_IF_SET
    )
    # dropout of the attention weights; None: the initial model's own
    attention_dropout: float | None = setting(None, _RATE, _is_rate)  # ty: ignore[incompatible-attribute-override]


MODELS: dict[str, type[config.Model]] = {'bert': Bert, 'modernbert': ModernBert, 'eurobert': EuroBert}


def adapt_to_initial(model: config.Model, initial: config.Model) -> config.Model:
    """Returns the architecture of the initial model with the settings of a fine-tune's model section.

    Where a setting is None, or the initial model is of another family, the initial model's own applies.

    Raises:
      BadInput: if a field is set, such as a dropout rate, that the family of the initial model does not have.
    """
    section = MODELS[initial.family]
    known = {field.name for field in dataclasses.fields(section)}
    for field in dataclasses.fields(model):
        value = getattr(model, field.name)
        if field.name not in known and field.default is None and value is not None:
            found = f'is {value}, but the initial model is of the family {initial.family!r}'
            fix = f'leave it out; --config.model.family={initial.family} has its own fields'
            raise BadInput(f'config.model.{field.name}', found, f'a field of {initial.family}', fix)
    architecture = {field.name: getattr(initial, field.name) for field in dataclasses.fields(initial)}
    adapted = model.with_architecture_of(section(**architecture))
    values = architecture | {'scan_layers': None}  # not that of the initial model's own run
    unset = {name: value for name, value in values.items() if getattr(adapted, name) is None}
    return dataclasses.replace(adapted, **unset)


def with_own_defaults(model: config.Model) -> config.Model:
    """Returns a model of random weights: what is None takes the defaults of pretraining."""
    values = {name: value for name, value in vars(model).items() if value is not None}
    return adapt_to_initial(model, config.FAMILIES[model.family](**values))
