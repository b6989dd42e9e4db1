"""EuroBERT's tensors in `transformers`."""

from bert_jax.config.families import EuroBert
from bert_jax.model.tensors import Tensor, dense, norm, vocabulary

_LAYER, _THEIR_LAYER = 'encoder/layers', 'model.layers.#'


def encoder_tensors(model: EuroBert) -> list[Tensor]:
    """Of the encoder."""
    attention, theirs = f'{_LAYER}/attention', f'{_THEIR_LAYER}.self_attn'
    return [
        *vocabulary('encoder/embeddings/word', 'model.embed_tokens.weight'),
        *norm(f'{_LAYER}/attention_norm', f'{_THEIR_LAYER}.input_layernorm', bias=False),
        *dense(f'{attention}/query', f'{theirs}.q_proj', bias=model.attention_bias),
        *dense(f'{attention}/key', f'{theirs}.k_proj', bias=model.attention_bias),
        *dense(f'{attention}/value', f'{theirs}.v_proj', bias=model.attention_bias),
        *dense(f'{attention}/output', f'{theirs}.o_proj', bias=model.attention_bias),
        *norm(f'{_LAYER}/mlp_norm', f'{_THEIR_LAYER}.post_attention_layernorm', bias=False),
        *dense(f'{_LAYER}/mlp/gate', f'{_THEIR_LAYER}.mlp.gate_proj', bias=model.mlp_bias),
        *dense(f'{_LAYER}/mlp/up', f'{_THEIR_LAYER}.mlp.up_proj', bias=model.mlp_bias),
        *dense(f'{_LAYER}/mlp/output', f'{_THEIR_LAYER}.mlp.down_proj', bias=model.mlp_bias),
        *norm('encoder/final_norm', 'model.norm', bias=False),
    ]


def masked_lm_tensors(model: EuroBert) -> list[Tensor]:
    """Of `EuroBertForMaskedLM`."""
    decoder = vocabulary('decoder', 'lm_head.weight') * (not model.tie_word_embeddings)
    return encoder_tensors(model) + decoder + vocabulary('decoder_bias', 'lm_head.bias') * model.mlp_bias
