"""BERT in a published size, with the original's recipe, on text of your own.

    python -m bert_jax prepare --config=configs/bert.py:base --config.data.source='text:my/*.txt' \
        --config.data.corpus=corpora/mine
    python -m bert_jax train --config=configs/bert.py:base --config.data.corpus=corpora/mine --workdir=runs/mine

The recipe of the paper: AdamW, 256 rows, 1e-4 after 10,000 steps of warm-up, 1 M steps. On a host with 8 GPUs the
second command uses them all; on several hosts, and on a TPU slice, add bfloat16 as well:

    sbatch --nodes=2 --gpus-per-node=8 launch/slurm.sbatch --config=configs/bert.py:large \
        --config.model.dtype=bfloat16 --config.data.corpus=$SHARED/corpora/mine --workdir=$SHARED/runs/mine
    launch/tpu_pod.sh TPU_NAME ZONE --config=configs/bert.py:large --config.model.dtype=bfloat16 \
        --config.data.corpus=corpora/mine --workdir=gs://bucket/runs/mine

Variants: tiny, mini, small, medium, base, large, and the miniatures L2_H128 … L12_H768.
"""

import bert_jax.config


def get_config(size: str = 'base'):
    return bert_jax.config.bert(size)
