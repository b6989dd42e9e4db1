"""All commands, grouped as `--help` lists them."""

from bert_jax.cli import (
    advise,
    anneal,
    bench,
    doctor,
    embed,
    evaluate,
    export,
    fill_mask,
    finetune,
    import_model,
    launch,
    mine,
    plan,
    predict,
    prepare,
    report,
    sweep,
    train,
)

_MODULES = {
    'Prepare': (advise, prepare, doctor, plan),
    'Train': (train, anneal, import_model, finetune, mine),
    'Inspect': (evaluate, report),
    'Use': (export, fill_mask, embed, predict),
    'Scale': (sweep, launch, bench),
}
COMMAND_GROUPS = {group: tuple(module.COMMAND for module in modules) for group, modules in _MODULES.items()}
COMMANDS = {command.name: command for commands in COMMAND_GROUPS.values() for command in commands}
