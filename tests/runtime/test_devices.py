"""The published peak of a device is found by jax's name for it."""

import types

import jax
import pytest

from bert_jax.runtime.devices import published_peak_flops


@pytest.mark.parametrize(
    'kind, peak',
    [
        ('TPU v4', 275e12),
        ('TPU v5 lite', 197e12),
        ('TPU v5', 459e12),
        ('TPU v5p', 459e12),
        ('TPU v6 lite', 918e12),
        ('NVIDIA A100-SXM4-80GB', 312e12),
        ('NVIDIA H100 80GB HBM3', 989e12),
        ('NVIDIA H200', 989e12),
        ('NVIDIA B200', 2250e12),
    ],
)
def test_published_peak_covers_all_devices(monkeypatch: pytest.MonkeyPatch, kind: str, peak: float) -> None:
    monkeypatch.setattr(jax, 'devices', lambda: [types.SimpleNamespace(device_kind=kind)])
    monkeypatch.setattr(jax, 'device_count', lambda: 4)
    assert published_peak_flops() == 4 * peak


def test_unknown_device_has_no_published_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, 'devices', lambda: [types.SimpleNamespace(device_kind='TPU v99')])
    assert published_peak_flops() is None
