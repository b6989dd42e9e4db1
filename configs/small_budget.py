"""Our best recipe for minutes to hours of pretraining, on two CPU cores or one GPU.

    bert-jax prepare --config=small_budget.py --config.data.source='text:my/*.txt' --config.data.corpus=corpora/mine
    bert-jax train --config=small_budget.py --config.data.corpus=corpora/mine --config.train.steps=5000 \
        --workdir=runs/mine

`python -m benchmarks.recipes` compares its choices with others at equal time.
"""

import bert_jax.config


def get_config():
    config = bert_jax.config.bert('mini')
    config.tokenizer.vocab_size = 8192
    config.data.sequence_length = 128
    config.data.packing = True
    config.data.pairing = 'none'
    config.data.masking.rate = 0.3
    config.model.max_positions = 128
    config.model.dropout_rate = 0.0
    config.model.attention_dropout_rate = 0.0
    config.model.initializer_range = 0.05
    config.model.scan_layers = False
    config.train.steps = 5000
    config.train.global_batch_size = 32
    config.train.evaluate_every = 1000
    config.train.evaluate_rows = 512
    config.optimizer.name = 'muon'
    config.optimizer.peak_learning_rate = 4e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.b2 = 0.98
    config.optimizer.weight_decay = 0.1
    return config
