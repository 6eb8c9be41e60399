"""A small multimodal LLM: ViT, linear projector, GPT decoder. Read `mma.py` before, `scenes.py` after.

The pieces stand in the order in which a picture meets them, smallest first: attention, block, ViT and
projector, decoder, generation. The decoder has no idea of images; it is given a sequence of vectors,
some from the picture and some from the token embedding, and a mask that says who may look at whom.

Shapes: B rows, T positions, D width, H heads, N pictures, P patches a picture, n image tokens a picture,
S positions in the KV cache, V vocabulary.
"""
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from mma import PAD, TEXT, attention_mask, mask_mod

IGNORE = -100  # a label that asks for no prediction, as in F.cross_entropy
MIXING = ("vit.patch.weight", "projector.linear.weight")  # matrices outside the blocks that Muon updates too


@dataclass(frozen=True)
class Config:
    """Everything that fixes the shape of the weights. Widths and sizes in units of floats and pixels."""
    vocab_size: int
    context: int = 256  # longest row, image tokens included
    width: int = 128  # D, of the ViT and of the decoder alike
    heads: int = 4
    layers: int = 4  # of the decoder
    vit_layers: int = 3
    image_size: int = 64  # pixels a side
    patch_size: int = 8
    window: int = 24  # pixels a side that are seen when a patch is embedded; patch_size: no overlap (plain ViT)

    # Generous bounds, so that a checkpoint from a stranger cannot ask for a terabyte of memory.
    LIMITS = dict(vocab_size=1 << 20, context=1 << 16, width=1 << 13, heads=128, layers=128, vit_layers=128,
                  image_size=4096, patch_size=512, window=1024)

    def __post_init__(self):
        for name, most in self.LIMITS.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise ValueError(f"configuration: {name} is {value!r}, but must be a whole number from 1 to {most}")
        if self.width % self.heads:
            raise ValueError(f"configuration: width {self.width} is no multiple of heads {self.heads}")
        if self.image_size % (2 * self.patch_size):
            raise ValueError(f"configuration: image_size {self.image_size} is no multiple of two patches "
                             f"(2 x {self.patch_size}), which are merged into one image token")
        if self.window < self.patch_size or (self.window - self.patch_size) % 2:
            raise ValueError(f"configuration: window {self.window} must be patch_size {self.patch_size} "
                             "and an even margin")

    @property
    def image_tokens(self):
        """Decoder tokens that one picture becomes: 2x2 patches each."""
        return (self.image_size // self.patch_size // 2) ** 2


class Attention(nn.Module):
    """Multi-head self-attention with QK-norm (queries and keys are normalised, so logits stay bounded)."""

    def __init__(self, config):
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x, mask=None, cache=None):
        """x: (B, T, D) -> (B, T, D); mask: None, a (B, 1, T, S) bool or a BlockMask; cache: a KVCache or None."""
        q, k, v = self.split(x)
        if q.is_cpu and q.dtype == torch.bfloat16:  # the backward of that kernel takes ten times float32's
            q, k, v = q.float(), k.float(), v.float()
        if cache is not None:
            k, v = cache.append(k, v)  # (B, H, S, D/H)
        if isinstance(mask, BlockMask):
            y = flex_attention(q, k, v, block_mask=mask)
        else:
            with torch.autocast("cpu", enabled=False):
                y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).reshape(x.shape))

    def split(self, x):
        """x: (B, T, D) -> queries, keys and values, (B, H, T, D/H) each."""
        B, T, D = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.heads, D // self.heads).unbind(2)  # (B, T, H, D/H) each
        q, k = (F.layer_norm(z, z.shape[-1:]) for z in (q, k))
        return tuple(z.transpose(1, 2) for z in (q, k, v))

    def weights(self, x, mask):
        """How strongly each position looks at each: the softmax that the kernels of `forward` never return.

        x: (B, T, D), mask: (B, 1, T, T) bool -> (B, H, T, T), rows that sum to 1. For looking (see `sample.py`).
        """
        q, k, _ = self.split(x)
        logits = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        return logits.masked_fill(~mask, float("-inf")).softmax(-1)


class Block(nn.Module):
    """A pre-norm transformer block; the ViT and the decoder differ in the mask alone."""

    def __init__(self, config):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, bias=False)
        self.attention = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, bias=False)
        self.up = nn.Linear(config.width, 4 * config.width, bias=False)
        self.down = nn.Linear(4 * config.width, config.width, bias=False)

    def forward(self, x, mask=None, cache=None):
        """x: (B, T, D) -> (B, T, D)."""
        x = x + self.attention(self.norm1(x), mask, cache)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """Vision transformer: pictures to patch features. Bidirectional: no mask."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        # A patch is seen with a margin: a small object then falls into one window as a whole, wherever the
        # grid of patches cuts it, and shapes are learned sooner (`ablate.py` measures it).
        self.patch = nn.Linear(3 * config.window ** 2, config.width)
        self.position = nn.Parameter(torch.zeros((config.image_size // config.patch_size) ** 2, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.vit_layers))
        self.norm = nn.LayerNorm(config.width, bias=False)

    def forward(self, images):
        """images: (N, image_size, image_size, 3) uint8 -> (N, P, D)."""
        size, p = self.config.image_size, self.config.patch_size
        if images.dim() != 4 or images.shape[1:] != (size, size, 3) or images.dtype != torch.uint8:
            raise ValueError(f"images must be (N, {size}, {size}, 3) uint8, "
                             f"but are {tuple(images.shape)} {images.dtype}")
        margin = (self.config.window - p) // 2
        x = images.permute(0, 3, 1, 2).to(self.patch.weight.dtype) / 127.5 - 1  # (N, 3, size, size)
        x = F.unfold(x, self.config.window, stride=p, padding=margin).transpose(1, 2)  # (N, P, 3 window window)
        x = self.patch(x) + self.position  # (N, P, D)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Projector(nn.Module):
    """Patch features to image tokens: 2x2 neighbours are concatenated and projected by one linear layer.

    Four patches become one token: a quarter of the positions for the decoder to read.
    """

    def __init__(self, config):
        super().__init__()
        self.linear = nn.Linear(4 * config.width, config.width)

    def forward(self, x):
        """x: (N, P, D) -> (N, n, D), n = P / 4, in reading order."""
        N, P, D = x.shape
        g = int(P ** 0.5) // 2  # tokens a side
        return self.linear(x.view(N, g, 2, g, 2, D).transpose(2, 3).reshape(N, g * g, 4 * D))


class MultimodalGPT(nn.Module):
    """ViT, projector and decoder. The kind of attention is an argument of the call, never of the weights."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.vit = ViT(config)
        self.projector = Projector(config)
        self.token = nn.Embedding(config.vocab_size, config.width)  # tied: also the output layer
        self.position = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, bias=False)
        self.flex = False  # True: FlexAttention with a block mask instead of a dense mask (see `train.py`)
        for name, p in self.named_parameters():
            if name.endswith(("out.weight", "down.weight")):
                nn.init.zeros_(p)  # every block starts as the identity
            elif p.dim() == 2:
                embedding = "token" in name or "position" in name
                nn.init.normal_(p, std=0.02 if embedding else p.shape[1] ** -0.5)

    def embed(self, images, ids, modality, image_index=None, validate=True):
        """The decoder's input: token embeddings, with image tokens in the placeholders' stead.

        Takes the arguments of `forward` of these names; returns (B, T, D). Raises ValueError for wrong shapes and
        dtypes, a row beyond the context, and (validate) for numbers out of range and a wrong number of placeholders.
        """
        config, N, flat = self.config, 0 if images is None else len(images), None
        B, T = ids.shape
        if ids.shape != modality.shape:
            raise ValueError(f"ids {tuple(ids.shape)} and modality {tuple(modality.shape)} differ in shape")
        if T > config.context:
            raise ValueError(f"a row has {T} positions, {T - config.context} more than the context of {config.context}")
        for name, given, n in (("ids", ids, config.vocab_size), ("image_index", image_index, N)):
            if given is not None and given.dtype != torch.int64:
                raise ValueError(f"{name} must be int64, but is {given.dtype}")
            if validate and given is not None and given.numel() and not 0 <= given.min() <= given.max() < n:
                raise ValueError(f"{name} must be from 0 to {n - 1}, but is from {given.min()} to {given.max()}")
        x = self.token(ids)
        if N:
            image = self.projector(self.vit(images))  # (N, n, D)
            flat = (image if image_index is None else image[image_index]).flatten(0, -2)
        placeholder, given = modality > TEXT, 0 if flat is None else len(flat)
        if validate and (wanted := int(placeholder.sum())) != given:
            raise ValueError(f"{wanted} image placeholders in the batch, but {given} image tokens "
                             f"({config.image_tokens} a picture)")
        if given:
            nth = placeholder.flatten().cumsum(0).view(B, T) - 1  # the how-many-eth image token stands here
            x = torch.where(placeholder[..., None], F.embedding(nth.clamp(0, given - 1), flat), x)
        return x + self.position(positions(modality))

    def forward(self, images, ids, modality, generated, labels=None, kind="causal", image_index=None, validate=True):
        """Logits, and with labels the loss.

        images:      (N, image_size, image_size, 3) uint8, or None where no row has a picture.
        ids:         (B, T) int64 token ids, `<image>` placeholders where image tokens go.
        modality:    (B, T) integers, generated: (B, T) bool, kind: see `mma.attention_mask`.
        labels:      (B, T) int64 or None: the id at each position that must be predicted, else IGNORE.
                     Position t is predicted from the positions before it: the shift is made here.
        image_index: (M,) int64 or None: which of the N pictures stands at the m-th placeholder run, in
                     row order; several questions about one picture then share one pass through the ViT.
        validate:    see `mma.attention_mask`.
        Returns (logits, loss): without labels (B, T, V) and None; with labels the logits that the loss was
        computed from, (number of labels, V) on a CPU and (B, T - 1, V) elsewhere, and the mean cross-entropy.
        Raises ValueError for what `embed` and the mask refuse and labels unlike ids, IndexError for labels out of range.
        """
        if self.flex:
            B, T = ids.shape
            mask = create_block_mask(mask_mod(modality, generated, kind, validate), B, None, T, T, device=ids.device)
        else:
            mask = attention_mask(modality, generated, kind, validate)
        x = self.embed(images, ids, modality, image_index, validate)
        for block in self.blocks:
            x = block(x, mask)
        if labels is None:
            return self.logits(x), None
        if labels.shape != ids.shape or labels.dtype != ids.dtype:
            raise ValueError(f"labels must be {tuple(ids.shape)} int64, but are {tuple(labels.shape)} {labels.dtype}")
        x, labels = x[:, :-1], labels[:, 1:]
        if x.device.type == "cpu":  # few positions need logits; a GPU's host would have to wait for their number
            asked = labels != IGNORE
            x, labels = x[asked], labels[asked]
        logits = self.logits(x)
        return logits, F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORE)

    def logits(self, x):
        """x: (..., D) -> (..., V)."""
        return F.linear(self.norm(x), self.token.weight)

    @torch.inference_mode()
    def generate(self, images, ids, modality, max_new_tokens, end, kind="causal", image_index=None,
                 temperature=0.0, top_k=None, generator=None):
        """Continue prompts of different lengths; stops when every row has produced `end`.

        images, ids, modality, kind, image_index: as in `forward`; shorter rows are padded on the left.
        max_new_tokens, end: most tokens to add to a row, and the id that ends it.
        temperature: 0 takes the likeliest token; above, samples, from the `top_k` likeliest if given.
        Raises ValueError for padding on the right, for more positions than the context, for numbers below
        their least (max_new_tokens 1, temperature 0, top_k 1), and for what `embed` and the mask refuse.
        Returns (B, <= max_new_tokens) int64; after a row's `end` only `end` follows.

        The whole prompt, pictures and question together, goes through once under the mask of `kind`; then
        each new token sees the whole cache. A generated token is seen by later positions only, so nothing
        in the cache changes when it comes. For the same reason a conversation is trained as several
        examples, each with the turns before it as prompt: if one example held two questions, image tokens
        would see question two while answer one is learned, and at generation they could not.
        """
        B, T = ids.shape
        if max_new_tokens < 1 or not temperature >= 0 or (top_k is not None and top_k < 1):
            raise ValueError(f"generate: max_new_tokens {max_new_tokens}, temperature {temperature}, top_k {top_k}: "
                             "they must be at least 1, 0 and 1")
        mask = attention_mask(modality, torch.zeros_like(ids, dtype=torch.bool), kind)
        if T < 1 or (modality[:, -1] == PAD).any():
            raise ValueError("generate: the last position of a prompt is PAD, or none; pad prompts on the left")
        too_many = T + max_new_tokens - self.config.context
        if too_many > 0:
            raise ValueError(f"generate: {T} prompt positions and {max_new_tokens} new tokens are {too_many} more "
                             f"than the context of {self.config.context}")
        caches = [KVCache(T + max_new_tokens) for _ in self.blocks]
        x = self.embed(images, ids, modality, image_index)
        real = modality != PAD
        # Without padding the new token sees everything, and no mask is the fastest mask.
        seen = None if real.all() else F.pad(real, (0, max_new_tokens), value=True)[:, None, None]  # (B, 1, 1, S)
        position = real.sum(1)  # (B,) of the next token
        ended = torch.zeros(B, dtype=torch.bool, device=ids.device)
        new = []
        for step in range(max_new_tokens):
            for block, cache in zip(self.blocks, caches):
                x = block(x, mask, cache)
            token = choose(self.logits(x[:, -1]), temperature, top_k, generator).masked_fill(ended, end)
            new.append(token)
            ended |= token == end
            if ended.all():
                break
            x = (self.token(token) + self.position(position + step))[:, None]
            mask = None if seen is None else seen[..., :T + step + 1]
        return torch.stack(new, 1)


class KVCache:
    """Keys and values of one layer, kept so that each new token is computed once."""

    def __init__(self, size):
        self.size, self.length, self.k, self.v = size, 0, None, None

    def append(self, k, v):
        """k, v: (B, H, T, D/H) of the new positions -> those of all positions so far."""
        if self.k is None:
            B, H, _, d = k.shape
            self.k, self.v = k.new_empty(B, H, self.size, d), k.new_empty(B, H, self.size, d)
        start, self.length = self.length, self.length + k.shape[2]
        for kept, new in ((self.k, k), (self.v, v)):
            kept.narrow(2, start, new.shape[2]).copy_(new)
        return self.k.narrow(2, 0, self.length), self.v.narrow(2, 0, self.length)


def positions(modality):
    """(B, T) modality -> (B, T) int64 positions counted over real tokens: padding changes nothing."""
    return ((modality != PAD).cumsum(1) - 1).clamp(min=0)


def choose(logits, temperature, top_k, generator):
    """logits: (B, V) -> the next token of each row, (B,) int64."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if top_k is not None:
        least = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


def make_optimizers(model, muon_lr, adam_lr):
    """Muon (Jordan et al. 2024) for the matrices between hidden layers, AdamW for embeddings, norms and biases.

    The patch embedding and the projector count as such matrices: they mix features, they look nothing up.
    Parameters that are frozen get none. Each group keeps its learning rate as "peak_lr" for a schedule.
    Returns a list of optimizers that share no parameter.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    inside = {name: p for name, p in trained.items() if p.dim() == 2 and ("blocks." in name or name in MIXING)}
    rest = [p for name, p in trained.items() if name not in inside]
    matrices = list(inside.values())
    halves = matrices[::2], matrices[1::2]  # two Muons, which the Trainer's threads run side by side
    optimizers = [torch.optim.Muon(half, lr=muon_lr, weight_decay=0.0) for half in halves]
    optimizers.append(torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers
