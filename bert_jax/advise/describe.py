"""Describes advice in plain words."""

from bert_jax.advise import sizes
from bert_jax.advise.advice import Advice
from bert_jax.advise.law import PARAMETERS_PER_TOKEN, PLATEAU, PUBLISHED
from bert_jax.config.sizes import SIZES
from bert_jax.console import duration, short
from bert_jax.plan.describe import describe_cost

_QUANTITIES = {'encoder_parameters': 'parameters', 'characters': 'training text', 'epochs': 'epochs'}


def describe(advice: Advice) -> str:
    """Returns the advice as text for a terminal, the recommended commands last."""
    other = 'scratch' if advice.start.kind == 'continue' else 'continue'
    titles = {'continue': 'continue an existing model', 'scratch': 'train from scratch'}
    return '\n'.join(
        [
            *_text(advice),
            '',
            *_start(advice),
            '',
            *_vocabulary(advice),
            '',
            *_size(advice),
            '',
            *_expected(advice),
            '',
            f'The other way, to {titles[other]}:',
            *(f'  {command}' for command in advice.commands(other)),
            f'Recommended, to {titles[advice.start.kind]}:',
            *(f'  {command}' for command in advice.commands(advice.start.kind)),
        ]
    )


def _text(advice: Advice) -> list[str]:
    text = advice.text
    about = '' if text.is_complete else 'about '
    scripts = ', '.join(f'{name} {share:.0%}' for name, share in list(text.scripts.items())[:3])
    language = 'mostly English' if text.is_english else 'not mostly English'
    return [
        f'Text: {about}{short(text.characters)} characters, {text.letters:.0%} of them letters ({scripts}), {language}.'
    ]


def _start(advice: Advice) -> list[str]:
    start = advice.start
    if start.kind == 'scratch':
        return [f'Start: from scratch. {" ".join(start.reasons)}']
    return [
        f'Start: continue {start.model}, for example {start.example}. {" ".join(start.reasons)}',
        'What follows is about a model from scratch, for comparison.',
    ]


def _vocabulary(advice: Advice) -> list[str]:
    chosen, kind = advice.vocabulary, advice.run.tokenizer.kind
    if advice.run.tokenizer.path:
        return [
            f'Vocabulary: yours, {chosen.trained:,} tokens: {chosen.tokens_per_word:.2f} tokens per word, '
            f'{chosen.unknown_rate:.2%} unknown.'
        ]
    lines = [f'Vocabulary: {chosen.size:,} tokens ({kind}). On text that it was not trained on:']
    lines += [f'  {"tokens":>8}  {"tokens per word":>15}  {"unknown":>8}']
    for each in advice.vocabularies:
        note = '  recommended' if each is chosen else ''
        if not each.is_full:
            note += f'  the sample yields only {each.trained:,}'
        lines.append(f'  {each.requested:8,}  {each.tokens_per_word:15.2f}  {each.unknown_rate:8.2%}{note}')
    return lines


def _size(advice: Advice) -> list[str]:
    found, law = advice.size, advice.runs.law
    layers, hidden = SIZES[found.name]
    budget = f'{advice.hours:g} hours on {advice.target.name}'
    by = (
        'by the law fitted to runs of this project'
        if advice.ranked_by == 'runs'
        else 'by the published law of Muennighoff et al. 2023 (causal models; not fitted here), because this is far '
        'beyond the runs of this project'
    )
    limit = {
        'time': f'the time ends before more epochs are useless ({budget})',
        'text': f'more epochs of this text would teach little, so the run needs less than the {budget}',
    }[found.limited_by]
    lines = [
        f'Size: {found.name}, {layers} layers of {hidden}, {short(found.parameters)} parameters, {by}.',
        f'Epochs: {found.epochs:,.1f}, {short(found.tokens)} tokens in {found.steps:,} steps of {found.rows} rows of '
        f'{sizes.LENGTH}: {limit}. Useful are up to about {sizes.useful_epochs(advice.runs):.0f}: the next is worth '
        f'{sizes.MARGINAL_WORTH:.0%} of fresh text (R = {law.R:.1f}; published: {PUBLISHED.R:.1f}).',
        f'Time: {describe_cost(found.seconds, advice.target.num_devices, advice.price)} on {advice.target.name}, '
        f'{found.tokens_per_second:,.0f} tokens/s (estimate; `plan` compiles the step).',
        f'  {"size":8} {"parameters":>10} {"tokens":>8} {"epochs":>8} {"time":>14}  nats per character',
    ]
    for each in sorted(advice.sizes, key=lambda each: each.parameters):
        fits = '' if each.fits else '  does not fit the memory'
        lines.append(
            f'  {each.name:8} {short(each.parameters):>10} {short(each.tokens):>8} {each.epochs:8.1f} '
            f'{duration(each.seconds):>14}  {each.expected.value:.2f}{"  recommended" if each is found else ""}{fits}'
        )
    if advice.ranked_by == 'published':
        lines.append(
            f'  (The last column is an extrapolation and does not choose the size. The published law lets '
            f'{PARAMETERS_PER_TOKEN} parameters per distinct token count in full.)'
        )
    return lines


def _expected(advice: Advice) -> list[str]:
    found, runs = advice.size, advice.runs
    value, low, high = found.expected
    lines = [
        f'Expected: {value:.2f} masked-word nats per character on held-out text, {low:.2f} to {high:.2f} in 4 of 5 '
        f'cases (`evaluate` prints it). Character frequencies alone have {advice.text.unigram:.2f}.',
        f'  Fitted to {len(runs.fitted)} points of this project; error on runs left out: {runs.held_out_error:.1%}; '
        f'texts differ by {runs.text_spread:.0%}.',
    ]
    if value > PLATEAU * advice.text.unigram:
        lines.append('  That is little more than the frequencies of tokens: so short a run teaches little.')
    if found.beyond:
        far = ', '.join(
            f'{_QUANTITIES[name]} {factor:,.0f} times'
            if factor > 1
            else f'{_QUANTITIES[name]} {1 / factor:,.1f} times below'
            for name, factor in found.beyond.items()
        )
        lines.append(f'  This extrapolates: {far} what those runs cover, so the range is too narrow.')
    return lines
