"""bert_jax: pretrain BERT-type encoders with JAX, from one CPU to a pod."""

from typing import Any

from bert_jax.version import __version__

__all__ = ['__version__', 'load_pretrained']


def __getattr__(name: str) -> Any:
    # Imported on first use: the command line must not load jax to print its help.
    if name == 'load_pretrained':
        from bert_jax.finetune.load import load_model

        return load_model
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
