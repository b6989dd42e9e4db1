"""Trains a small BERT on the docstrings of the installed packages, in minutes on two CPU cores.

    bert-jax prepare --config=demo.py
    bert-jax train --config=demo.py --workdir=runs/demo

Such a short run needs small batches, a high learning rate and no dropout.
"""

import bert_jax.config


def get_config():
    config = bert_jax.config.bert('tiny')
    config.tokenizer.vocab_size = 8192
    config.data.sequence_length = 64
    config.data.packing = True
    config.model.max_positions = 128
    config.model.dtype = 'float32'  # its documented figures are then those of any machine
    config.model.dropout_rate = 0.0
    config.model.attention_dropout_rate = 0.0
    config.model.initializer_range = 0.05
    config.train.steps = 3100
    config.train.global_batch_size = 32
    config.train.log_every = 50
    config.train.checkpoint_every = 500
    config.train.evaluate_every = 1000
    config.train.evaluate_rows = 512
    config.optimizer.name = 'muon'
    config.optimizer.peak_learning_rate = 4e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.b2 = 0.98
    return config
