"""ModernBERT in a published size on your own text, or in a size that learns in minutes on two CPU cores.

    bert-jax prepare --config=modernbert.py:nano
    bert-jax train --config=modernbert.py:nano --workdir=runs/nano

`nano` reads the docstrings of the installed packages, with the corpus of demo.py. For the published sizes, name your
text:

    bert-jax prepare --config=modernbert.py:base --config.data.source='text:my/*.txt' --config.data.corpus=corpora/mine
    bert-jax train --config=modernbert.py:base --config.data.corpus=corpora/mine --workdir=runs/mine

They follow the three phases of the paper (Warner et al. 2024, arXiv 2412.13663, section 2.2): 1.7 trillion tokens in
rows of 1024, 250 billion in rows of 8192 with a larger RoPE theta, and 50 billion over which the learning rate falls.
For less text and time, shorten the phases and the warm-up, and reduce the batches and with them the peaks:

    --config.phases[0].tokens=20e9 --config.phases[0].warmup_tokens=300e6 --config.phases[1].tokens=3e9 \
        --config.phases[2].tokens=600e6 --config.train.global_batch_size=256 \
        --config.phases[0].first_batch_size=64 --config.phases[0].batch_warmup_tokens=600e6 \
        --config.phases[1].global_batch_size=32 --config.phases[2].global_batch_size=32

Variants: nano, base, large.
"""

import bert_jax.config


def get_config(size: str = 'base'):
    if size == 'nano':
        return _nano()
    config = bert_jax.config.modernbert(size)
    # Values are those of yamls/modernbert/modernbert-SIZE-{pretrain,context-extension,learning-rate-decay}.yaml of the
    # authors' repository (github.com/AnswerDotAI/ModernBERT), but here the batch grows in eight stages. What they
    # have and this config does not:
    # - dropout of 0.1 on the output of attention but not on its weights (attn_out_dropout_prob)
    # - initialization of Megatron (init_method: full_megatron); large starts from the tiled weights of base
    # - other text in the last phase; base is the average of several of its checkpoints
    config.model.global_rope_theta = 10_000.0  # rotary_emb_base of pretrain
    config.train.steps = bert_jax.config.Train.steps  # unused: the phases say how long the run is
    config.optimizer.schedule = 'constant'  # t_decay: 0tok, and constant_with_warmup in context-extension
    config.optimizer.warmup_steps = 0  # t_warmup: 0tok, but for the first phase
    extended = {
        'sequence_length': 8192,  # max_seq_len
        'global_rope_theta': 160_000.0,  # rotary_emb_base; local layers stay at 10,000
    }
    annealed = {'tokens': 50e9, 'schedule': '1-sqrt', 'final_fraction': 0.001}  # max_duration, one_minus_sqrt, alpha_f
    # The yamls state what weight decay takes off a weight in a step at the peak; optimizer.weight_decay is multiplied
    # by the learning rate.
    if size == 'base':
        extended |= {'peak_learning_rate': 3e-4, 'weight_decay': round(1e-5 / 3e-4, 9)}
        config.phases = (
            {'tokens': 1.719e12, 'warmup_tokens': 3e9, 'first_batch_size': 768, 'batch_warmup_tokens': 50e9},
            {'tokens': 250e9, 'global_batch_size': 576, **extended},
            {'global_batch_size': 576, **extended, **annealed},
        )
    else:
        # Section 2.2: after 900 billion tokens the run was rolled back and restarted at a tenth of the learning rate.
        reduced = {'peak_learning_rate': 5e-5}  # its weight decay of 1e-6 is as much of the learning rate as before
        config.phases = (
            {'tokens': 900e9, 'warmup_tokens': 2e9, 'first_batch_size': 448, 'batch_warmup_tokens': 10e9},
            {'tokens': 819e9, **reduced},
            {'tokens': 250e9, 'global_batch_size': 616, **extended, **reduced},
            {'global_batch_size': 624, **extended, **reduced, **annealed},
        )
    return config


def _nano():
    config = bert_jax.config.modernbert('base')
    config.tokenizer.update(kind='wordpiece', vocab_size=8192, num_unused=0)
    config.data.sequence_length = 128
    config.model.num_layers = 3
    config.model.hidden_size = 128
    config.model.num_heads = 2
    config.model.intermediate_size = 192
    config.model.local_attention = 32
    config.model.max_positions = 512
    config.model.initializer_range = 0.05
    config.model.dtype = 'float32'
    config.model.scan_layers = False
    config.train.steps = 2000
    config.train.global_batch_size = 16
    config.train.microbatches = 1
    config.train.log_every = 50
    config.train.evaluate_every = 1000
    config.train.evaluate_rows = 512
    config.optimizer.name = 'muon'
    config.optimizer.peak_learning_rate = 4e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 1.0
    return config
