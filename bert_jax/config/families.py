"""The model sections of the encoder families other than BERT; `model.family` selects one.

Fields that a family shares with BERT have BERT's names; all others have the names of `transformers`.
"""

import dataclasses
from typing import Any, ClassVar

from bert_jax.config.fields import Role, as_in, at_least, fraction, setting
from bert_jax.config.pretraining import Model

FULL, SLIDING = 'full_attention', 'sliding_attention'


def _are_layer_types(value: Any) -> bool:
    return all(kind in (FULL, SLIDING) for kind in value)


@dataclasses.dataclass(frozen=True)
class ModernBert:
    """ModernBERT (Warner et al. 2024, arXiv 2412.13663), also the architecture of Ettin and mmBERT."""

    ROLE: ClassVar[Role] = Role.IDENTITY

    family: str = setting('modernbert', choices=('modernbert',), role=Role.SHAPES)
    num_layers: int = at_least(22, 1, Role.SHAPES)
    hidden_size: int = as_in(Model, 'hidden_size')
    num_heads: int = as_in(Model, 'num_heads')
    intermediate_size: int = at_least(1152, 1, Role.SHAPES)
    max_positions: int = at_least(8192, 8)
    global_attn_every_n_layers: int = at_least(3, 1)
    # one of 'full_attention', 'sliding_attention' per layer; () follows global_attn_every_n_layers
    layer_types: tuple = setting((), f'a tuple of {FULL!r} and {SLIDING!r}', _are_layer_types)
    local_attention: int = at_least(128, 2)  # window of sliding layers: local_attention // 2 positions to either side
    global_rope_theta: float = at_least(160_000.0, 1)
    local_rope_theta: float = at_least(10_000.0, 1)
    attention_bias: bool = setting(False, role=Role.SHAPES)
    mlp_bias: bool = setting(False, role=Role.SHAPES)
    norm_bias: bool = setting(False, role=Role.SHAPES)
    decoder_bias: bool = setting(True, role=Role.SHAPES)
    classifier_bias: bool = setting(False, role=Role.SHAPES)  # of the dense layer of the prediction head
    embedding_dropout: float = fraction(0.0)
    attention_dropout: float = fraction(0.0)  # of the attention weights, and of the output of attention
    mlp_dropout: float = fraction(0.0)
    initializer_range: float = as_in(Model, 'initializer_range')
    norm_eps: float = as_in(Model, 'layer_norm_eps', 1e-5)
    dtype: str = as_in(Model, 'dtype')
    remat: str = as_in(Model, 'remat')
    attention: str = as_in(Model, 'attention')
    scan_layers: bool = as_in(Model, 'scan_layers')

    @property
    def kinds(self) -> tuple[str, ...]:
        """The type of attention of every layer."""
        every = self.global_attn_every_n_layers
        return self.layer_types or tuple(SLIDING if layer % every else FULL for layer in range(self.num_layers))


@dataclasses.dataclass(frozen=True)
class EuroBert:
    """EuroBERT (Boizard et al. 2025, arXiv 2503.05500)."""

    ROLE: ClassVar[Role] = Role.IDENTITY

    family: str = setting('eurobert', choices=('eurobert',), role=Role.SHAPES)
    num_layers: int = as_in(Model, 'num_layers')
    hidden_size: int = as_in(Model, 'hidden_size')
    num_heads: int = as_in(Model, 'num_heads')
    # key and value heads, each shared by num_heads / num_key_value_heads query heads; 0: as many as num_heads
    num_key_value_heads: int = at_least(0, 0, Role.SHAPES)
    intermediate_size: int = as_in(Model, 'intermediate_size')
    max_positions: int = at_least(8192, 8)
    rope_theta: float = at_least(250_000.0, 1)
    attention_bias: bool = setting(False, role=Role.SHAPES)
    mlp_bias: bool = setting(False, role=Role.SHAPES)
    tie_word_embeddings: bool = setting(False, role=Role.SHAPES)
    attention_dropout: float = fraction(0.0)
    initializer_range: float = as_in(Model, 'initializer_range')
    rms_norm_eps: float = as_in(Model, 'layer_norm_eps', 1e-5)
    dtype: str = as_in(Model, 'dtype')
    remat: str = as_in(Model, 'remat')
    attention: str = as_in(Model, 'attention')
    scan_layers: bool = as_in(Model, 'scan_layers')
