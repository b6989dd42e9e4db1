"""Our best recipe for minutes to hours of pretraining, on two CPU cores or one GPU.

    bert-jax prepare --config=small_budget.py --config.data.source='text:my/*.txt' --config.data.corpus=corpora/mine
    bert-jax train --config=small_budget.py --config.data.corpus=corpora/mine --config.train.steps=5000 \
        --workdir=runs/mine

It is a ModernBERT: with rotary positions and local attention it learns to use the order of words within a few hundred
steps, in which BERT with learned positions predicts little more than the frequency of words. For hours, double
`model.hidden_size`, `model.num_heads` and `model.intermediate_size`.

`python -m benchmarks.recipes` compares its choices with others at equal time.
"""

import bert_jax.config
from bert_jax.config.sizes import gated_sizes


def get_config():
    config = bert_jax.config.modernbert('base')
    config.tokenizer.update(kind='wordpiece', vocab_size=8192, num_unused=0)
    config.data.sequence_length = 128
    config.data.masking.rate = 0.3
    config.model.update(gated_sizes(num_layers=4, hidden_size=128))
    config.model.local_attention = 32
    config.model.max_positions = 512
    config.model.classifier_pooling = 'mean'  # [CLS] learns nothing from masked words
    config.model.initializer_range = 0.05
    config.model.dtype = 'auto'  # bfloat16 where it is fast
    config.model.scan_layers = False
    config.train.steps = 5000
    config.train.global_batch_size = 32
    config.train.microbatches = 1
    config.train.evaluate_every = 1000
    config.train.evaluate_rows = 512
    config.optimizer.name = 'muon'
    config.optimizer.peak_learning_rate = 4e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.b2 = 0.98
    config.optimizer.weight_decay = 0.1
    config.optimizer.clip_norm = 1.0
    return config
