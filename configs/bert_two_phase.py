"""BERT in two phases, as in the original paper: 128 positions for 90% of the steps, then 512.

    bert-jax prepare --config=bert_two_phase.py:base --config.data.source='text:my/*.txt' \
        --config.data.corpus=corpora/mine
    bert-jax train --config=bert_two_phase.py:base --config.data.corpus=corpora/mine --workdir=runs/mine

To change one field of a phase: --config.phases[1].global_batch_size=128. Rows are packed in both phases.
"""

import bert_jax.config


def get_config(size: str = 'base'):
    config = bert_jax.config.bert(size)
    config.data.packing = True
    config.phases = (
        {'steps': 900_000, 'sequence_length': 128, 'global_batch_size': 256, 'warmup_steps': 10_000},
        {'steps': 100_000, 'sequence_length': 512, 'global_batch_size': 64, 'warmup_steps': 1_000},
    )
    return config
