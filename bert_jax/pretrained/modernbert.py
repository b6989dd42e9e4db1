"""ModernBERT, also the format of Ettin and mmBERT, as `transformers` stores it."""

from pathlib import Path
from typing import Any

from bert_jax.config.families import FULL, SLIDING, ModernBert
from bert_jax.config.finetuning import POOLED
from bert_jax.errors import BadInput
from bert_jax.model.modernbert import out_stddev
from bert_jax.pretrained.hub import MLM_HEAD, PREDICTION_HEAD, HubFamily, Keys
from bert_jax.pretrained.rope import check_unscaled, read_theta, write_theta
from bert_jax.pretrained.tensors import Tensor, dense, norm, vocabulary

_LAYER, _HUB_LAYER = 'encoder/layers', 'model.layers.#'
_WORD = 'model.embeddings.tok_embeddings.weight'
_THETAS = {FULL: 'global_rope_theta', SLIDING: 'local_rope_theta'}  # also the names of the fields
_EVERY = 'global_attn_every_n_layers'


def _encoder_tensors(model: ModernBert) -> list[Tensor]:
    """Returns the tensors of the encoder; layer 0 has no norm before its attention."""
    has_bias = model.norm_bias
    attention = tuple(f'{_LAYER}/attention/{part}' for part in ('query', 'key', 'value'))
    return [
        *vocabulary('encoder/embeddings/word', _WORD),
        *norm('encoder/embeddings/norm', 'model.embeddings.norm', bias=has_bias),
        *norm(f'{_LAYER}/attention_norm', f'{_HUB_LAYER}.attn_norm', bias=has_bias, first_layer=False),
        *dense(attention, f'{_HUB_LAYER}.attn.Wqkv', bias=model.attention_bias),
        *dense(f'{_LAYER}/attention/output', f'{_HUB_LAYER}.attn.Wo', bias=model.attention_bias),
        *norm(f'{_LAYER}/mlp_norm', f'{_HUB_LAYER}.mlp_norm', bias=has_bias),
        *dense((f'{_LAYER}/mlp/gate', f'{_LAYER}/mlp/up'), f'{_HUB_LAYER}.mlp.Wi', bias=model.mlp_bias),
        *dense(f'{_LAYER}/mlp/output', f'{_HUB_LAYER}.mlp.Wo', bias=model.mlp_bias),
        *norm('encoder/final_norm', 'model.final_norm', bias=has_bias),
    ]


def _head_tensors(model: ModernBert) -> list[Tensor]:
    """Returns the tensors of the prediction head, which the classes for masked tokens and for tasks share."""
    return [
        *dense('head/dense', 'head.dense', bias=model.classifier_bias),
        *norm('head/norm', 'head.norm', bias=model.norm_bias),
    ]


def _masked_lm_tensors(model: ModernBert) -> list[Tensor]:
    """Returns the tensors of the pretraining class; the kernel of its decoder is the word embeddings."""
    bias = vocabulary('decoder_bias', 'decoder.bias') * model.decoder_bias
    return _encoder_tensors(model) + _head_tensors(model) + bias


def _task_tensors(model: ModernBert, kind: str) -> list[Tensor]:
    return _encoder_tensors(model) + _head_tensors(model) + dense('classifier', 'classifier')


def _current_name(name: str) -> str:
    """Returns the name in the tables of a tensor, which a bare encoder has without its prefix."""
    return f'model.{name}' if name.startswith(('embeddings.', 'layers.', 'final_norm.')) else name


def _read_others(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Reads rotary wavelengths and layer types, in the spelling of `transformers` 4 or 5."""
    check_unscaled(content, path)
    parameters = content.get('rope_parameters') or {}
    if not isinstance(parameters, dict):
        raise BadInput(str(path), f'rope_parameters is {parameters!r}', 'an object with a key for each layer type')
    fields: dict[str, Any] = {}
    for kind, field in _THETAS.items():
        theta = read_theta(parameters.get(kind), content.get(field), path, f'rope_parameters.{kind}')
        fields |= {} if theta is None else {field: theta}
    local, shared = _THETAS[SLIDING], _THETAS[FULL]
    if local in content and local not in fields and shared in fields:  # null: all layers have the same wavelengths
        fields[local] = fields[shared]
    kinds = content.get('layer_types')
    if kinds is None:
        return fields
    every = content.get(_EVERY, ModernBert().global_attn_every_n_layers)
    has_period = type(every) is int and every > 0
    if has_period and kinds == [SLIDING if layer % every else FULL for layer in range(content['num_hidden_layers'])]:
        return fields
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        raise BadInput(str(path), f'layer_types is {kinds!r}', f'a list of {FULL!r} and {SLIDING!r}')
    return fields | {'layer_types': tuple(kinds)}


def _write_others(model: ModernBert) -> dict[str, Any]:
    """Writes both spellings: `transformers` 4 reads the first three keys, 5 the others."""
    thetas = {field: getattr(model, field) for field in _THETAS.values()}
    parameters = {kind: write_theta(thetas[field]) for kind, field in _THETAS.items()}
    return {
        _EVERY: model.global_attn_every_n_layers,
        **thetas,
        'layer_norm_eps': model.norm_eps,
        'rope_parameters': parameters,
        'layer_types': list(model.kinds),
    }


def _card_facts(model: ModernBert) -> dict[str, Any]:
    full = [layer for layer, kind in enumerate(model.kinds) if kind == FULL]
    return {
        'Layers with full attention': f'{len(full)} of {model.num_layers}: {", ".join(map(str, full)) or "none"}',
        'Local attention window': f'{model.local_attention:,} tokens, {model.local_attention // 2:,} to either side',
        'Base of rotary wavelengths, full attention': f'{model.global_rope_theta:,.10g}',
        'Base of rotary wavelengths, local attention': f'{model.local_rope_theta:,.10g}',
    }


_CITATION = """\
@misc{warner-etal-2024-modernbert,
  title = {Smarter, Better, Faster, Longer: A Modern Bidirectional Encoder for Fast, Memory Efficient, and Long Context
    Finetuning and Inference},
  author = {Warner, Benjamin and Chaffin, Antoine and Clavié, Benjamin and Weller, Orion and Hallström, Oskar and
    Taghadouini, Said and Gallagher, Alexis and Biswas, Raja and Ladhak, Faisal and Aarsen, Tom and Cooper, Nathan and
    Adams, Griffin and Howard, Jeremy and Poli, Iacopo},
  year = {2024},
  eprint = {2412.13663},
  archivePrefix = {arXiv},
  primaryClass = {cs.CL}
}"""

HUB = HubFamily(
    name='modernbert',
    title='ModernBERT',
    citation=_CITATION,
    class_prefix='ModernBert',
    keys=Keys(
        settings={
            'initializer_range': 'initializer_range',
            'norm_eps': 'norm_eps',
            'norm_bias': 'norm_bias',
            'attention_bias': 'attention_bias',
            'attention_dropout': 'attention_dropout',
            'global_attn_every_n_layers': 'global_attn_every_n_layers',
            'local_attention': 'local_attention',
            'embedding_dropout': 'embedding_dropout',
            'mlp_bias': 'mlp_bias',
            'mlp_dropout': 'mlp_dropout',
            'decoder_bias': 'decoder_bias',
            'classifier_pooling': 'classifier_pooling',
            'classifier_dropout': 'classifier_dropout',
            'classifier_bias': 'classifier_bias',
        },
        constants={'hidden_activation': 'gelu', 'classifier_activation': 'gelu', 'tie_word_embeddings': True},
        tokens={
            'pad_token_id': 'pad_id',
            'bos_token_id': 'cls_id',
            'cls_token_id': 'cls_id',
            'eos_token_id': 'sep_id',
            'sep_token_id': 'sep_id',
        },
        read_others=_read_others,
        write_others=_write_others,
    ),
    tensors=_masked_lm_tensors,
    task_tensors=_task_tensors,
    tasks=(*POOLED, 'tagging', 'spans'),
    heads={PREDICTION_HEAD: ('head/',), MLM_HEAD: ('decoder_bias',)},
    classifiers=('classifier.',),
    current_name=_current_name,
    copies=lambda model: {'decoder.weight': _WORD},
    head_stddev=out_stddev,
    card_facts=_card_facts,
)
