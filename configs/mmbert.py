"""mmBERT, the multilingual encoder with the architecture of ModernBERT, on your own text.

    bert-jax prepare --config=mmbert.py:small --config.data.source='text:my/*.txt' --config.data.corpus=corpora/mine \
        --config.tokenizer.path=gemma-2/tokenizer.json
    bert-jax train --config=mmbert.py:small --config.data.corpus=corpora/mine --workdir=runs/mine

The three phases of the paper (Marone et al. 2025, arXiv 2509.06888): 2.3 trillion tokens with 30% masks in rows of
1024, 600 billion with 15% in rows of 8192, and 100 billion with 5% over which the learning rate falls. Without
`tokenizer.path`, `prepare` trains a byte-level BPE of the same size. For less text and time, shorten the phases:

    --config.phases[0].tokens=20e9 --config.phases[0].warmup_tokens=300e6 --config.phases[1].tokens=5e9 \
        --config.phases[2].tokens=1e9

Variants: small (140 M parameters), base (307 M).
"""

import bert_jax.config
from bert_jax.errors import BadInput

_SIZES = {'small': (384, 6), 'base': (768, 12)}  # hidden size, heads: section 2.1 of the paper


def get_config(size: str = 'base'):
    if size not in _SIZES:
        raise BadInput(f'size {size!r}', 'is not a published size', ', '.join(_SIZES))
    hidden_size, num_heads = _SIZES[size]
    # Values are those of configs/mmBERT-SIZE{,-ext,-decay}.yaml of the authors' repository
    # (github.com/JHU-CLSP/mmBERT), where the paper does not say otherwise. What they have and this config does not:
    # - languages: 60, 110 and 1833 in the three phases, sampled with temperatures 0.7, 0.5 and 0.3
    # - the batch grows to 4608 rows over 100 (small) or 60 (base) billion tokens
    # - dropout of 0.1 on the output of attention but not on its weights (attn_out_dropout_prob)
    # - initialization of Megatron (init_method: full_megatron)
    # - the published models merge several runs of the last phase (TIES)
    config = bert_jax.config.modernbert('base')  # 22 layers, intermediate size 1152, batch of 4608, StableAdamW
    config.model.update(hidden_size=hidden_size, num_heads=num_heads)
    config.model.global_rope_theta = 10_000.0  # rotary_emb_base; local layers have 10,000 too
    config.tokenizer.update(kind='bpe', vocab_size=256_000, num_unused=0)  # the size of Gemma 2's
    config.data.masking.rate = 0.3  # section 2.3 of the paper
    config.optimizer.update(
        peak_learning_rate=8e-4,  # lr
        warmup_steps=0,  # t_warmup: 0tok, but for the first phase
        schedule='constant',  # t_decay: 0tok
        weight_decay=0.1,  # weight_decay 8e-5 at lr 8e-4, and 4e-5 at 4e-4
        b1=0.9,  # betas
        b2=0.95,
        eps=1e-8,  # eps
    )
    extended = {
        'sequence_length': 8192,  # max_seq_len
        'global_rope_theta': 160_000.0,  # rotary_emb_base
        'local_rope_theta': 160_000.0,  # local_attn_rotary_emb_base
        'peak_learning_rate': 8e-4 if size == 'base' else 4e-4,  # lr of ext and decay
    }
    falls = {'schedule': '1-sqrt', 'final_fraction': 0.02}  # one_minus_sqrt, alpha_f
    if size == 'small':
        falls = {'schedule': 'linear', 'final_fraction': 0.04}  # warmup_stable_decay whose decay is the whole phase
    config.train.steps = bert_jax.config.Train.steps  # unused: the phases say how long the run is
    config.phases = (
        {'tokens': 2.3e12, 'warmup_tokens': 3e9 if size == 'base' else 4e9},  # t_warmup
        {'tokens': 600e9, 'masking': {'rate': 0.15}, **extended},  # mlm_probability
        {'tokens': 100e9, 'masking': {'rate': 0.05}, **extended, **falls},
    )
    return config
