"""Forms of matmuls and related operations that XLA:CPU runs fast. `matmul.py` decides when to use them.

`T` tokens, `D` in, `F` out.
"""

import jax
import jax.numpy as jnp

_FEWEST_ROWS = 8  # bfloat16 kernels are slow for fewer
_TILE = 32  # the contracted dim of kernels is a multiple of it
_BIAS_COLUMNS = 3
_WIDEST_BY_IDENTITY = 256  # columns of a matrix; the cost of a matmul with the identity grows with their square
_WRITES_BFLOAT16 = jax.__version_info__ >= (0, 12)
_LOG2_E, _LOWEST_EXPONENT = 1.4426950408889634, -127.0
_ROUNDS_TO_INTEGERS = 1.5 * 2.0**23  # added to a float32, leaves no bits for fractions
_EXP2 = 0.99992807, 0.69326099, 0.24261113, 0.05517167  # least relative error on [-1/2, 1/2]


def kernel_gradient(x: jax.Array, gradient: jax.Array) -> jax.Array:
    """x' @ gradient: [T, D], [T, F] -> [D, F] float32.

    The first factor is transposed in memory and the longer dim comes last, which is up to twice as fast.
    """
    if gradient.shape[-1] >= x.shape[-1]:
        return jax.lax.optimization_barrier(_matmul(transpose(x, (1, 0)), gradient))
    return jax.lax.optimization_barrier(_matmul(transpose(gradient, (1, 0)), x)).T


def column_sums(x: jax.Array) -> jax.Array:
    """[T, F] -> [F] float32: a matmul with ones is ten times as fast as XLA's sum."""
    num_rows = 1 if x.dtype == jnp.float32 else _FEWEST_ROWS
    return _matmul(jnp.ones((num_rows, len(x)), x.dtype), x)[0]


def row_sums(x: jax.Array, scale: jax.Array) -> jax.Array:
    """[F, T], [T] -> [F] float32: the sums over T of `x * scale`, as a matmul."""
    num_columns = 1 if x.dtype == jnp.float32 else _FEWEST_ROWS
    return _matmul(x, jnp.broadcast_to(scale[:, None], (len(scale), num_columns)).astype(x.dtype))[:, 0]


def with_ones(x: jax.Array) -> jax.Array:
    """[D, T] -> [D + 32, T]: the factor by which `with_bias` is multiplied so that the matmul adds the bias."""
    ones = jnp.ones((_BIAS_COLUMNS, x.shape[1]), x.dtype)
    return jnp.concatenate([x, ones, jnp.zeros((_TILE - _BIAS_COLUMNS, x.shape[1]), x.dtype)])


def with_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """[F, D], [F] float32 -> [F, D + 32]; to add a bias in the matmul saves a pass over its result.

    The bias is divided into parts that bfloat16, the dtype of x, holds exactly: three times 8 bits.
    """
    columns, rest = [], jnp.maximum(bias, -1e30)
    for _ in range(_BIAS_COLUMNS):
        columns.append(rest.astype(x.dtype))
        rest = rest - columns[-1].astype(jnp.float32)
    zeros = jnp.zeros((len(x), _TILE - _BIAS_COLUMNS), x.dtype)
    return jnp.concatenate([x, jnp.stack(columns, axis=1), zeros], axis=1)


def sum_over_last(x: jax.Array) -> jax.Array:
    """[..., M, N] -> [..., M, 1] float32; of bfloat16 as a matmul with ones, which is faster than XLA's sum."""
    if x.dtype == jnp.float32:
        return x.sum(axis=-1, keepdims=True)
    batch = tuple(range(x.ndim - 2))
    ones = jnp.ones((*x.shape[:-2], x.shape[-1], _FEWEST_ROWS), x.dtype)
    dims = (((x.ndim - 1,), (x.ndim - 2,)), (batch, batch))
    return jax.lax.dot_general(x, ones, dims, preferred_element_type=jnp.float32)[..., :1]


def transpose(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Computes `x.transpose(axes)` in memory.

    The barrier keeps XLA from folding the transposition into a matmul, whose kernels want the contracted dim last.
    """
    if x.ndim == 2 and x.dtype == jnp.bfloat16 and x.shape[1] <= _WIDEST_BY_IDENTITY:
        return jax.lax.optimization_barrier(_transpose_by_identity(x))
    # Every even dim is split in two and joined again behind the barrier: XLA computes a bfloat16 matmul in float32 if
    # it sees that a factor is a plain transposition.
    halves = [(size // 2, 2) if size % 2 == 0 else (size, 1) for size in x.shape]
    order = [2 * axis + half for axis in axes for half in (0, 1)]
    split = x.reshape([size for pair in halves for size in pair]).transpose(order)
    return jax.lax.optimization_barrier(split).reshape([x.shape[axis] for axis in axes])


def _transpose_by_identity(x: jax.Array) -> jax.Array:
    """[T, D] -> [D, T] by a matmul, which reads x row by row: exact for finite values and faster than XLA's loop."""
    identity = jnp.eye(x.shape[1], dtype=x.dtype)
    dims = (((1,), (1,)), ((), ()))
    return jax.lax.dot_general(identity, x, dims, preferred_element_type=result_dtype(x.dtype.name)).astype(x.dtype)


def result_dtype(dtype: str) -> str:
    """Returns the dtype in which XLA:CPU writes a matmul result of `dtype` fast: before jax 0.12 only float32."""
    return dtype if _WRITES_BFLOAT16 else 'float32'


def exp(x: jax.Array) -> jax.Array:
    """Returns bfloat16 exp(x) of float32 x <= 0; relative errors are below 1e-4 before the result is rounded.

    XLA's own takes 2.5 times as long. exp(x) = 2^n 2^f, where n is the integer nearest to x / ln 2 and a polynomial
    computes 2^f.
    """
    z = jnp.maximum(x * _LOG2_E, _LOWEST_EXPONENT)
    # The sum leaves n in the low bits. XLA's conversion to integers would first check for NaN and overflow.
    bits = jax.lax.bitcast_convert_type(z + _ROUNDS_TO_INTEGERS, jnp.int32)
    f = z - ((bits & 0x7FFFFF) - 0x400000).astype(jnp.float32)
    c0, c1, c2, c3 = _EXP2
    power = jax.lax.bitcast_convert_type((bits << 23) + 0x3F800000, jnp.float32)  # 0 for the lowest exponent
    return ((c0 + f * (c1 + f * (c2 + f * c3))) * power).astype(jnp.bfloat16)


def _matmul(x: jax.Array, y: jax.Array) -> jax.Array:
    return jax.lax.dot(x, y, preferred_element_type=jnp.float32)
