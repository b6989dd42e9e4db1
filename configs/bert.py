"""BERT in a published size, with the original's recipe, on text of your own.

    python -m bert_jax prepare --config=configs/bert.py:base --config.data.source='text:my/*.txt' \
        --config.data.corpus=corpora/mine
    python -m bert_jax train --config=configs/bert.py:base --config.data.corpus=corpora/mine --workdir=runs/mine

Variants: tiny, mini, small, medium, base, large, and the miniatures L2_H128 … L12_H768.
"""

import bert_jax.config


def get_config(size: str = 'base'):
    return bert_jax.config.bert(size)
