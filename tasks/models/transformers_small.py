"""Small Transformers, pre-norm, with one activation module per feed-forward block."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tasks.models.small import ACTIVATIONS


class Attention(nn.Module):
    """Multi-head self-attention: (samples, tokens, width) to the same."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        samples, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(samples, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).reshape(samples, tokens, width))


class Block(nn.Module):
    """Attention and a feed-forward network four times as wide, each normalised before and added after."""

    def __init__(self, width: int, heads: int, activation: str, causal: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal)
        self.norm2 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, 4 * width)
        self.act = ACTIVATIONS[activation]()
        self.linear2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.linear2(self.act(self.linear1(self.norm2(x))))


class ViTTiny(nn.Module):
    """A Vision Transformer (arXiv 2010.11929) that averages its tokens: (samples, channels, size, size) to (samples, classes)."""

    def __init__(
        self, shape: tuple[int, ...], classes: int, width: int, depth: int, heads: int, activation: str
    ) -> None:
        super().__init__()
        channels, size, _ = shape
        patch = next(p for p in (size // 8, 4, 2, 1) if p and size % p == 0)
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.positions = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, heads, activation, causal=False) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(x)).mean(dim=1))


class GPTTiny(nn.Module):
    """A GPT with tied embeddings, initialised as GPT-2: (samples, tokens) to (samples, tokens, vocabulary)."""

    def __init__(self, vocabulary: int, context: int, width: int, depth: int, heads: int, activation: str) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads, activation, causal=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                residual = name.endswith(("out.weight", "linear2.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * depth) ** 0.5 if residual else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        return functional.linear(self.norm(self.blocks(x)), self.tokens.weight)


class SentenceTiny(nn.Module):
    """A Transformer encoder that averages the tokens that are not padding (0): (samples, tokens) to (samples, classes)."""

    def __init__(
        self, vocabulary: int, context: int, classes: int, width: int, depth: int, heads: int, activation: str
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width, padding_idx=0)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads, activation, causal=False) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.blocks(self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]))
        real = (tokens != 0).unsqueeze(-1).to(x.dtype)
        return self.head((x * real).sum(dim=1) / real.sum(dim=1).clamp(min=1))
