"""A run, or several side by side, as one self-contained HTML page, and in short for a terminal.

Reads what a run leaves in its workdir (`config.json`, `metrics.jsonl`, `history.jsonl`, `examples.jsonl`,
`evaluation.json`, a fine-tune's `results.json`); nothing of the corpus.
"""

from bert_jax.report.curves import charts
from bert_jax.report.page import write_report
from bert_jax.report.runs import Run, rank, read_run
from bert_jax.report.settings import flatten
from bert_jax.report.terminal import summarize

__all__ = ['Run', 'charts', 'flatten', 'rank', 'read_run', 'summarize', 'write_report']
