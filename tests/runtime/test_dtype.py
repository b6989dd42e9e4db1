"""The dtype of the computation follows from the devices where the config leaves it open."""

import dataclasses
from types import SimpleNamespace

import pytest

from bert_jax import config
from bert_jax.config import finetuning
from bert_jax.runtime import dtype


@pytest.mark.parametrize(
    'platform, capability, flags, expected',
    [
        ('tpu', None, '', 'bfloat16'),
        ('gpu', '7.5', '', 'float32'),
        ('gpu', '8.0', '', 'bfloat16'),
        ('gpu', '12.0', '', 'bfloat16'),
        ('cpu', None, 'fma avx2 avx512_bf16', 'bfloat16'),
        ('cpu', None, 'amx_bf16 amx_tile', 'bfloat16'),
        ('cpu', None, 'fma avx512f bf16', 'float32'),
    ],
)
def test_auto_is_bfloat16_on_devices_that_multiply_it_fast(
    monkeypatch: pytest.MonkeyPatch, platform: str, capability: str | None, flags: str, expected: str
) -> None:
    device = SimpleNamespace(platform=platform, compute_capability=capability)
    monkeypatch.setattr('jax.local_devices', lambda: [device])
    monkeypatch.setattr(dtype, '_flags_of_cpu', lambda: set(flags.split()))
    for whole in (config.Config(), finetuning.FinetuneConfig()):
        assert whole.model.dtype == 'auto'
        assert dtype.resolve_dtype(whole).model.dtype == expected
        for given in ('float32', 'bfloat16'):
            chosen = dataclasses.replace(whole, model=dataclasses.replace(whole.model, dtype=given))
            assert dtype.resolve_dtype(chosen) == chosen


def test_auto_is_bfloat16_only_if_it_suits_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dtype, '_flags_of_cpu', lambda: {'amx_bf16'})
    monkeypatch.setattr('bert_jax.runtime.processes.min_over_processes', lambda value: min(value, 0))
    assert dtype.resolve_dtype(config.Config()).model.dtype == 'float32'
