"""BERT pretraining in PyTorch, optimized within a page of code: the baseline for the speed of `bert_jax`.

Query, key and value are one matmul; attention is `scaled_dot_product_attention`, or `varlen_attn` for packed rows on a
GPU; logits are computed only at masked positions; the vocabulary is padded to a multiple of 128. `contestants.py` adds
`torch.compile`, bfloat16 autocast and fused AdamW. `load` reads the initial weights under Hugging Face's names.
"""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from bert_jax import config


class Layer(nn.Module):
    def __init__(self, model: config.Model):
        super().__init__()
        D = model.hidden_size
        self.num_heads, self.rates = model.num_heads, (model.dropout_rate, model.attention_dropout_rate)
        self.qkv, self.attention_output = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.intermediate, self.output = nn.Linear(D, model.intermediate_size), nn.Linear(model.intermediate_size, D)
        self.attention_norm, self.output_norm = (nn.LayerNorm(D, eps=model.layer_norm_eps) for _ in range(2))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None, ends: tuple | None) -> torch.Tensor:
        B, L, D = x.shape
        rate, attention_rate = self.rates if self.training else (0.0, 0.0)
        qkv = self.qkv(x).view(B, L, 3, self.num_heads, D // self.num_heads)
        if ends is not None:  # packed rows on a GPU, concatenated without padding
            from torch.nn.attention.varlen import varlen_attn

            q, k, v = qkv.view(B * L, 3, self.num_heads, -1).unbind(1)
            attended = varlen_attn(q, k, v, ends[0], ends[0], ends[1], ends[1])
        else:
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=attention_rate)
            attended = attended.transpose(1, 2)
        x = self.attention_norm(x + F.dropout(self.attention_output(attended.reshape(B, L, D)), rate))
        return self.output_norm(x + F.dropout(self.output(F.gelu(self.intermediate(x))), rate))


class Bert(nn.Module):
    """Maps a batch, a dict of tensors (the fields of `bert_jax.data.batches.Batch`), to its loss."""

    def __init__(self, model: config.Model, vocab_size: int):
        super().__init__()
        D, self.padding, self.rate = model.hidden_size, -vocab_size % 128, model.dropout_rate
        self.word = nn.Embedding(vocab_size + self.padding, D)
        self.position, self.token_type = nn.Embedding(model.max_positions, D), nn.Embedding(2, D)
        self.norm, self.mlm_norm = (nn.LayerNorm(D, eps=model.layer_norm_eps) for _ in range(2))
        self.layers = nn.ModuleList(Layer(model) for _ in range(model.num_layers))
        self.pooler, self.nsp, self.mlm_transform = nn.Linear(D, D), nn.Linear(D, 2), nn.Linear(D, D)
        self.mlm_bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, batch: dict, mask: torch.Tensor | None, ends: tuple | None) -> torch.Tensor:
        x = self.word(batch['input_ids']) + self.position(batch['position_ids'])
        x = self.norm(x + self.token_type(batch['token_type_ids']))
        x = F.dropout(x, self.rate if self.training else 0.0)
        for layer in self.layers:
            x = layer(x, mask, ends)
        at = x.flatten(0, 1)
        first = torch.arange(x.shape[0], device=x.device)[:, None] * x.shape[1]
        chosen = self.mlm_norm(F.gelu(self.mlm_transform(at[(first + batch['masked_lm_positions']).flatten()])))
        logits = F.linear(chosen, self.word.weight, F.pad(self.mlm_bias, (0, self.padding), value=-1e9))
        loss = _mean_loss(logits, batch['masked_lm_ids'], batch['masked_lm_weights'])
        pooled = torch.tanh(self.pooler(at[(first + batch['cls_positions']).flatten()]))
        return loss + _mean_loss(self.nsp(pooled), batch['next_sentence_labels'], batch['next_sentence_weights'])

    @torch.no_grad()
    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Copies the weights of a Hugging Face `BertForPreTraining`."""

        def copy(module: nn.Module, *names: str) -> None:
            for kind in ('weight', 'bias') if hasattr(module, 'bias') else ('weight',):
                value = torch.cat([tensors[f'{name}.{kind}'] for name in names])
                getattr(module, kind)[: len(value)].copy_(value)

        for field in ('word', 'position', 'token_type'):
            copy(getattr(self, field), f'bert.embeddings.{field}_embeddings')
        self.word.weight[len(self.mlm_bias) :] = 0
        copy(self.norm, 'bert.embeddings.LayerNorm')
        for number, layer in enumerate(self.layers):
            name = f'bert.encoder.layer.{number}'
            copy(layer.qkv, *(f'{name}.attention.self.{part}' for part in ('query', 'key', 'value')))
            copy(layer.attention_output, f'{name}.attention.output.dense')
            copy(layer.attention_norm, f'{name}.attention.output.LayerNorm')
            copy(layer.intermediate, f'{name}.intermediate.dense')
            copy(layer.output, f'{name}.output.dense')
            copy(layer.output_norm, f'{name}.output.LayerNorm')
        copy(self.pooler, 'bert.pooler.dense')
        copy(self.mlm_transform, 'cls.predictions.transform.dense')
        copy(self.mlm_norm, 'cls.predictions.transform.LayerNorm')
        copy(self.nsp, 'cls.seq_relationship')
        self.mlm_bias.copy_(tensors['cls.predictions.bias'])


def _mean_loss(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    losses = F.cross_entropy(logits.float(), labels.flatten(), reduction='none')
    return (losses * weights.flatten()).sum() / weights.sum()
