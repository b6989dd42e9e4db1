"""Continued pretraining of an initial model on domain text (Gururangan et al. 2020, "Don't Stop Pretraining").

    bert-jax prepare --config=continue.py --config.init=models/bert-base-uncased \
        --config.data.source='text:my/*.txt' --config.data.corpus=corpora/mine
    bert-jax train --config=continue.py --config.init=models/bert-base-uncased \
        --config.data.corpus=corpora/mine --workdir=runs/mine
    bert-jax export --workdir=runs/mine --output=models/mine

Sizes are those of the initial model. A low learning rate (2e-5 to 5e-5) and a short warm-up preserve what it knows.
`prepare` adds domain words to the vocabulary with --config.tokenizer.add_tokens=FILE.
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
