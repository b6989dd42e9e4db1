"""Model FLOPs of a step equal the closed form exactly."""

import numpy as np
import pytest

from bert_jax import config
from bert_jax.train import speed
from bert_jax.train.speed import Speedometer, flops_per_step


@pytest.mark.parametrize('size', ['tiny', 'base', 'large'])
def test_flops_of_rows_of_any_length_equal_the_closed_form(size: str) -> None:
    model, vocab_size = config.resolve(config.bert(size)).model, 30_522
    layers, hidden, inner = model.num_layers, model.hidden_size, model.intermediate_size
    lengths = np.random.default_rng(0).integers(5, 128, 256)
    tokens, squared_lengths, predictions, sequences = int(lengths.sum()), int((lengths**2).sum()), 256 * 19, 256
    encoder = layers * (4 * hidden**2 + 2 * hidden * inner) * tokens
    heads = predictions * (hidden**2 + hidden * vocab_size) + sequences * (hidden**2 + 2 * hidden)
    attention = 2 * layers * hidden * squared_lengths
    found = flops_per_step(
        model,
        vocab_size,
        tokens=float(tokens),
        squared_lengths=np.float64(squared_lengths),
        predictions=predictions,
        sequences=sequences,
    )
    assert found == 6 * (encoder + heads + attention)


def test_batch_without_tokens_costs_only_its_heads() -> None:
    model = config.resolve(config.bert('tiny')).model
    found = flops_per_step(model, 1000, tokens=0.0, squared_lengths=0.0, predictions=0, sequences=1)
    assert found == 6 * (model.hidden_size**2 + 2 * model.hidden_size)


@pytest.mark.parametrize('now, expected', [(8e9, 0.5), (2e9, None)])
def test_exceeded_peak_is_measured_again_and_mfu_stays_below_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, now: float, expected: float | None
) -> None:
    peaks = iter([3e9, now, now, now])  # the first is measured on a busy machine
    monkeypatch.setattr(speed, '_first_measured_flops', lambda _: next(peaks))
    monkeypatch.setattr(speed, '_measure_matmul_flops', lambda _: next(peaks))
    speedometer = Speedometer([config.resolve(config.bert('tiny')).model], 1000)
    assert speedometer._mfu(2.4e9) == 0.8 and not capsys.readouterr().err
    assert speedometer._mfu(4e9) == expected
    assert 'the machine was busy' in capsys.readouterr().err
    for _ in range(5):  # the peak is not measured again
        assert speedometer._mfu(4e9) == expected
