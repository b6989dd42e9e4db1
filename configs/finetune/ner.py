"""Named entities in CoNLL format: one word per line, its tag in the last column, a blank line between sentences.

    bert-jax finetune --config=finetune/ner.py --config.task.directory=conll2003 --config.init=models/mine \
        --workdir=runs/ner

The files are train.txt and valid.txt. Names are easier to recognize for a cased model.
"""

from bert_jax.config.finetuning import finetune


def get_config():
    config = finetune('tagging')
    config.task.train = 'conll:train.txt'
    config.task.validation = 'conll:valid.txt'
    config.task.text = 'words'
    config.task.label = 'tags'
    config.task.metrics = ('entity_f1', 'entity_precision', 'entity_recall', 'token_accuracy')
    config.optimizer.peak_learning_rate = 5e-5
    config.train.epochs = 4.0
    return config
