"""Reports about runs and corpora: one self-contained HTML page, and a summary of a run for the terminal.

A report about runs is made from the files of workdirs alone: `config.json`, `metrics.jsonl`, `history.jsonl`,
`examples.jsonl`, `evaluation.json`, and `results.json` of a fine-tune. Only `corpus.py`, which makes the page about a
corpus, reads one.
"""

from bert_jax.report.curves import charts
from bert_jax.report.logged import LoggedRun, rank, read_run
from bert_jax.report.page import write_report
from bert_jax.report.settings import flatten
from bert_jax.report.terminal import summarize

__all__ = ['LoggedRun', 'charts', 'flatten', 'rank', 'read_run', 'summarize', 'write_report']
