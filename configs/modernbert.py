"""ModernBERT in a published size on your own text, or in a size that learns in minutes on two CPU cores.

    bert-jax prepare --config=modernbert.py:nano
    bert-jax train --config=modernbert.py:nano --workdir=runs/nano

`nano` reads the docstrings of the installed packages, with the corpus of demo.py. For the published sizes, name your
text:

    bert-jax prepare --config=modernbert.py:base --config.data.source='text:my/*.txt' --config.data.corpus=corpora/mine
    bert-jax train --config=modernbert.py:base --config.data.corpus=corpora/mine --workdir=runs/mine

They follow the recipe of the paper's first phase (Warner et al. 2024): byte-level BPE, packed rows of 1024 tokens, no
sentence pairs, 30% of the tokens masked, a batch of 4.7 M tokens, and a learning rate that stays at its peak after the
warm-up, and StableAdamW. Unlike there, the learning rate falls to 0 over the last tenth of the steps, and the batch has
its full size from the first step.

Variants: nano, base, large.
"""

import bert_jax.config


def get_config(size: str = 'base'):
    if size != 'nano':
        return bert_jax.config.modernbert(size)
    config = bert_jax.config.modernbert('base')
    config.tokenizer.update(kind='wordpiece', vocab_size=8192, num_unused=0)
    config.data.sequence_length = 128
    config.model.num_layers = 3
    config.model.hidden_size = 128
    config.model.num_heads = 2
    config.model.intermediate_size = 192
    config.model.local_attention = 32
    config.model.max_positions = 512
    config.model.initializer_range = 0.05
    config.model.dtype = 'float32'
    config.model.scan_layers = False
    config.train.steps = 2000
    config.train.global_batch_size = 16
    config.train.microbatches = 1
    config.train.log_every = 50
    config.train.evaluate_every = 1000
    config.train.evaluate_rows = 512
    config.optimizer.name = 'muon'
    config.optimizer.peak_learning_rate = 4e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 1.0
    return config
