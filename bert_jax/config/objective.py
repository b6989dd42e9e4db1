"""What a pretraining run learns, and the settings of its objectives (`train/objectives`)."""

import dataclasses
from typing import ClassVar

from bert_jax.config.data import Data, num_predictions
from bert_jax.config.fields import Role, setting


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a model learns from the text."""

    ROLE: ClassVar[Role] = Role.IDENTITY_IF_SET

    # mlm: masked tokens, and pairs of segments (data.pairing); clm: the next token, with causal attention; mntp: masked
    # tokens, each from the position before it; rtd: which tokens a generator replaced, in all phases or none
    name: str = setting('mlm', choices=('mlm', 'clm', 'mntp', 'rtd'))
    # name=mlm or mntp: share of the rows that learn the next token with causal attention instead, and that share of the
    # loss
    causal_share: float = setting(0.0, 'a number from 0 up to, not including, 1', lambda value: 0 <= value < 1)

    # name=rtd: width of the generator as a share of hidden_size, in whole heads; it is as deep as the model
    generator_width: float = setting(
        1 / 3, 'a number above 0, at most 1', lambda value: 0 < value <= 1, role=Role.SHAPES_IF_SET
    )
    # name=rtd: how the generator shares its embeddings; gdes: the model has them without a gradient, plus a difference
    # that it learns; full: both train the same ones
    share_embeddings: str = setting('gdes', choices=('gdes', 'full'), role=Role.SHAPES_IF_SET)
    # name=rtd: weight of the loss of the model compared with that of the generator
    detector_weight: float = setting(50.0, 'a number above 0', lambda value: value > 0)

    def __str__(self) -> str:
        return self.name + (f' with {self.causal_share:.1%} causal rows' if self.causal_share else '')

    @property
    def learns_pairs(self) -> bool:
        """Whether pairs of segments are learned, if the data have them."""
        return self.name in ('mlm', 'mntp')

    @property
    def reads_causally(self) -> bool:
        """Whether some rows are trained with causal attention."""
        return self.name == 'clm' or self.causal_share > 0

    @property
    def fills_masks(self) -> bool:
        """Whether the masked-LM head learns to predict a masked token at its own position."""
        return self.name == 'mlm'

    def num_predictions(self, data: Data) -> int:
        """Returns the positions of a row that the head over the vocabulary runs on."""
        return data.sequence_length if self.reads_causally else num_predictions(data)
