"""SQuAD v1.1 (Rajpurkar et al. 2016), or anything in its format; windows of 384 positions, 128 tokens apart.

    python -m bert_jax finetune --config=configs/finetune/squad.py --config.task.directory=squad \
        --config.init=models/mine --workdir=runs/squad

The files are train-v1.1.json and dev-v1.1.json. predictions-dev-v1.json is what the official scorer reads.
"""

from bert_jax.config.finetuning import finetune


def get_config():
    config = finetune('spans')
    config.task.train = 'squad:train-v1.1.json'
    config.task.validation = 'squad:dev-v1.1.json'
    config.task.metrics = ('f1', 'exact_match')
    config.task.sequence_length = 384
    config.task.stride = 128
    config.optimizer.peak_learning_rate = 3e-5
    config.train.epochs = 2.0
    config.train.global_batch_size = 32
    return config
