"""ModernBERT pretraining in PyTorch, optimized within a page of code: the baseline for the speed of `bert_jax`.

Query, key and value are one matmul, and so are gate and up; attention is `scaled_dot_product_attention` with a window
mask, or `varlen_attn` with a window (flash attention) for packed rows on a GPU; logits are computed only at masked
positions; the vocabulary is padded to a multiple of 128. `contestants.py` adds `torch.compile`, bfloat16 autocast and
fused AdamW. `load` reads the initial weights under Hugging Face's names.
"""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from bert_jax import config
from bert_jax.config.families import FULL


def _rotations(position_ids: torch.Tensor, head_size: int, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns cosines and sines, [B, 1, L, K] each."""
    frequencies = theta ** (-torch.arange(0, head_size, 2, device=position_ids.device) / head_size)
    angles = (position_ids[:, None, :, None] * frequencies).repeat(1, 1, 1, 2)
    return angles.cos(), angles.sin()


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.float().chunk(2, dim=-1)
    return (x.float() * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


class Layer(nn.Module):
    def __init__(self, model: config.ModernBert, has_attention_norm: bool):
        super().__init__()
        D, F_ = model.hidden_size, model.intermediate_size
        self.num_heads = model.num_heads
        norm = nn.LayerNorm(D, eps=model.norm_eps, bias=False)
        self.attention_norm = norm if has_attention_norm else nn.Identity()
        self.mlp_norm = nn.LayerNorm(D, eps=model.norm_eps, bias=False)
        self.qkv, self.attention_output = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D, bias=False)
        self.gate_up, self.output = nn.Linear(D, 2 * F_, bias=False), nn.Linear(F_, D, bias=False)

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | None, rotations: tuple, ends: tuple | None, radius: int
    ) -> torch.Tensor:
        """radius: of the window; -1 for the whole sequence. mask: None if there are `ends` of sequences."""
        B, L, D = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(B, L, 3, self.num_heads, D // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q, k = _rotate(q, *rotations), _rotate(k, *rotations)
        if ends is not None:  # packed rows on a GPU, concatenated without padding
            from torch.nn.attention.varlen import varlen_attn

            q, k, v = (each.transpose(1, 2).reshape(B * L, self.num_heads, -1) for each in (q, k, v))
            attended = varlen_attn(q, k, v, ends[0], ends[0], ends[1], ends[1], window_size=(radius, radius))
        else:
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
        x = x + self.attention_output(attended.reshape(B, L, D))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + self.output(F.gelu(gate) * up)


class ModernBert(nn.Module):
    """Maps a batch, a dict of tensors (the fields of `bert_jax.data.batches.Batch`), to its loss."""

    def __init__(self, model: config.ModernBert, vocab_size: int):
        super().__init__()
        D, self.padding = model.hidden_size, -vocab_size % 128
        self.kinds, self.radius, self.head_size = model.kinds, model.local_attention // 2, D // model.num_heads
        self.thetas = {True: model.global_rope_theta, False: model.local_rope_theta}
        self.word, self.head = nn.Embedding(vocab_size + self.padding, D), nn.Linear(D, D, bias=False)
        self.norm, self.final_norm, self.head_norm = (nn.LayerNorm(D, eps=model.norm_eps, bias=False) for _ in range(3))
        self.layers = nn.ModuleList(Layer(model, index > 0) for index in range(model.num_layers))
        self.decoder_bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, batch: dict, mask: torch.Tensor | None, ends: tuple | None) -> torch.Tensor:
        position_ids = batch['position_ids']
        masks = {True: mask, False: None}
        if ends is None:
            distance = torch.arange(position_ids.shape[1], device=position_ids.device)
            near = (distance[:, None] - distance).abs() <= self.radius
            masks[False] = near[None, None] if mask is None else mask & near
        rotations = {kind: _rotations(position_ids, self.head_size, theta) for kind, theta in self.thetas.items()}
        x = self.norm(self.word(batch['input_ids']))
        for layer, kind in zip(self.layers, self.kinds, strict=True):
            is_full = kind == FULL
            x = layer(x, masks[is_full], rotations[is_full], ends, -1 if is_full else self.radius)
        at = self.final_norm(x).flatten(0, 1)
        first = torch.arange(x.shape[0], device=x.device)[:, None] * x.shape[1]
        chosen = self.head_norm(F.gelu(self.head(at[(first + batch['masked_lm_positions']).flatten()])))
        logits = F.linear(chosen, self.word.weight, F.pad(self.decoder_bias, (0, self.padding), value=-1e9))
        losses = F.cross_entropy(logits.float(), batch['masked_lm_ids'].flatten(), reduction='none')
        weights = batch['masked_lm_weights'].flatten()
        return (losses * weights).sum() / weights.sum()

    @torch.no_grad()
    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Copies the weights of a Hugging Face `ModernBertForMaskedLM`."""
        names = {'word': 'model.embeddings.tok_embeddings', 'norm': 'model.embeddings.norm', 'head': 'head.dense'}
        names |= {'head_norm': 'head.norm', 'final_norm': 'model.final_norm'}
        parts = {'attention_norm': 'attn_norm', 'mlp_norm': 'mlp_norm', 'qkv': 'attn.Wqkv', 'gate_up': 'mlp.Wi'}
        parts |= {'attention_output': 'attn.Wo', 'output': 'mlp.Wo'}
        self.word.weight[len(self.decoder_bias) :] = 0
        for module, theirs in names.items():
            value = tensors[f'{theirs}.weight']
            getattr(self, module).weight[: len(value)].copy_(value)
        for index, layer in enumerate(self.layers):
            for part, theirs in parts.items():
                if index or part != 'attention_norm':
                    getattr(layer, part).weight.copy_(tensors[f'model.layers.{index}.{theirs}.weight'])
        self.decoder_bias.copy_(tensors['decoder.bias'])
