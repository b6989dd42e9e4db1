"""EuroBERT as `transformers` stores it."""

from pathlib import Path
from typing import Any

from bert_jax.config.families import EuroBert
from bert_jax.config.finetuning import POOLED
from bert_jax.errors import BadInput
from bert_jax.pretrained.hub import MLM_HEAD, HubFamily, Keys
from bert_jax.pretrained.rope import check_unscaled, read_theta, write_theta
from bert_jax.pretrained.tensors import Tensor, dense, norm, vocabulary

_LAYER, _HUB_LAYER = 'encoder/layers', 'model.layers.#'
_WORD = 'model.embed_tokens.weight'


def _encoder_tensors(model: EuroBert) -> list[Tensor]:
    attention, theirs = f'{_LAYER}/attention', f'{_HUB_LAYER}.self_attn'
    return [
        *vocabulary('encoder/embeddings/word', _WORD),
        *norm(f'{_LAYER}/attention_norm', f'{_HUB_LAYER}.input_layernorm', bias=False),
        *dense(f'{attention}/query', f'{theirs}.q_proj', bias=model.attention_bias),
        *dense(f'{attention}/key', f'{theirs}.k_proj', bias=model.attention_bias),
        *dense(f'{attention}/value', f'{theirs}.v_proj', bias=model.attention_bias),
        *dense(f'{attention}/output', f'{theirs}.o_proj', bias=model.attention_bias),
        *norm(f'{_LAYER}/mlp_norm', f'{_HUB_LAYER}.post_attention_layernorm', bias=False),
        *dense(f'{_LAYER}/mlp/gate', f'{_HUB_LAYER}.mlp.gate_proj', bias=model.mlp_bias),
        *dense(f'{_LAYER}/mlp/up', f'{_HUB_LAYER}.mlp.up_proj', bias=model.mlp_bias),
        *dense(f'{_LAYER}/mlp/output', f'{_HUB_LAYER}.mlp.down_proj', bias=model.mlp_bias),
        *norm('encoder/final_norm', 'model.norm', bias=False),
    ]


def _masked_lm_tensors(model: EuroBert) -> list[Tensor]:
    decoder = vocabulary('decoder', 'lm_head.weight') * (not model.tie_word_embeddings)
    return _encoder_tensors(model) + decoder + vocabulary('decoder_bias', 'lm_head.bias') * model.mlp_bias


def _task_tensors(model: EuroBert, kind: str) -> list[Tensor]:
    head = [] if kind == 'tagging' else dense('dense', 'dense')
    return _encoder_tensors(model) + head + dense('classifier', 'classifier')


def _current_name(name: str) -> str:
    """Returns the name in the tables of a tensor, which a bare encoder has without its prefix."""
    return f'model.{name}' if name.startswith(('embed_tokens.', 'layers.', 'norm.')) else name


def _read_others(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Reads the rotary wavelength, in the spelling of `transformers` 4 or 5, and checks the size of the heads."""
    check_unscaled(content, path)
    theta = read_theta(content.get('rope_parameters'), content.get('rope_theta'), path, 'rope_parameters')
    size, head_size = content['hidden_size'] // content['num_attention_heads'], content.get('head_dim')
    if head_size not in (None, size):
        raise BadInput(str(path), f'head_dim is {head_size!r}', f'hidden_size / num_attention_heads, {size}')
    num_kv_heads = content.get('num_key_value_heads') or content['num_attention_heads']
    shares_heads = num_kv_heads != content['num_attention_heads']
    # EuroBERT's own code called it clf_pooling.
    pooling = content.get('classifier_pooling', content.get('clf_pooling'))
    fields = {'rope_theta': theta, 'classifier_pooling': pooling}
    fields |= {'num_key_value_heads': num_kv_heads if shares_heads else 0}
    return {field: value for field, value in fields.items() if value is not None}


def _write_others(model: EuroBert) -> dict[str, Any]:
    """Writes both spellings: EuroBERT's own code for `transformers` 4 reads rope_theta, 5 reads rope_parameters."""
    return {
        'num_key_value_heads': model.num_kv_heads,
        'classifier_pooling': model.classifier_pooling,
        'clf_pooling': model.classifier_pooling,
        'rope_theta': model.rope_theta,
        'rope_parameters': write_theta(model.rope_theta),
    }


def _card_facts(model: EuroBert) -> dict[str, Any]:
    return {
        'Key and value heads': model.num_kv_heads,
        'Base of rotary wavelengths': f'{model.rope_theta:,.10g}',
        'Decoder': 'tied to the word embeddings' if model.tie_word_embeddings else 'not tied to the word embeddings',
    }


_CITATION = """\
@misc{boizard-etal-2025-eurobert,
  title = {{EuroBERT}: Scaling Multilingual Encoders for {European} Languages},
  author = {Boizard, Nicolas and Gisserot-Boukhlef, Hippolyte and Alves, Duarte M. and Martins, André and
    Hammal, Ayoub and Corro, Caio and Hudelot, Céline and Malherbe, Emmanuel and Malaboeuf, Etienne and
    Jourdan, Fanny and Hautreux, Gabriel and Alves, João and El-Haddad, Kevin and Faysse, Manuel and
    Peyrard, Maxime and Guerreiro, Nuno M. and Fernandes, Patrick and Rei, Ricardo and Colombo, Pierre},
  year = {2025},
  eprint = {2503.05500},
  archivePrefix = {arXiv},
  primaryClass = {cs.CL}
}"""

HUB = HubFamily(
    name='eurobert',
    title='EuroBERT',
    citation=_CITATION,
    class_prefix='EuroBert',
    keys=Keys(
        settings={
            'initializer_range': 'initializer_range',
            'rms_norm_eps': 'rms_norm_eps',
            'attention_bias': 'attention_bias',
            'attention_dropout': 'attention_dropout',
            'mlp_bias': 'mlp_bias',
            'tie_word_embeddings': 'tie_word_embeddings',
        },
        constants={'hidden_act': 'silu'},
        tokens={
            'pad_token_id': 'pad_id',
            'bos_token_id': 'cls_id',
            'eos_token_id': 'sep_id',
            'mask_token_id': 'mask_id',
        },
        read_others=_read_others,
        write_others=_write_others,
    ),
    tensors=_masked_lm_tensors,
    task_tensors=_task_tensors,
    tasks=(*POOLED, 'tagging'),
    heads={MLM_HEAD: ('decoder',)},
    classifiers=('classifier.', 'dense.'),
    current_name=_current_name,
    copies=lambda model: {'lm_head.weight': _WORD} if model.tie_word_embeddings else {},
    card_facts=_card_facts,
)
