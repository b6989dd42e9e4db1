"""Matmuls equal those of NumPy in value and gradient, and compile to XLA's fast kernels."""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.model import cpu
from bert_jax.model import matmul as matmul_module
from bert_jax.model.matmul import add_bias, project
from bert_jax.model.plain_attention import attend_by_scores

_WITHIN = {'float32': 1e-5, 'bfloat16': 3e-2}


def _random(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape) + shape[0]).standard_normal(shape)


def _is_near(found: jax.Array, expected: np.ndarray, dtype: str) -> bool:
    difference = np.abs(np.asarray(found, np.float64) - expected).max()
    return difference <= _WITHIN[dtype] * np.abs(expected).max()


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('platform', ['cpu', 'gpu'])
@pytest.mark.parametrize('leading, num_in, num_out', [((4, 6), 16, 40), ((5, 3), 40, 16), ((7,), 8, 8), ((1,), 3, 5)])
def test_project_equals_numpy_in_value_and_gradient(
    monkeypatch: pytest.MonkeyPatch, leading: tuple[int, ...], num_in: int, num_out: int, platform: str, dtype: str
) -> None:
    monkeypatch.setattr(matmul_module, 'target_platform', lambda: platform)
    x, kernel, bias = _random(*leading, num_in), _random(num_in, num_out), _random(num_out)
    gradient = _random(*leading, num_out)

    @jax.jit
    def run(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> tuple:
        def layer(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
            return add_bias(project(x, kernel, dtype, 'float32'), bias)

        out, pull = jax.vjp(layer, x, kernel, bias)
        return out, *pull(jnp.float32(gradient))

    out, of_x, of_kernel, of_bias = run(*map(jnp.float32, (x, kernel, bias)))
    assert of_kernel.dtype == of_bias.dtype == jnp.float32
    assert _is_near(out, x @ kernel + bias, dtype)
    assert _is_near(of_x, gradient @ kernel.T, dtype)
    flat_x, flat = x.reshape(-1, num_in), gradient.reshape(-1, num_out)
    assert _is_near(of_kernel, flat_x.T @ flat, dtype)
    assert _is_near(of_bias, flat.sum(axis=0), dtype)


@pytest.mark.parametrize('axes', [(0, 2, 1, 3), (0, 2, 3, 1), (3, 0, 1, 2)])
def test_transpose_in_memory_equals_numpy(axes: tuple[int, ...]) -> None:
    x = np.arange(2 * 6 * 5 * 3).reshape(2, 6, 5, 3)
    np.testing.assert_array_equal(jax.jit(cpu.transpose, static_argnums=1)(x, axes), x.transpose(axes))


@pytest.mark.parametrize('shape', [(4096, 256), (100, 7), (64, 257)])
def test_bfloat16_matrix_is_transposed_bit_for_bit(shape: tuple[int, int]) -> None:
    magnitudes = np.random.default_rng(0).standard_normal(shape) * 10.0 ** np.random.default_rng(1).integers(
        -30, 30, shape
    )
    x = jnp.bfloat16(magnitudes)
    found = jax.jit(cpu.transpose, static_argnums=1)(x, (1, 0))
    np.testing.assert_array_equal(np.asarray(found).view(np.uint16), np.asarray(x).T.view(np.uint16))


def test_exp_for_bfloat16_equals_numpy_within_its_rounding() -> None:
    x = np.float32([0.0, -1e-6, *-np.linspace(0, 87, 100_001)])
    found = np.float64(jax.jit(cpu.exp)(x))
    np.testing.assert_allclose(found, np.exp(np.float64(x)), rtol=2**-8 + 1e-4)
    assert abs((found / np.exp(np.float64(x))).mean() - 1) < 1e-4  # rounded to nearest, without a bias
    np.testing.assert_array_equal(np.float32(cpu.exp(jnp.float32([-1e30, -np.inf]))), 0.0)
    assert np.isnan(np.float32(cpu.exp(jnp.float32([np.nan]))))


def _operand_types(run: Callable, *arguments: jax.Array) -> set[str]:
    """Returns the operand types of all matmuls in the compiled program."""
    text = jax.jit(run).lower(*arguments).compile().as_text()
    types = dict(re.findall(r'([\w.-]+)(?:: | = )(\w+)\[', text))
    return {types[name] for pair in re.findall(r' dot\(%([\w.-]+), %([\w.-]+)\)', text) for name in pair}


def test_bfloat16_operands_stay_bfloat16_on_a_cpu() -> None:
    """XLA would compute a matmul with a visibly transposed operand in float32, at half the speed."""
    x, kernel = jnp.ones((4, 64, 128), 'bfloat16'), jnp.ones((128, 256), 'bfloat16')
    if _operand_types(lambda x, w: jnp.matmul(x[0], w, preferred_element_type=jnp.float32), x, kernel) != {'bf16'}:
        pytest.skip('XLA has no bfloat16 matmul for this processor')

    def layer(x: jax.Array, kernel: jax.Array) -> jax.Array:
        inner = add_bias(project(x, kernel, 'bfloat16', 'bfloat16'), jnp.zeros(256)).reshape(4, 64, 2, 128)
        q, k, v = (cpu.transpose(each, (0, 2, 1, 3)) for each in (inner, 2 * inner, 3 * inner))
        out = attend_by_scores(q, k, v, jnp.ones((64, 64), bool), 0.0, None, 1)
        out = cpu.transpose(out, (0, 2, 1, 3)).reshape(4, 64, 256)
        return jnp.square(project(out, kernel.T, 'bfloat16', 'bfloat16')).sum()

    assert _operand_types(jax.grad(layer, (0, 1)), x, kernel) == {'bf16'}
