"""`report`: writes a page about one run, or about several side by side."""

from absl import flags

from bert_jax.cli.flags import Command, Flag, check_names_no_step, print_result
from bert_jax.errors import BadInput
from bert_jax.runtime.paths import check_path
from bert_jax.runtime.stopping import exit_on_signals


@exit_on_signals()
def _run(values: flags.FlagValues, _: list[str]) -> int:
    if not values.workdir:
        raise BadInput('--workdir', 'is missing', 'the directory of a run', COMMAND.example)
    for workdir in values.workdir:
        check_path('workdir', workdir)
        check_names_no_step(COMMAND, workdir)
    from bert_jax.report import summarize, write_report
    from bert_jax.workdir.result import check_output

    check_output(values.output or '')
    path = write_report(values.workdir, values.output or '')
    wrote = f'\nWrote {path}' if path else ''
    print_result(values, {'report': path and str(path)}, summarize(values.workdir) + wrote, is_in_files=True)
    return 0


COMMAND = Command(
    'report',
    _run,
    'write report.html: curves and tables of one run, or of several side by side',
    'bert-jax report --workdir=runs/demo',
    (
        Flag('workdir', 'directory of a run; may be repeated', flags.DEFINE_multi_string, [], group='essential'),
        Flag('output', 'HTML file to write (default: report.html in the first workdir)'),
    ),
)
