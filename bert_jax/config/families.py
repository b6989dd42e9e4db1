"""The model section of each encoder family; `model.family` selects one.

Fields that only some families have are named as in `transformers`, where they exist there.
"""

import dataclasses
from typing import Any, ClassVar

from bert_jax.config.fields import Role, as_in, at_least, fraction, setting
from bert_jax.errors import BadInput

FULL, SLIDING = 'full_attention', 'sliding_attention'


@dataclasses.dataclass(frozen=True)
class Model:
    """The fields that every encoder has."""

    ROLE: ClassVar[Role] = Role.IDENTITY
    LEARNS_PAIRS: ClassVar[bool] = False  # whether it has a head for pairs of segments
    DETECTS_REPLACED: ClassVar[bool] = False  # whether `objective.name` may be rtd
    # What is chosen for a run. The other fields, but for dropout, describe the weights.
    TRAINING_FIELDS: ClassVar[tuple[str, ...]] = ('initializer_range', 'dtype', 'remat', 'attention', 'scan_layers')

    # the architecture
    family: str = ''
    # encoder layers
    num_layers: int = at_least(12, 1, Role.SHAPES)
    # size of the hidden states
    hidden_size: int = at_least(768, 1, Role.SHAPES)
    # attention heads; they divide hidden_size
    num_heads: int = at_least(12, 1, Role.SHAPES)
    # size of the feed-forward layer
    intermediate_size: int = at_least(3072, 1, Role.SHAPES)
    # most tokens of a sequence
    max_positions: int = at_least(512, 8, Role.SHAPES)
    # rows of the word embeddings where they are more than the tokens of the tokenizer; 0: one row for each token
    vocab_size: int = at_least(0, 0, Role.IDENTITY_IF_SET)
    # standard deviation of the initial weights
    initializer_range: float = setting(0.02, 'a number above 0', lambda value: value > 0)
    # of the computation; parameters and optimizer state are float32. auto: bfloat16 on devices that multiply it fast
    # (TPUs, GPUs from Ampere on, CPUs with avx512_bf16 or amx_bf16), else float32; chosen when a run starts
    dtype: str = setting('auto', choices=('auto', 'float32', 'bfloat16'), before='float32')
    # what the backward pass recomputes to save memory: nothing, all but matmuls without a batch dim, or whole layers
    remat: str = setting('none', choices=('none', 'dots', 'full'), role=Role.EXECUTION)
    # fused kernels do not store the scores; auto uses one where it supports the shapes, fused requires one, plain never
    # uses one
    attention: str = setting('auto', choices=('auto', 'plain', 'fused'), role=Role.EXECUTION)
    # compile one layer and loop over it; False unrolls the layers, which compiles longer and runs faster; None unrolls
    # up to 4 layers, and without remat and mesh.fsdp up to 28 on GPUs and 16 on TPUs
    scan_layers: bool | None = setting(None, role=Role.EXECUTION, before=True)

    def check(self) -> None:
        """Raises `BadInput` if fields do not fit together."""

    def with_dtype(self, dtype: str) -> Any:
        """Returns the model with this dtype in place of 'auto'."""
        return dataclasses.replace(self, dtype=dtype) if self.dtype == 'auto' else self

    @property
    def num_kv_heads(self) -> int:
        """The number of key and value heads; each serves num_heads / num_kv_heads query heads."""
        return self.num_heads

    @property
    def drops_attention_weights(self) -> bool:
        """Whether training drops attention weights."""
        return False

    @property
    def kinds(self) -> tuple[str, ...]:
        """The attention type of each layer."""
        return (FULL,) * self.num_layers

    @property
    def attention_window(self) -> int:
        """Tokens in the window of sliding layers; 0 for a family without them."""
        return 0

    def num_embeddings(self, num_tokens: int) -> int:
        """Returns the rows of the word embeddings with a tokenizer of `num_tokens` tokens."""
        return max(self.vocab_size, num_tokens)

    def with_architecture_of(self, initial: 'Model') -> Any:
        """Returns the architecture of an initial model with the training settings of this one.

        Those are `Model.TRAINING_FIELDS` and, if both are of one family, its dropout rates and other training fields.
        """
        names = set(Model.TRAINING_FIELDS)
        if self.family == initial.family:
            names |= {field.name for field in dataclasses.fields(self) if 'dropout' in field.name}
            names |= set(self.TRAINING_FIELDS)
        return dataclasses.replace(initial, **{name: getattr(self, name) for name in names})


@dataclasses.dataclass(frozen=True)
class Bert(Model):
    """BERT (Devlin et al. 2019)."""

    LEARNS_PAIRS: ClassVar[bool] = True
    DETECTS_REPLACED: ClassVar[bool] = True

    family: str = setting('bert', choices=('bert',), role=Role.IDENTITY_IF_SET)
    # dropout of embeddings and of the output of attention and feed-forward
    dropout_rate: float = fraction(0.1)
    # dropout of the attention weights
    attention_dropout_rate: float = fraction(0.1)
    # added to the variance in layer norms
    layer_norm_eps: float = setting(1e-12, 'a number above 0', lambda value: value > 0)

    @property
    def drops_attention_weights(self) -> bool:
        return self.attention_dropout_rate > 0


@dataclasses.dataclass(frozen=True)
class PreNorm(Model):
    """The fields of encoders with pre-norm layers, rotary positions and gated MLPs (`model/pre_norm.py`)."""

    max_positions: int = at_least(8192, 8)
    # biases in the dense layers of attention
    attention_bias: bool = setting(False, role=Role.SHAPES)
    # biases in the feed-forward layers
    mlp_bias: bool = setting(False, role=Role.SHAPES)
    # dropout of the attention weights
    attention_dropout: float = fraction(0.0)

    def check(self) -> None:
        if self.hidden_size // self.num_heads % 2:
            raise BadInput(
                'config.model.num_heads',
                f'is {self.num_heads}: heads of {self.hidden_size // self.num_heads} cannot be rotated in pairs',
                'heads of an even size',
            )

    @property
    def drops_attention_weights(self) -> bool:
        return self.attention_dropout > 0


def _are_layer_types(value: Any) -> bool:
    return all(kind in (FULL, SLIDING) for kind in value)


@dataclasses.dataclass(frozen=True)
class ModernBert(PreNorm):
    """ModernBERT (Warner et al. 2024, arXiv 2412.13663), also the architecture of Ettin and mmBERT."""

    DETECTS_REPLACED: ClassVar[bool] = True
    family: str = setting('modernbert', choices=('modernbert',), role=Role.SHAPES)
    num_layers: int = as_in(Model, 'num_layers', 22)
    intermediate_size: int = as_in(Model, 'intermediate_size', 1152)
    # every n-th layer, from the first, attends to the whole sequence; the others attend locally
    global_attn_every_n_layers: int = at_least(3, 1)
    # 'full_attention' or 'sliding_attention' for each layer; () follows global_attn_every_n_layers
    layer_types: tuple = setting((), f'a tuple of {FULL!r} and {SLIDING!r}', _are_layer_types)
    # window of sliding layers in tokens: a token sees local_attention // 2 to either side
    local_attention: int = at_least(128, 2)
    # base of the rotary wavelengths in layers with full attention
    global_rope_theta: float = at_least(160_000.0, 1)
    # base of the rotary wavelengths in sliding layers
    local_rope_theta: float = at_least(10_000.0, 1)
    # biases in the layer norms
    norm_bias: bool = setting(False, role=Role.SHAPES)
    # a bias for each token in the masked-LM head
    decoder_bias: bool = setting(True, role=Role.SHAPES)
    # a bias in the dense layer of the prediction head
    classifier_bias: bool = setting(False, role=Role.SHAPES)
    # what the classifier of a fine-tuned model reads: the vector of [CLS], or the mean of all vectors
    classifier_pooling: str = setting('cls', choices=('cls', 'mean'), role=Role.IDENTITY_IF_SET)
    # dropout before the classifier of a fine-tuned model
    classifier_dropout: float = fraction(0.0, Role.IDENTITY_IF_SET)
    # dropout of the embeddings
    embedding_dropout: float = fraction(0.0)
    # dropout of the attention weights, and of the output of attention
    attention_dropout: float = fraction(0.0)
    # dropout of the gated values of the feed-forward layer
    mlp_dropout: float = fraction(0.0)
    # added to the variance in layer norms
    norm_eps: float = as_in(Bert, 'layer_norm_eps', 1e-5)

    @property
    def attention_window(self) -> int:
        return self.local_attention

    @property
    def kinds(self) -> tuple[str, ...]:
        every = self.global_attn_every_n_layers
        return self.layer_types or tuple(SLIDING if layer % every else FULL for layer in range(self.num_layers))

    def check(self) -> None:
        if self.layer_types and len(self.layer_types) != self.num_layers:
            found = f'has {len(self.layer_types)} layer types'
            expected = f'one for each of the {self.num_layers} layers'
            raise BadInput('config.model.layer_types', found, expected, '() follows model.global_attn_every_n_layers')
        super().check()


@dataclasses.dataclass(frozen=True)
class EuroBert(PreNorm):
    """EuroBERT (Boizard et al. 2025, arXiv 2503.05500)."""

    family: str = setting('eurobert', choices=('eurobert',), role=Role.SHAPES)
    # key and value heads, each shared by num_heads / num_key_value_heads query heads; 0: as many as num_heads
    num_key_value_heads: int = at_least(0, 0, Role.SHAPES)
    # base of the rotary wavelengths
    rope_theta: float = at_least(250_000.0, 1)
    # biases in the feed-forward layers and the decoder
    mlp_bias: bool = setting(False, role=Role.SHAPES)
    # what the classifier of a fine-tuned model reads: the first vector (bos), the mean of all vectors, or each vector,
    # with the mean taken of its outputs (late)
    classifier_pooling: str = setting('late', choices=('bos', 'mean', 'late'), role=Role.IDENTITY_IF_SET)
    # use the word embeddings as the decoder
    tie_word_embeddings: bool = setting(False, role=Role.SHAPES)
    # added to the mean square in RMS norms
    rms_norm_eps: float = as_in(Bert, 'layer_norm_eps', 1e-5)

    @property
    def num_kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_heads

    def check(self) -> None:
        if self.num_key_value_heads and self.num_heads % self.num_key_value_heads:
            raise BadInput(
                'config.model.num_key_value_heads',
                f'is {self.num_key_value_heads}, which does not divide num_heads={self.num_heads}',
                f'a divisor of {self.num_heads}, or 0 for as many',
            )
        super().check()


FAMILIES: dict[str, type[Model]] = {'bert': Bert, 'modernbert': ModernBert, 'eurobert': EuroBert}
