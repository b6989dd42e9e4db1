"""BERT in a published size, with the original recipe, on your own text.

    bert-jax prepare --config=bert.py:base --config.data.source='text:my/*.txt' --config.data.corpus=corpora/mine
    bert-jax train --config=bert.py:base --config.data.corpus=corpora/mine --workdir=runs/mine

The recipe of the paper: AdamW, 256 rows, a learning rate of 1e-4 after 10,000 steps of warm-up, 1 M steps. On a host
with 8 GPUs the second command uses all of them. On several hosts, or on a TPU slice:

    sbatch --nodes=2 --gpus-per-node=8 launch/slurm.sbatch --config=bert.py:large \
        --config.data.corpus=$SHARED/corpora/mine --workdir=$SHARED/runs/mine
    launch/tpu_pod.sh TPU_NAME ZONE --config=bert.py:large --config.data.corpus=corpora/mine \
        --workdir=gs://bucket/runs/mine

Like any config that does not set `model.dtype`, it computes in bfloat16 where the devices multiply it fast.

Variants: tiny, mini, small, medium, base, large, and the miniatures L2_H128 … L12_H768.
"""

import bert_jax.config


def get_config(size: str = 'base'):
    return bert_jax.config.bert(size)
