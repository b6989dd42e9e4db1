"""Continued pretraining: an initial model on text of a domain (Gururangan et al. 2020, "Don't Stop Pretraining").

    python -m bert_jax prepare --config=configs/continue.py --config.init=models/bert-base-uncased \
        --config.data.source='text:my/*.txt' --config.data.corpus=corpora/mine
    python -m bert_jax train --config=configs/continue.py --config.init=models/bert-base-uncased \
        --config.data.corpus=corpora/mine --workdir=runs/mine
    python -m bert_jax export --workdir=runs/mine --output=models/mine

The sizes are the initial model's. A low learning rate (2e-5 to 5e-5) and a short warm-up keep what it knows; words of
the domain are added in `prepare` by --config.tokenizer.add_tokens=FILE.
"""

import bert_jax.config


def get_config():
    config = bert_jax.config.bert('base')
    config.train.steps = 10_000
    config.train.global_batch_size = 64
    config.train.evaluate_every = 1000
    config.optimizer.peak_learning_rate = 3e-5
    config.optimizer.warmup_steps = 500
    config.optimizer.schedule = 'linear'
    return config
