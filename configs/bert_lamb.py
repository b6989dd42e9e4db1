"""LAMB in two phases of very large batches: 64k rows of 128 positions, then 32k rows of 512 (You et al. 2020).

    bert-jax prepare --config=bert_lamb.py:large --config.data.source='text:my/*.txt' --config.data.corpus=corpora/mine

On one host with 8 GPUs, on two such hosts under SLURM, or on a TPU slice:

    bert-jax train --config=bert_lamb.py:large --config.data.corpus=corpora/mine --workdir=runs/lamb
    sbatch --nodes=2 --gpus-per-node=8 launch/slurm.sbatch --config=bert_lamb.py:large \
        --config.data.corpus=$SHARED/corpora/mine --workdir=$SHARED/runs/lamb
    launch/tpu_pod.sh TPU_NAME ZONE --config=bert_lamb.py:large --config.data.corpus=corpora/mine \
        --workdir=gs://bucket/runs/lamb

Variants: base and large, as in bert.py. A batch is split into the fewest microbatches that fit, found by compiling at
each start; --config.train.microbatches=128 saves that minute. Steps, peak learning rates and warm-up are those of
NVIDIA's recipe (DeepLearningExamples, BERT), whose decay follows a square root; here it is linear.
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
