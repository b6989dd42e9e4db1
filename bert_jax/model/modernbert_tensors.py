"""ModernBERT's tensors in `transformers`."""

from bert_jax.config.families import ModernBert
from bert_jax.model.tensors import Tensor, dense, norm, vocabulary

_LAYER, _THEIR_LAYER = 'encoder/layers', 'model.layers.#'


def encoder_tensors(model: ModernBert) -> list[Tensor]:
    """Of the encoder; layer 0 has no norm before its attention."""
    has_bias = model.norm_bias
    attention = tuple(f'{_LAYER}/attention/{part}' for part in ('query', 'key', 'value'))
    return [
        *vocabulary('encoder/embeddings/word', 'model.embeddings.tok_embeddings.weight'),
        *norm('encoder/embeddings/norm', 'model.embeddings.norm', bias=has_bias),
        *norm(f'{_LAYER}/attention_norm', f'{_THEIR_LAYER}.attn_norm', bias=has_bias, first_layer=False),
        *dense(attention, f'{_THEIR_LAYER}.attn.Wqkv', bias=model.attention_bias),
        *dense(f'{_LAYER}/attention/output', f'{_THEIR_LAYER}.attn.Wo', bias=model.attention_bias),
        *norm(f'{_LAYER}/mlp_norm', f'{_THEIR_LAYER}.mlp_norm', bias=has_bias),
        *dense((f'{_LAYER}/mlp/gate', f'{_LAYER}/mlp/up'), f'{_THEIR_LAYER}.mlp.Wi', bias=model.mlp_bias),
        *dense(f'{_LAYER}/mlp/output', f'{_THEIR_LAYER}.mlp.Wo', bias=model.mlp_bias),
        *norm('encoder/final_norm', 'model.final_norm', bias=has_bias),
    ]


def head_tensors(model: ModernBert) -> list[Tensor]:
    """Of the prediction head, which masked-LM and task models share."""
    return [
        *dense('head/dense', 'head.dense', bias=model.classifier_bias),
        *norm('head/norm', 'head.norm', bias=model.norm_bias),
    ]


def masked_lm_tensors(model: ModernBert) -> list[Tensor]:
    """Of `ModernBertForMaskedLM`; its decoder's kernel is the word embeddings, which are listed once."""
    return (
        encoder_tensors(model) + head_tensors(model) + vocabulary('decoder_bias', 'decoder.bias') * model.decoder_bias
    )
