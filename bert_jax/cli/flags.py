"""Flags of a command: defined, parsed, and read as what they stand for; what does not parse becomes `BadInput`."""

import dataclasses
import difflib
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from bert_jax.config import Config, resolve, unknown_field
from bert_jax.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Command:
    """A command: what it does in a line, an example, the flags that it needs and may take, and its function."""

    name: str
    run: Callable[[flags.FlagValues, list[str]], int]
    does: str
    example: str
    flags: tuple[str, ...]
    arguments: str = ''


@dataclasses.dataclass(frozen=True)
class _Flag:
    """A flag: what it means, absl's function that defines it, its default, and what else that function takes."""

    meaning: str
    define: Callable = flags.DEFINE_string
    default: Any = None
    bounds: dict[str, Any] = dataclasses.field(default_factory=dict)


_AT_LEAST_0, _AT_LEAST_1 = {'lower_bound': 0}, {'lower_bound': 1}
_FLAGS = {
    'workdir': _Flag('directory of a run'),
    'workdirs': _Flag('directory of a run; may be repeated', flags.DEFINE_multi_string, []),  # called --workdir
    'input': _Flag('text file, a line for each vector'),
    'output': _Flag('what to write: a directory (export), an .npy file (embed)'),
    'from': _Flag('a Hugging Face directory, or one of an original checkpoint (bert_config.json, bert_model.ckpt.*)'),
    'beam': _Flag('options of Apache Beam, for example --beam="--runner=DirectRunner"; see requirements-beam.txt'),
    'shard': _Flag('I/N: do part I (from 0) of N parts of the work; the last to finish puts the corpus together'),
    'model': _Flag('a workdir, an export or a Hugging Face directory'),
    'source': _Flag(
        'other text to evaluate on, as data.source names it: text:GLOB, jsonl:GLOB, parquet:GLOB, tfds:NAME'
    ),
    'slurm': _Flag("options of sbatch: submit the runs as an array of SLURM ('' for none)"),
    'target': _Flag('tpu-v5e:4x4 (a chip and a topology), h200:2x8 (hosts x GPUs of each), or here'),
    'step': _Flag('step of the checkpoint; the newest without it', flags.DEFINE_integer),
    'allow_change': _Flag(
        'fields, with commas, that may differ from those that the run was begun with; config.json records it',
        flags.DEFINE_list,
        [],
    ),
    'top_k': _Flag('fillers to show', flags.DEFINE_integer, 5, _AT_LEAST_1),
    'distributed': _Flag(
        'join the processes of a TPU pod or of Open MPI; --nodistributed: alone, whatever the environment says',
        flags.DEFINE_boolean,
    ),
    'devices': _Flag('how many devices there must be, over all hosts', flags.DEFINE_integer),
    'join_timeout': _Flag('seconds to wait for the other hosts', flags.DEFINE_integer, 300),
    'price': _Flag('dollars of a chip and an hour', flags.DEFINE_float, None, {'lower_bound': 0.0}),
    'search': _Flag('rank meshes, microbatches and remat policies', flags.DEFINE_boolean, False),
    'scaling': _Flag('predict the efficiency of 8 to 4096 such devices, split over data', flags.DEFINE_boolean, False),
    'tokenizer_only': _Flag('train and show the tokenizer, then stop', flags.DEFINE_boolean, False),
    'seconds': _Flag('how long to measure', flags.DEFINE_float, 20.0, {'lower_bound': 0.0}),
    'jobs': _Flag(
        'runs at a time (1; under SLURM all); 0 starts none and shows what there is',
        flags.DEFINE_integer,
        None,
        _AT_LEAST_0,
    ),
    'sample': _Flag(
        'windows of text to mask words in, an eighth of them for pseudo-perplexity; 0: none',
        flags.DEFINE_integer,
        512,
        _AT_LEAST_0,
    ),
    'show': _Flag('rows of the first batch to print', flags.DEFINE_integer, 0, _AT_LEAST_0),
    'seeds': _Flag(
        'runs, each with a seed of its own; as many as before, or one', flags.DEFINE_integer, None, _AT_LEAST_1
    ),
    'workers': _Flag('processes; as many as cores without it', flags.DEFINE_integer, None, _AT_LEAST_1),
    'json': _Flag('write one JSON object to standard output, nothing else', flags.DEFINE_boolean, False),
}


def define(command: Command, arguments: Sequence[str] = ()) -> flags.FlagValues:
    """The flags that a command takes, none of them set but those of a config file in `arguments`."""
    from ml_collections import config_flags

    values = flags.FlagValues()
    for name in (*command.flags, 'json'):
        if name == 'config':
            config_flags.DEFINE_config_file(
                'config', None, 'config file FILE.py[:VARIANT]', flag_values=values, sys_argv=['', *arguments]
            )
            continue
        flag, called = _FLAGS[name], 'workdir' if name == 'workdirs' else name
        flag.define(called, flag.default, flag.meaning, flag_values=values, **flag.bounds)
    return values


def _root(name: str) -> type:
    """The kind of config that a command takes."""
    if name != 'finetune':
        return Config
    from bert_jax.config.finetuning import FinetuneConfig

    return FinetuneConfig


def parse(command: Command, arguments: list[str]) -> tuple[flags.FlagValues, list[str]]:
    """Flags and the rest of the arguments; what does not parse becomes `BadInput`."""
    name, values = command.name, define(command, arguments)
    try:
        rest = values([name, *arguments])[1:]
    except (AttributeError, KeyError) as error:  # a config file or an override that sets a field which does not exist
        given = [argument[2:].partition('=')[0] for argument in arguments if argument.startswith('--config.')]
        from bert_jax.config import Phase, field_names

        root = _root(name)
        known = {*field_names(root), *field_names(Phase, 'phases[].')}
        for path in (path.removeprefix('config.') for path in given):
            if re.sub(r'\[\d+\]', '[]', path) not in known:
                raise unknown_field(path, root) from error
        raise BadInput('--config', str(error).strip('"\'')) from error
    except flags.UnrecognizedFlagError as error:
        near = difflib.get_close_matches(error.flagname, list(values), n=1)
        mend = f'did you mean --{near[0]}?' if near else f'python -m bert_jax {name} --help'
        raise BadInput(f'--{error.flagname}', f'is not a flag of {name}', '', mend) from error
    except (flags.Error, OSError, IndexError, TypeError, ValueError, SyntaxError, ImportError) as error:
        raise BadInput('command line', ' '.join(str(error).split()), '', f'python -m bert_jax {name} --help') from error
    if rest and not command.arguments:
        raise BadInput(
            'command line', f'{rest[0]!r} is not a flag', '--NAME=VALUE', f'python -m bert_jax {name} --help'
        )
    return values, rest


def describe(command: Command) -> str:
    """What `--help` says of a command."""
    name, values = command.name, define(command)
    lines = [f'python -m bert_jax {name} [--flag=VALUE …]{command.arguments}: {command.does}', '']
    lines += [f'  --{flag}: {values[flag].help}' for flag in sorted(values) if flag in values]
    lines += ['', f'Example: {command.example}']
    return '\n'.join(lines)


def tell(values: flags.FlagValues, as_json: dict[str, Any], text: str) -> None:
    if values.json:
        print(json.dumps(as_json, ensure_ascii=False))
    elif text:
        print(text)


def required(values: flags.FlagValues, name: str) -> str:
    if not values[name].value:
        raise BadInput(f'--{name}', 'is missing', _FLAGS[name].meaning)
    return values[name].value


def config_of(values: flags.FlagValues) -> Config:
    if values.config is None:
        raise BadInput('--config', 'is missing', 'a config file', '--config=configs/demo.py')
    return _resolved(values.config)


def _resolved(given: Any) -> Config:
    return resolve(fields_of(given))


def fields_of(given: Any) -> dict[str, Any]:
    """What a config file returned, as a dict."""
    try:
        return given.to_dict()
    except BadInput:
        raise
    except Exception as error:  # a config file is its owner's program: it may raise anything
        found = f'cannot be used ({type(error).__name__}: {error})'
        raise BadInput(
            '--config', found, 'a Python file whose get_config() returns a ConfigDict', '--config=configs/demo.py'
        ) from error


def config_of_run(values: flags.FlagValues, workdir: str) -> Config:
    """The config given, or the one that the workdir holds."""
    if values.config is not None:
        return _resolved(values.config)
    from bert_jax.workdir.identity import load_config

    return load_config(workdir)
