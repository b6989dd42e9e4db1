"""The nine tasks of GLUE (Wang et al. 2019), from the files as distributed.

    bert-jax finetune --config=finetune/glue.py:sst2 --config.task.directory=glue/SST-2 --config.init=models/mine \
        --workdir=runs/sst2 --seeds=5

Variants: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli. To predict the test file, add
--config.task.predict=tsv:test.tsv. Metrics are those of the benchmark. Small datasets (cola, mrpc, stsb, rte) train for
20 epochs, which makes them stable (Mosbach et al. 2021). The original recipe, three epochs of Adam without bias
correction, is finetune/glue.py:sst2.original.
"""

from bert_jax.config.finetuning import finetune, use_original_recipe
from bert_jax.errors import BadInput

_PAIR = {'text': 'sentence1', 'text_pair': 'sentence2'}
_SMALL = {'epochs': 20.0}  # below 10,000 examples
_SMALLEST = {'epochs': 3.0}  # wnli gets worse with more training, by construction

TASKS = {
    'cola': (
        {'text': 'sentence', 'columns': ('source', 'label', 'mark', 'sentence'), 'metrics': ('matthews',)},
        _SMALL,
    ),
    'sst2': ({'text': 'sentence', 'metrics': ('accuracy',)}, {}),
    'mrpc': (
        {'text': '#1 String', 'text_pair': '#2 String', 'label': 'Quality', 'metrics': ('f1', 'accuracy')},
        _SMALL,
    ),
    'stsb': (_PAIR | {'kind': 'regression', 'label': 'score', 'metrics': ('pearson', 'spearman')}, _SMALL),
    'qqp': (
        {
            'text': 'question1',
            'text_pair': 'question2',
            'label': 'is_duplicate',
            'metrics': ('f1', 'accuracy'),
        },
        {},
    ),
    'mnli': (
        _PAIR
        | {
            'label': 'gold_label',
            'validation': ('tsv:dev_matched.tsv', 'tsv:dev_mismatched.tsv'),
            'metrics': ('accuracy',),
        },
        {},
    ),
    'qnli': ({'text': 'question', 'text_pair': 'sentence', 'metrics': ('accuracy',)}, {}),
    'rte': (_PAIR | {'metrics': ('accuracy',)}, _SMALL),
    'wnli': (_PAIR | {'metrics': ('accuracy',)}, _SMALLEST),
}


def get_config(variant: str = 'sst2'):
    name, _, recipe = variant.partition('.')
    if name not in TASKS or recipe not in ('', 'original'):
        raise BadInput(f'variant {variant!r}', 'is not a task of GLUE', ', '.join(TASKS) + '; or TASK.original')
    task, train = TASKS[name]
    config = finetune(task.get('kind', 'classification'))
    config.task.update(task)
    config.train.update(train)
    return use_original_recipe(config) if recipe else config
