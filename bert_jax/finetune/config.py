"""Re-exports names that config files written for earlier versions import from here."""

from bert_jax.config.finetuning import FinetuneConfig, Task, finetune, resolve, use_original_recipe

__all__ = ['FinetuneConfig', 'Task', 'finetune', 'resolve', 'use_original_recipe']
