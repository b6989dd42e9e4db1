"""BERT with LAMB in two phases of very large batches: 64k rows of 128 positions, then 32k of 512 (You et al. 2020).

    python -m bert_jax prepare --config=configs/bert_lamb.py:large --config.data.source='text:my/*.txt' \
        --config.data.corpus=corpora/mine

On one host with 8 GPUs, on two of them under SLURM, on a TPU slice:

    python -m bert_jax train --config=configs/bert_lamb.py:large --config.data.corpus=corpora/mine --workdir=runs/lamb
    sbatch --nodes=2 --gpus-per-node=8 launch/slurm.sbatch --config=configs/bert_lamb.py:large \
        --config.data.corpus=$SHARED/corpora/mine --workdir=$SHARED/runs/lamb
    launch/tpu_pod.sh TPU_NAME ZONE --config=configs/bert_lamb.py:large --config.data.corpus=corpora/mine \
        --workdir=gs://bucket/runs/lamb

Variants: base and large, as in configs/bert.py. The batch reaches the devices in as few microbatches as fit, found out
by compiling at each start; --config.train.microbatches=128 spares the minute. Steps, peaks and warm-up are those of
NVIDIA's recipe for this schedule (DeepLearningExamples, BERT), which decays by a square root where this one is linear.
"""

import bert_jax.config


def get_config(size: str = 'large'):
    config = bert_jax.config.bert(size)
    config.model.dtype = 'bfloat16'
    config.optimizer.name = 'lamb'
    config.train.microbatches = -1
    config.train.log_every = 10
    config.train.checkpoint_every = 100
    config.train.evaluate_every = 500
    config.phases = (
        {
            'steps': 7_038,
            'sequence_length': 128,
            'global_batch_size': 65_536,
            'peak_learning_rate': 6e-3,
            'warmup_steps': 2_000,
        },
        {
            'steps': 1_563,
            'sequence_length': 512,
            'global_batch_size': 32_768,
            'peak_learning_rate': 4e-3,
            'warmup_steps': 200,
        },
    )
    return config
