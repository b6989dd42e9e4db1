"""The settings of rotary positions in config.json."""

from pathlib import Path
from typing import Any

from bert_jax.errors import BadInput


def read_theta(parameters: Any, theta: Any, path: Path, key: str) -> float | None:
    """Returns the base of the rotary wavelengths; None if config.json does not have one.

    Args:
      parameters: the value of `key`, as `transformers` 5 writes it; None if the key is absent.
      theta: the base as `transformers` 4 writes it; None if that key is absent.

    Raises:
      BadInput: for a kind of rotary positions other than the default.
    """
    if parameters is not None:
        # Early versions wrote `type`.
        is_object = isinstance(parameters, dict)
        kind = parameters.get('rope_type', parameters.get('type', 'default')) if is_object else parameters
        if kind != 'default':
            raise BadInput(str(path), f'{key}.rope_type is {kind!r}', "'default', rotary positions without scaling")
        theta = parameters.get('rope_theta', theta)
    if theta is not None and (isinstance(theta, bool) or not isinstance(theta, int | float)):
        raise BadInput(str(path), f'{key}.rope_theta is {theta!r}', 'a number of at least 1')
    return None if theta is None else float(theta)


def check_unscaled(content: dict[str, Any], path: Path) -> None:
    """Raises BadInput if config.json has the setting of `transformers` 4 for scaled rotary positions."""
    if content.get('rope_scaling') is not None:
        found = f'rope_scaling is {content["rope_scaling"]!r}'
        raise BadInput(str(path), found, 'null: scaled rotary positions are not supported')


def write_theta(theta: float) -> dict[str, Any]:
    """Returns the entry of config.json for `transformers` 5."""
    return {'rope_type': 'default', 'rope_theta': theta}
