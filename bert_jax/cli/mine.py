"""`mine`: hard negatives for contrastive training."""

import dataclasses
import os
from typing import TYPE_CHECKING

from absl import flags

from bert_jax.cli.devices import enable_compilation_cache
from bert_jax.cli.evaluate_embeddings import PROMPTS, SIMILARITY
from bert_jax.cli.flags import AT_LEAST_0, AT_LEAST_1, MODEL, Command, Flag, print_result, required
from bert_jax.console import duration, quantity
from bert_jax.errors import BadInput
from bert_jax.runtime.stopping import exit_on_signals

if TYPE_CHECKING:
    from bert_jax.evaluation.retrieval.mine import Mined


@exit_on_signals()
def _run(values: flags.FlagValues, _: list[str]) -> int:
    name, source, output = (required(COMMAND, values, flag) for flag in ('model', 'input', 'output'))
    from bert_jax.data.labelled import split_source
    from bert_jax.evaluation.retrieval.mine import Mining, check_mining, mine
    from bert_jax.evaluation.retrieval.pairs import open_pairs
    from bert_jax.finetune.sentences import read_settings
    from bert_jax.pretrained.sentences import read_retrieval_settings
    from bert_jax.workdir.result import check_output

    check_output(output)
    inputs = split_source(source)[1], values.passages
    if any(each and os.path.realpath(each) == os.path.realpath(output) for each in inputs):
        raise BadInput(f'--output={output}', 'is a file to read', 'another name')
    mining = Mining(values.negatives, values.skip_ranks, values.max_rank, values.margin, values.relative_margin)
    check_mining(mining)
    given = values.queries_prompt, values.passages_prompt, values.similarity
    settings = read_retrieval_settings(name, read_settings(name), *given)
    with open_pairs(source, (values.anchor, values.positive), values.passages or '') as pairs:
        enable_compilation_cache()
        from bert_jax.finetune.load import load_model

        mined = mine(pairs, load_model(settings.queries.directory), settings, mining, output)
    print_result(values, dataclasses.asdict(mined), _describe(mined), is_in_files=True)
    return 0


def _describe(mined: 'Mined') -> str:
    lines = [
        f'{mined.output}: {quantity(mined.negatives, "negative")} for {mined.written:,} of '
        f'{quantity(mined.pairs, "pair")}, from {quantity(mined.passages, "passage")}, {duration(mined.seconds)}'
    ]
    if mined.mean_positive_score is not None:
        lines.append(
            f'Mean score: positives {mined.mean_positive_score:.4f}, negatives {mined.mean_negative_score:.4f}'
        )
    if mined.short:
        lines.append(f'{quantity(mined.short, "pair")} with fewer negatives than requested')
    if left_out := mined.pairs - mined.written:
        lines.append(f'{quantity(left_out, "pair")} without any, left out')
    if mined.truncated:
        lines.append(f'{quantity(mined.truncated, "text")} truncated')
    return '\n'.join(lines)


COMMAND = Command(
    'mine',
    _run,
    'find hard negatives for pairs of texts, to train embeddings on',
    'bert-jax mine --model=models/mine --input=pairs.jsonl --output=triplets.jsonl --skip_ranks=5 --margin=0.05',
    (
        MODEL,
        Flag(
            'input',
            'pairs of an anchor and its positive, FILE.jsonl, FILE.csv, FILE.tsv or FILE.parquet',
            group='essential',
        ),
        Flag(
            'output',
            'file to write, JSON lines: the pairs with their negatives; pairs without any are left out',
            group='essential',
        ),
        Flag(
            'passages',
            'file of further passages to search besides the positives: FILE.jsonl, FILE.csv, FILE.tsv or FILE.parquet '
            'with the column text and perhaps title, or a text file with one passage per line',
        ),
        Flag('negatives', 'most negatives per pair', flags.DEFINE_integer, 1, AT_LEAST_1),
        Flag(
            'skip_ranks',
            'best-ranked passages to leave out, which may be positives that nobody labelled',
            flags.DEFINE_integer,
            0,
            AT_LEAST_0,
        ),
        Flag('max_rank', 'last rank to consider', flags.DEFINE_integer, 100, AT_LEAST_1),
        Flag(
            'margin',
            'a negative scores at least this much less than the positive (default: no limit)',
            flags.DEFINE_float,
        ),
        Flag(
            'relative_margin',
            'a negative scores less than the positive by at least this times the absolute score of the positive; 0.05 '
            'is a good start (default: no limit)',
            flags.DEFINE_float,
        ),
        Flag('anchor', 'column of the anchor', default='anchor'),
        Flag('positive', 'column of the positive', default='positive'),
        *PROMPTS,
        SIMILARITY,
    ),
)
