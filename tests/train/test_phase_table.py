"""The table of phases adds up, and shows what each phase sets."""

from bert_jax import config
from bert_jax.train.phase_table import PhaseCost, describe_phases, phase_table, total

RUN = config.resolve(
    {
        'data': {'sequence_length': 128, 'packing': True},
        'train': {'global_batch_size': 32},
        'optimizer': {'peak_learning_rate': 1e-3, 'schedule': 'constant', 'warmup_steps': 0},
        'phases': [
            {'steps': 1000, 'warmup_steps': 100, 'masking': {'rate': 0.3}},
            {'tokens': 2e6, 'sequence_length': 512, 'global_batch_size': 8, 'weight_decay': 0.1},
            {'steps': 200, 'schedule': '1-sqrt', 'final_fraction': 0.1, 'masking': {'unit': 'word'}},
        ],
    }
)


def test_table_has_a_row_for_each_phase_and_their_sum() -> None:
    headings, rows = phase_table(RUN)
    assert headings == ['phase', 'steps', 'rows', 'tokens', 'masked', 'learning rate', 'changes']
    assert [dict(zip(headings, row, strict=True)) for row in rows] == [
        {
            'phase': '1',
            'steps': '1,000',
            'rows': '32 x 128',
            'tokens': '4.1M',
            'masked': '30%',
            'learning rate': 'warm-up of 100 steps, 0.001, constant',
            'changes': '',
        },
        {
            'phase': '2',
            'steps': '489',
            'rows': '8 x 512',
            'tokens': '2M',
            'masked': '15%',
            'learning rate': '0.001, constant',
            'changes': 'weight_decay=0.1',
        },
        {
            'phase': '3',
            'steps': '200',
            'rows': '32 x 128',
            'tokens': '819K',
            'masked': '15%',
            'learning rate': '0.001, 1-sqrt to 0.0001',
            'changes': 'masking.unit=word',
        },
        {
            'phase': 'run',
            'steps': '1,689',
            'rows': '',
            'tokens': '6.92M',
            'masked': '',
            'learning rate': '',
            'changes': '',
        },
    ]


def test_known_costs_have_columns_and_sums() -> None:
    costs = [PhaseCost(0.5, 1e15, 60.0), PhaseCost(0.25, 2e15, None), PhaseCost(0.1, 3e15, 120.0)]
    assert total(costs) == PhaseCost(0.85, 6e15, None)
    headings, *lines = describe_phases(RUN, costs).splitlines()
    assert headings.split() == 'phase steps rows tokens epochs FLOPs time masked learning rate changes'.split()
    assert lines[0].split()[6:10] == ['0.50', '1.00e15', '60.00', 's'] and lines[-1].split() == [
        'run',
        '1,689',
        '6.92M',
        '0.85',
        '6.00e15',
    ]
