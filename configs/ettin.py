"""Ettin's encoders in a published size, on your own text: ModernBERT's architecture from 17 M to 1 B parameters.

    bert-jax prepare --config=ettin.py:17m --config.data.source='text:my/*.txt' --config.data.corpus=corpora/mine
    bert-jax train --config=ettin.py:17m --config.data.corpus=corpora/mine --workdir=runs/mine

The three phases of the paper (Weller et al. 2025, arXiv 2507.11412): 1.7 trillion tokens in rows of 1024, then 250
billion in rows of 7999 over which the learning rate halves, and 50 billion over which it falls to 2% with half as many
masks. For less text and time, shorten the phases and the warm-up, and reduce the batches and with them the peaks:

    --config.phases[0].tokens=20e9 --config.phases[0].warmup_tokens=300e6 --config.phases[1].tokens=3e9 \
        --config.phases[2].tokens=600e6 --config.train.global_batch_size=256 \
        --config.phases[1].global_batch_size=32 --config.phases[2].global_batch_size=32

Variants: 17m, 32m, 68m, 150m, 400m, 1b.
"""

import bert_jax.config


def get_config(size: str = '150m'):
    config = bert_jax.config.ettin(size)
    # Values are those of pretraining/configs/standard/SIZE/{.,de_decay,prolong_decay}/encoder_SIZE.yaml of the authors'
    # repository (github.com/JHU-CLSP/ettin-encoder-vs-decoder), with SIZE very_tiny, tiny, mini, base, large or huge.
    # What they have and this config does not:
    # - the batch grows to 4608 rows over 125 (17m), 100, 75, 50, 10 or 3 (1b) billion tokens
    # - rows are not packed: a batch is 4608 documents of up to 1024 or 7999 tokens. Here, packed rows of 7999 give
    #   a batch about as many tokens as those of 1024.
    # - dropout of 0.1 on the output of attention but not on its weights (attn_out_dropout_prob)
    # - initialization of Megatron (init_method: full_megatron); 1b starts from the tiled weights of 400m
    # - other text in the second and third phase
    published = bert_jax.config.ETTIN_SIZES[size]
    peak, decay = published.peak_learning_rate, published.decay
    config.model.update(global_rope_theta=10_000.0, local_rope_theta=10_000.0)  # rotary_emb_base of the first phase
    config.optimizer.warmup_steps = 0  # schedules of the second and third phase have no warm-up
    extended = {
        'sequence_length': 7999,  # max_seq_len
        'global_batch_size': 576,
        'global_rope_theta': 160_000.0,  # rotary_emb_base
        'schedule': '1-sqrt',  # one_minus_sqrt
    }
    config.train.steps = bert_jax.config.Train.steps  # unused: the phases say how long the run is
    config.phases = (
        {'tokens': 1.7e12, 'warmup_tokens': published.warmup_tokens, 'schedule': 'constant'},  # t_decay: 0tok
        {
            'tokens': 83.333e9 if size == '1b' else 250e9,  # max_duration
            **extended,
            'final_fraction': 0.5,  # alpha_f
            'local_rope_theta': 10_000.0
            if size == '17m'
            else 160_000.0,  # local_attn_rotary_emb_base, or rotary_emb_base
        },
        {
            'tokens': 16.667e9 if size == '1b' else 50e9,  # max_duration
            **extended,
            'masking': {'rate': 0.15},  # mlm_probability
            'peak_learning_rate': peak / 2,  # lr
            'final_fraction': 0.04,  # alpha_f
            'local_rope_theta': 160_000.0,  # local_attn_rotary_emb_base
            # weight_decay: what a step takes off a weight at the peak, which is half as high
            'weight_decay': round(decay / (peak / 2), 9),
        },
    )
    return config
