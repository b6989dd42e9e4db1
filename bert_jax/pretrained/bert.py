"""BERT as `transformers` stores it."""

import re

from bert_jax import config
from bert_jax.config.finetuning import POOLED
from bert_jax.pretrained.hub import MLM_HEAD, NSP_HEAD, POOLER, HubFamily, Keys
from bert_jax.pretrained.tensors import Tensor, dense, norm, same, vocabulary

_LAYER, _HUB_LAYER = 'bert/encoder/layers', 'bert.encoder.layer.#'
_WORD, _MLM_BIAS = 'bert.embeddings.word_embeddings.weight', 'cls.predictions.bias'
TABLE: list[Tensor] = [
    *vocabulary('bert/embeddings/word', _WORD),
    *same('bert/embeddings/position', 'bert.embeddings.position_embeddings.weight'),
    *same('bert/embeddings/token_type', 'bert.embeddings.token_type_embeddings.weight'),
    *norm('bert/embeddings/norm', 'bert.embeddings.LayerNorm'),
    *dense(f'{_LAYER}/attention/query', f'{_HUB_LAYER}.attention.self.query'),
    *dense(f'{_LAYER}/attention/key', f'{_HUB_LAYER}.attention.self.key'),
    *dense(f'{_LAYER}/attention/value', f'{_HUB_LAYER}.attention.self.value'),
    *dense(f'{_LAYER}/attention/output', f'{_HUB_LAYER}.attention.output.dense'),
    *norm(f'{_LAYER}/attention_norm', f'{_HUB_LAYER}.attention.output.LayerNorm'),
    *dense(f'{_LAYER}/intermediate', f'{_HUB_LAYER}.intermediate.dense'),
    *dense(f'{_LAYER}/output', f'{_HUB_LAYER}.output.dense'),
    *norm(f'{_LAYER}/output_norm', f'{_HUB_LAYER}.output.LayerNorm'),
    *dense('bert/pooler', 'bert.pooler.dense'),
    *dense('mlm_transform', 'cls.predictions.transform.dense'),
    *norm('mlm_norm', 'cls.predictions.transform.LayerNorm'),
    *vocabulary('mlm_bias', _MLM_BIAS),
    *dense('nsp', 'cls.seq_relationship'),
]


def _task_tensors(_: config.Bert, kind: str) -> list[Tensor]:
    has_pooler = kind in POOLED
    encoder = [row for row in TABLE if row.path.startswith('bert/') and (has_pooler or 'pooler' not in row.path)]
    return encoder + dense('classifier', 'qa_outputs' if kind == 'spans' else 'classifier')


def _current_name(name: str) -> str:
    """Returns the name in `TABLE` of a tensor, which old files and bare encoders name differently."""
    current = re.sub(r'LayerNorm\.gamma$', 'LayerNorm.weight', re.sub(r'LayerNorm\.beta$', 'LayerNorm.bias', name))
    return f'bert.{current}' if current.startswith(('embeddings.', 'encoder.', 'pooler.')) else current


_CITATION = """\
@inproceedings{devlin-etal-2019-bert,
  title = {{BERT}: Pre-training of Deep Bidirectional Transformers for Language Understanding},
  author = {Devlin, Jacob and Chang, Ming-Wei and Lee, Kenton and Toutanova, Kristina},
  booktitle = {Proceedings of NAACL-HLT 2019},
  pages = {4171--4186},
  year = {2019}
}"""

HUB = HubFamily(
    name='bert',
    title='BERT',
    citation=_CITATION,
    class_prefix='Bert',
    keys=Keys(
        settings={
            'hidden_dropout_prob': 'dropout_rate',
            'attention_probs_dropout_prob': 'attention_dropout_rate',
            'initializer_range': 'initializer_range',
            'layer_norm_eps': 'layer_norm_eps',
        },
        constants={
            'hidden_act': 'gelu',
            'type_vocab_size': 2,
            'tie_word_embeddings': True,
        },
        unwritten_constants={'position_embedding_type': 'absolute', 'is_decoder': False},
        tokens={'pad_token_id': 'pad_id'},
    ),
    tensors=lambda model: TABLE,
    task_tensors=_task_tensors,
    tasks=(*POOLED, 'tagging', 'spans'),
    heads={
        POOLER: ('bert/pooler/',),
        MLM_HEAD: ('mlm_transform/', 'mlm_norm/', 'mlm_bias'),
        NSP_HEAD: ('nsp/',),
    },
    classifiers=('classifier.', 'qa_outputs.'),
    current_name=_current_name,
    copies=lambda model: {'cls.predictions.decoder.weight': _WORD, 'cls.predictions.decoder.bias': _MLM_BIAS},
    buffers=frozenset({'bert.embeddings.position_ids', 'bert.embeddings.token_type_ids'}),
    has_token_types=True,
)
