"""A small BERT on the docstrings of the installed packages: minutes on two CPU cores.

python -m bert_jax prepare --config=configs/demo.py
python -m bert_jax train --config=configs/demo.py --workdir=runs/demo
"""

import bert_jax.config


def get_config():
    config = bert_jax.config.bert('tiny')
    config.tokenizer.vocab_size = 8192
    config.data.sequence_length = 64
    config.model.max_positions = 128
    config.model.dropout_rate = 0.0
    config.model.attention_dropout_rate = 0.0
    config.train.steps = 3000
    config.train.global_batch_size = 64
    config.train.log_every = 50
    config.train.checkpoint_every = 500
    config.train.evaluate_every = 1000
    config.optimizer.peak_learning_rate = 2e-3
    config.optimizer.warmup_steps = 200
    return config
