"""What `evaluate` says of a run is what was measured, and nothing of what there was not."""

import json
from pathlib import Path

import bert_jax.config
from bert_jax.evaluate import describe, evaluate
from bert_jax.text.prepare import prepare
from bert_jax.train.loop import train
from tests.test_run import write_text


def test_without_pairs_nothing_is_said_of_next_sentences(tmp_path: Path, capsys) -> None:
    write_text(tmp_path / 'text.txt')
    fields = bert_jax.config.bert('tiny')
    fields.data.update(source=f'text:{tmp_path}/text.txt', corpus=str(tmp_path / 'corpus'), pairing='none')
    fields.data.update(sequence_length=32, validation_fraction=0.2)
    fields.tokenizer.vocab_size = 300
    fields.model.update(hidden_size=16, num_heads=2, intermediate_size=32, num_layers=1)
    fields.train.update(steps=2, global_batch_size=16, log_every=1, evaluate_every=1)
    fields.optimizer.warmup_steps = 0
    config = bert_jax.config.resolve(fields)
    prepare(config.data, config.tokenizer, progress=False)
    assert train(config, str(tmp_path / 'run')).finished
    shown = capsys.readouterr().err
    assert 'held-out MLM loss' in shown and 'NSP' not in shown
    result = evaluate(str(tmp_path / 'run'))
    assert result['nsp_loss'] is None and result['nsp_accuracy'] is None and 0 < result['mlm_loss'] < 10
    assert 'MLM accuracy' in describe(result) and 'NSP' not in describe(result)
    assert json.loads((tmp_path / 'run' / 'evaluation.json').read_text()) == result
