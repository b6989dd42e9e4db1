"""The recipe of NeoBERT on your own text: 28 layers of 768, full attention, rotary positions, RMS norms and SwiGLU.

    bert-jax prepare --config=neobert.py --config.data.source='text:my/*.txt' --config.data.corpus=corpora/mine
    bert-jax train --config=neobert.py --config.data.corpus=corpora/mine --workdir=runs/mine

Le Breton et al. 2025, arXiv 2502.19587: a million steps of two million tokens in rows of 1024, then 50,000 steps in
rows of 4096. The model is of the family `eurobert`, which differs from NeoBERT only in the decoder's bias, and which
stock `transformers` opens. For less text and time, shorten the phases:

    --config.phases[0].steps=90000 --config.phases[1].steps=10000 --config.phases[2].steps=5000
"""

import bert_jax.config


def get_config():
    config = bert_jax.config.defaults('eurobert')
    # [P] section 3 and table 3 of the paper, [R] the authors' repository (github.com/chandar-lab/NeoBERT). What they
    # have and this config does not:
    # - initial weights from a uniform distribution (model.py: _init_weights), and a bias in the decoder
    # - rows are not packed (conf/dataloader/base.yaml: pack_sequences)
    # - text of the last phase: RefinedWeb, and its documents of at least 1024 and at least 2048 tokens
    config.model.update(
        num_layers=28,  # [R] conf/model/250M-opt.yaml
        hidden_size=768,
        num_heads=12,
        intermediate_size=2048,  # [R] two thirds of intermediate_size: 3072 (model.py)
        rms_norm_eps=1e-5,  # [R] conf/model/neobert.yaml: norm_eps
        rope_theta=10_000.0,  # [R] rotary.py: theta
        max_positions=4096,  # [P]
        dtype='bfloat16',  # [R] conf/trainer/mlm.yaml: mixed_precision
    )
    config.tokenizer.update(kind='wordpiece', vocab_size=30_522)  # [R] conf/tokenizer/google.yaml: bert-base-uncased
    config.data.update(sequence_length=1024, packing=True, short_sequence_probability=0.0)  # [R] max_length: 1024
    config.data.masking.update(rate=0.2, mask_fraction=1.0, random_fraction=0.0)  # [R] mlm_20.yaml: mask_all
    config.train.update(
        global_batch_size=2048,  # [R] jobs/neobert.sh: 64 rows, 8 GPUs, 4 accumulation steps
        microbatches=-1,
        log_every=10,
        checkpoint_every=1000,  # [R] conf/trainer/mlm.yaml: save_steps
        evaluate_every=10_000,
    )
    config.optimizer.update(
        name='adamw',  # [P]
        peak_learning_rate=6e-4,  # [P]; [R] has 1e-4
        warmup_steps=0,
        weight_decay=0.1,  # [P]; [R] has 0.01
        b1=0.9,  # [P]
        b2=0.95,
        eps=1e-8,  # [P]
        clip_norm=1.0,  # [R] conf/trainer/mlm.yaml: gradient_clipping
    )
    floor = {'peak_learning_rate': 6e-5, 'schedule': 'constant'}  # [R] scheduler.py: final_ratio of 0.1, then constant
    config.phases = (
        # [R] conf/scheduler/cosine_decay.yaml: decay_steps: 900000, of max_steps: 1000000
        {'steps': 900_000, 'warmup_steps': 2000, 'schedule': 'cosine', 'final_fraction': 0.1},
        {'steps': 100_000, **floor},
        # [R] jobs/neobert-4096.sh: 8 rows, 8 GPUs, 8 accumulation steps; the rate is constant, at a value not published
        {'steps': 50_000, 'sequence_length': 4096, 'global_batch_size': 512, **floor},
    )
    return config
