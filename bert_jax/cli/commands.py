"""All commands, in the order in which a user meets them."""

from bert_jax.cli import (
    bench,
    doctor,
    embed,
    evaluate,
    export,
    fill_mask,
    finetune,
    import_model,
    launch,
    plan,
    predict,
    prepare,
    report,
    sweep,
    train,
)

COMMANDS = {
    module.COMMAND.name: module.COMMAND
    for module in (
        prepare,
        doctor,
        plan,
        train,
        finetune,
        evaluate,
        export,
        import_model,
        fill_mask,
        predict,
        embed,
        report,
        sweep,
        bench,
        launch,
    )
}
