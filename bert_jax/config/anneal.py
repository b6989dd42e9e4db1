"""Annealing: the config of a branch of a run, whose learning rate falls from a step on."""

import dataclasses

from bert_jax.config.batch_sizes import batch_sizes
from bert_jax.config.data import is_records
from bert_jax.config.fields import identity_of
from bert_jax.config.phases import phase_at, weight_decays
from bert_jax.config.pretraining import Config
from bert_jax.config.resolve import resolve
from bert_jax.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Decay:
    """How the learning rate of a branch falls.

    Attributes:
      steps, tokens: its length; one of them is 0.
      curve, final_fraction: as `decay` and `final_fraction` of `config.Optimizer`.
    """

    steps: int = 0
    tokens: float = 0.0
    curve: str = '1-sqrt'
    final_fraction: float = 0.0


def annealed(config: Config, step: int, decay: Decay) -> Config:
    """Returns the config of the run that a run would have been had its learning rate fallen after `step`.

    The decay extends the phase of that step, so the branch reads on in the data of the phase, in the same order. Up to
    the step the two configs give the same run, bit for bit, because the learning rate is still at its peak there.

    Raises:
      BadInput: if the learning rate is not at its peak after that step, or the length of the decay is missing.
    """
    index = phase_at(config, step)
    phase, done = config.in_phases[index], step - _steps_before(config, index)
    _check_stable(config, phase, step, done)
    steps = _num_steps(phase, decay, done)
    ending = {
        'schedule': 'wsd',
        'decay': decay.curve,
        'decay_steps': steps,
        'decay_tokens': 0.0,
        'final_fraction': decay.final_fraction,
    }
    train = dataclasses.replace(config.train, steps=step + steps, tokens=0.0)
    if not config.phases:
        branch = dataclasses.replace(config, train=train, optimizer=dataclasses.replace(config.optimizer, **ending))
        return resolve(dataclasses.asdict(branch))
    last = dataclasses.replace(config.phases[index], **ending, steps=done + steps, tokens=0.0)
    phases = (*config.phases[:index], last)
    branch = dataclasses.replace(config, train=train, phases=phases)
    if len(weight_decays(config)) > 1 and len(weight_decays(branch)) == 1:  # several are a schedule, which has a state
        found = 'differs between phases of the run, but not between those up to the step'
        raise BadInput('config.phases: weight_decay', found, 'one weight decay, or a later step')
    return resolve(dataclasses.asdict(branch))


def _steps_before(config: Config, index: int) -> int:
    return sum(phase.train.steps for phase in config.in_phases[:index])


def _check_stable(config: Config, phase: Config, step: int, done: int) -> None:
    """Raises BadInput if the learning rate after a step is not the peak of its phase.

    Args:
      done: steps of the phase up to `step`.
    """
    optimizer, before = phase.optimizer, step - done
    last = {'constant': phase.train.steps, 'wsd': phase.train.steps - optimizer.num_decay_steps(phase.train.steps)}
    first, end = before + optimizer.warmup_steps, before + last.get(optimizer.schedule, -1)
    if first <= step <= end:
        return
    if optimizer.schedule not in last:
        found = f'comes after a learning rate that falls all the time (optimizer.schedule={optimizer.schedule!r})'
        raise BadInput(f'step {step}', found, "a run with optimizer.schedule='wsd' or 'constant'")
    why = 'is in the warm-up' if step < first else 'comes after the learning rate began to fall'
    raise BadInput(f'step {step}', why, f'a step from {first:,} to {end:,}, where the learning rate is at its peak')


def _num_steps(phase: Config, decay: Decay, done: int) -> int:
    if bool(decay.steps) == bool(decay.tokens):
        found = 'are both given' if decay.steps else 'are both missing'
        raise BadInput('--tokens and --steps', found, 'one of them, the length of the decay', '--tokens=1e9')
    if decay.steps:
        return decay.steps
    sizes, rows = batch_sizes(phase.train), -(-int(decay.tokens) // phase.data.sequence_length)
    return sizes.steps_of(sizes.before(done) + rows) - done


def check_keeps_past(config: Config, changed: Config, step: int) -> None:
    """Raises BadInput if a branch changes fields that the steps before it depend on, or how its data are counted.

    The masking and the dropout rates may change: they apply from the branch on.
    """
    before, after = identity_of(config), identity_of(changed)
    differ = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    fixed = [name for name in differ if name != 'data.masking' and 'dropout' not in name]
    if config.init != changed.init:
        fixed.append('init')
    if is_records(config.data.source) and config.data.source != changed.data.source:
        fixed.append('data.source')
    if fixed:
        found = f'changes what the run was up to step {step}'
        expected = 'the masking, dropout rates, and fields that are not part of the identity of a run'
        raise BadInput(f'config.{fixed[0]}', found, expected)
