"""Four learning rates × two sizes on the demo corpus, 120 steps each: finds in minutes which rates learn at all.

    bert-jax sweep --config=sweeps/learning_rate.py --workdir=runs/learning_rate

`fixed` and `grid` name fields as the command line does (--config.FIELD=VALUE). bert_jax/sweep/runs.py lists everything
that a sweep file may contain.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        {
            'base': 'configs/demo.py',
            'fixed': {
                'train.steps': 120,
                'train.log_every': 5,
                'train.evaluate_every': 30,
                'train.evaluate_rows': 512,
                'optimizer.warmup_steps': 20,
            },
            'runs': [
                {'name': 'tiny', 'model.hidden_size': 128, 'model.num_heads': 2, 'model.intermediate_size': 512},
                {'name': 'half', 'model.hidden_size': 64, 'model.num_heads': 1, 'model.intermediate_size': 256},
            ],
            'grid': {'optimizer.peak_learning_rate': [1e-3, 3e-3, 1e-2, 3e-2]},
        },
        allow_dotted_keys=True,
    )
