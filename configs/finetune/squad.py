"""SQuAD v1.1 (Rajpurkar et al. 2016), or data in its format: windows of 384 positions that start 128 tokens apart.

    bert-jax finetune --config=finetune/squad.py --config.task.directory=squad --config.init=models/mine \
        --workdir=runs/squad

The files are train-v1.1.json and dev-v1.1.json. The official scorer reads predictions-dev-v1.json. The variant `v2`
(finetune/squad.py:v2) is SQuAD 2.0 (Rajpurkar et al. 2018), whose questions may have no answer; its files are
train-v2.0.json and dev-v2.0.json.
"""

from bert_jax.config.finetuning import finetune
from bert_jax.errors import BadInput

VERSIONS = {'v1': 'v1.1', 'v2': 'v2.0'}


def get_config(version='v1'):
    if version not in VERSIONS:
        raise BadInput(f'squad.py:{version}', 'is not a version of SQuAD', ' or '.join(VERSIONS))
    config = finetune('spans')
    config.task.train = f'squad:train-{VERSIONS[version]}.json'
    config.task.validation = f'squad:dev-{VERSIONS[version]}.json'
    config.task.metrics = ('f1', 'exact_match')
    config.task.sequence_length = 384
    config.task.stride = 128
    config.optimizer.peak_learning_rate = 3e-5
    config.train.epochs = 2.0
    config.train.global_batch_size = 32
    return config
