"""An embedding model: one vector per text, trained so that texts that belong together are close.

    bert-jax finetune --config=finetune/embedding.py --config.init=models/mine --workdir=runs/search \
        --config.task.train=jsonl:pairs.jsonl --config.task.validation=jsonl:held-out.jsonl

Variants:

    pairs      columns `anchor` and `positive`, such as questions and the passages that answer them (the default)
    triplets   also a column `negative` with a hard negative, or a list of them
    scores     columns `sentence1`, `sentence2` and `score`, as in STS-B, whose files are train.tsv and dev.tsv
    corpus     raw text: neighbouring spans of the documents of --config.task.directory=DIR, a prepared corpus, trained
               on and validated on its held-out documents
"""

from bert_jax.config.finetuning import finetune
from bert_jax.errors import BadInput

VARIANTS = {
    'pairs': {},
    'triplets': {'num_negatives': 1},
    'scores': {'loss': 'cosent', 'anchor': 'sentence1', 'positive': 'sentence2', 'max_score': 5.0},
    'corpus': {},
}
SOURCES = {'scores': ('tsv:train.tsv', 'tsv:dev.tsv'), 'corpus': ('corpus:.', 'corpus:.')}


def get_config(variant: str = 'pairs'):
    if variant not in VARIANTS:
        raise BadInput(f'variant {variant!r}', 'is not a kind of training data', ', '.join(VARIANTS))
    config = finetune('embedding')
    config.task.train, config.task.validation = SOURCES.get(variant, ('jsonl:pairs.jsonl', 'jsonl:held-out.jsonl'))
    config.embedding.update(VARIANTS[variant])
    config.train.epochs = 4.0 if variant == 'scores' else 1.0
    config.train.global_batch_size = 32 if variant == 'scores' else 64
    return config
