"""Ettin's encoders in a published size, on your own text: ModernBERT's architecture from 17 M to 1 B parameters.

    bert-jax prepare --config=ettin.py:17m --config.data.source='text:my/*.txt' --config.data.corpus=corpora/mine
    bert-jax train --config=ettin.py:17m --config.data.corpus=corpora/mine --workdir=runs/mine

The recipe of the paper's first phase (Weller et al. 2025), as configs/modernbert.py describes it: 4608 rows of 1024
tokens, 30% of them masked. With a smaller batch, lower the peak learning rate and set the number of steps:

    --config.train.global_batch_size=256 --config.optimizer.peak_learning_rate=7e-4 --config.train.steps=100000 \
        --config.optimizer.warmup_steps=2000

Variants: 17m, 32m, 68m, 150m, 400m, 1b.
"""

import bert_jax.config


def get_config(size: str = '150m'):
    return bert_jax.config.ettin(size)
