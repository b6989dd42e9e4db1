"""bert_jax: pretrain BERT-type encoders with JAX, from one CPU to a pod."""

from typing import Any

__version__ = '0.1.0'


def __getattr__(name: str) -> Any:
    # Imported at first use: the command line must not load jax to print its help.
    if name == 'load_pretrained':
        from bert_jax.pretrained.load import load_pretrained

        return load_pretrained
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
