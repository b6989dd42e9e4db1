"""A cross-encoder that ranks passages for queries, as a second stage after retrieval.

    bert-jax finetune --config=finetune/ranking.py --config.task.directory=pairs --config.init=models/mine \
        --workdir=runs/ranking

train.jsonl and dev.jsonl hold one pair per line, {"query": …, "passage": …, "label": 1}; the label is 0, 1 or a score
between. Pair each query with passages that answer it and with some that a first stage ranks high but that do not.
"""

from bert_jax.config.finetuning import finetune


def get_config():
    config = finetune('ranking')
    config.task.train = 'jsonl:train.jsonl'
    config.task.validation = 'jsonl:dev.jsonl'
    config.task.text = 'query'
    config.task.text_pair = 'passage'
    config.task.label = 'label'
    config.task.metrics = ('ndcg_at_10', 'mrr_at_10', 'average_precision')
    config.task.sequence_length = 256
    config.train.epochs = 2.0
    return config
