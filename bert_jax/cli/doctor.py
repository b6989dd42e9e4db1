"""`doctor`: looks for problems of a run before it trains."""

from absl import flags

from bert_jax.cli.flags import CONFIG, Command, Flag, config_of, print_result
from bert_jax.errors import BadInput
from bert_jax.runtime.stopping import EXIT_BAD_INPUT


def _run(values: flags.FlagValues, _: list[str]) -> int:
    from bert_jax.cli.diagnose import describe, diagnose, problem_of

    try:
        config = config_of(values)
    except BadInput as error:
        problems = [problem_of(error)]
    else:
        problems = diagnose(config, values.workdir)
    print_result(values, {'problems': [problem.as_json() for problem in problems]}, describe(problems))
    return EXIT_BAD_INPUT if any(problem.level == 'error' for problem in problems) else 0


COMMAND = Command(
    'doctor',
    _run,
    'check config, devices, disk, corpus and tokenizer before training',
    'bert-jax doctor --config=demo.py --workdir=runs/demo',
    (
        CONFIG,
        Flag('workdir', 'directory that the run will use; checks that its disk has room for the checkpoints'),
    ),
)
