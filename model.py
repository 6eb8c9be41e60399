"""A small multimodal LLM: tokenizer, ViT, linear projector, GPT decoder.

Read `mma.py` before, `data.py` after. The decoder has no idea of images: it is given a sequence of
vectors, some from the picture and some from the token embedding, and a mask of who may see whom.

Shapes: B rows, T positions, D width, H heads, N pictures, n image tokens a picture (one a patch),
S positions in the KV cache, V vocabulary.
"""
import re
from collections import Counter
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from mma import IMAGE, PAD, TEXT, attention_mask

SPECIALS = ("<pad>", "<image>", "<user>", "<assistant>", "<eos>")
PAD_ID, IMAGE_ID, USER_ID, ASSISTANT_ID, EOS_ID = range(len(SPECIALS))
PATCH = 16  # pixels a side of a patch


class Tokenizer:
    """Ids for the specials, then the 256 bytes, then frequent words with the space before them.

    A word that has no id is spelled in UTF-8 bytes: nothing is ever unknown.
    """
    PIECE = re.compile(r" ?\w+(?:-\w+)*| ?[^\w\s]|.", re.DOTALL)  # each character is in some piece

    def __init__(self, words):
        self.words = words
        self.pieces = [b""] * len(SPECIALS)  # id -> what it prints
        self.pieces += [bytes([i]) for i in range(256)]
        self.id_of = {word: len(self.pieces) + i for i, word in enumerate(words)}
        self.pieces += [word.encode("utf-8", "replace") for word in words]

    @classmethod
    def build(cls, texts, max_words=8192):
        """The vocabulary of some strings: of the pieces that come twice the most frequent ones."""
        counts = Counter()
        for text in texts:
            counts.update(cls.PIECE.findall(text))
        twice = [piece for piece in counts if counts[piece] > 1]
        return cls(sorted(twice, key=lambda piece: (-counts[piece], piece))[:max_words])

    def encode(self, text):
        ids = []
        for piece in self.PIECE.findall(text):
            if piece in self.id_of:
                ids.append(self.id_of[piece])
            else:
                for byte in piece.encode("utf-8", "replace"):
                    ids.append(len(SPECIALS) + byte)
        return ids

    def decode(self, ids):
        """Ids -> text. Specials print as nothing."""
        return b"".join(self.pieces[i] for i in ids).decode("utf-8", "replace")


@dataclass(frozen=True)
class Config:
    """Everything that fixes the shape of the weights."""
    vocab_size: int
    context: int = 256  # longest row, image tokens included
    width: int = 128  # D, of the ViT and of the decoder alike
    heads: int = 4
    layers: int = 4  # of the decoder
    vit_layers: int = 3
    image_size: int = 64  # pixels a side

    @property
    def image_tokens(self):
        """n, the decoder tokens that one picture becomes: one a patch."""
        return (self.image_size // PATCH) ** 2


class Attention(nn.Module):
    """Multi-head self-attention; normalized queries and keys keep the logits bounded."""

    def __init__(self, config):
        super().__init__()
        D = config.width
        self.heads = config.heads
        self.qkv = nn.Linear(D, 3 * D, bias=False)
        self.out = nn.Linear(D, D, bias=False)

    def split(self, x):
        """x: (B, T, D) -> queries, keys and values, (B, H, T, D/H) each."""
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1))  # (B, T, 3, H, D/H)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        size = q.shape[-1:]
        return F.layer_norm(q, size), F.layer_norm(k, size), v

    def forward(self, x, mask=None, cache=None):
        """x: (B, T, D) -> (B, T, D); mask: (B, 1, T, S) bool; cache: a list of [k, v] so far."""
        q, k, v = self.split(x)
        if cache:  # keys and values of the positions before
            k = torch.cat([cache[0], k], dim=2)
            v = torch.cat([cache[1], v], dim=2)
        if cache is not None:
            cache[:] = k, v  # (B, H, S, D/H) each
        # Not F.scaled_dot_product_attention, with which a training step takes longer on a CPU.
        scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5  # (B, H, T, S)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        y = scores.softmax(-1) @ v  # (B, H, T, D/H)
        return self.out(y.transpose(1, 2).reshape(x.shape))


class Block(nn.Module):
    """A pre-norm transformer block; ViT and decoder differ in the mask alone."""

    def __init__(self, config):
        super().__init__()
        D = config.width
        self.norm1 = nn.LayerNorm(D, bias=False)
        self.attention = Attention(config)
        self.norm2 = nn.LayerNorm(D, bias=False)
        self.up = nn.Linear(D, 4 * D, bias=False)
        self.down = nn.Linear(4 * D, D, bias=False)

    def forward(self, x, mask=None, cache=None):
        x = x + self.attention(self.norm1(x), mask, cache)
        hidden = F.gelu(self.up(self.norm2(x)))  # (B, T, 4 D)
        return x + self.down(hidden)


class Windows(nn.Linear):
    """A convolution of 8 x 8 pixels with stride 4; its weight is a matrix, for Muon."""

    def forward(self, x):
        """x: (N, C, height, width) -> (N, out_features, height / 4, width / 4)."""
        weight = self.weight.unflatten(1, (-1, 8, 8))
        return F.conv2d(x, weight, self.bias, stride=4, padding=2)


class ViT(nn.Module):
    """Vision transformer: pictures to patch features. Every patch sees every patch: no mask."""

    def __init__(self, config):
        super().__init__()
        D = config.width
        C = D // 4  # between the two convolutions
        # As in "Early Convolutions Help Transformers See Better" (2106.14881).
        self.patch = nn.Sequential(
            Windows(64 * 3, C),
            nn.ReLU(),
            Windows(64 * C, D))
        self.position = nn.Parameter(torch.empty(config.image_tokens, D))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.vit_layers))
        self.norm = nn.LayerNorm(D, bias=False)

    def forward(self, images):
        """images: (N, image_size, image_size, 3) uint8 -> (N, n, D)."""
        x = images.permute(0, 3, 1, 2).to(self.position.dtype) / 127.5 - 1
        x = self.patch(x).flatten(2).transpose(1, 2) + self.position  # (N, n, D)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class MultimodalGPT(nn.Module):
    """ViT, projector and decoder. `attention`, one of mma.KINDS, may be changed at any time."""

    def __init__(self, config, attention="causal"):
        super().__init__()
        D = config.width
        self.config, self.attention = config, attention
        self.vit = ViT(config)
        self.projector = nn.Linear(D, D)  # patch features to image tokens
        self.token = nn.Embedding(config.vocab_size, D)  # tied: also the output layer
        self.position = nn.Embedding(config.context, D)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(D, bias=False)
        for name, p in self.named_parameters():
            if name.endswith(("out.weight", "down.weight")):
                nn.init.zeros_(p)  # every block starts as the identity
            elif "token" in name or "position" in name:
                nn.init.normal_(p, std=0.02)
            elif p.dim() == 2:
                nn.init.normal_(p, std=p.shape[1] ** -0.5)

    def mask(self, modality, generated, layer):
        """The mask of one layer, (B, 1, T, T) bool. Override it to try another mask."""
        return attention_mask(modality, generated, self.attention)

    def positions(self, modality):
        """(B, T) int64 positions, counted over real tokens: padding changes nothing."""
        return ((modality != PAD).cumsum(1) - 1).clamp(min=0)

    def embed(self, images, ids, modality, image_index=None):
        """(B, T, D): token embeddings, and image tokens at IMAGE. Override it to add a modality."""
        x = self.token(ids)
        if images is None:
            return x
        image_tokens = self.projector(self.vit(images))  # (N, n, D)
        if image_index is not None:
            image_tokens = image_tokens[image_index]  # (M, n, D)
        x[modality == IMAGE] = image_tokens.flatten(0, 1).to(x.dtype)
        return x

    def forward(self, images, ids, modality, generated, image_index=None, with_loss=False):
        """Logits, and if wanted the loss.

        images:      (N, image_size, image_size, 3) uint8, or None where no row has a picture.
        ids:         (B, T) int64 token ids, anything where image tokens go.
        modality:    (B, T) integers, generated: (B, T) bool, see `mma.attention_mask`.
        image_index: (M,) int64: which of the N pictures the m-th place for a picture shows, counted
                     row by row. Questions about one picture share one pass through the ViT.
        Returns (logits, loss): (B, T, V) and None, or with_loss the logits from which the generated
        tokens are predicted, (number of them, V), and their mean cross-entropy.
        """
        x = self.embed(images, ids, modality, image_index)  # (B, T, D)
        x = x + self.position(self.positions(modality))
        for layer, block in enumerate(self.blocks):
            x = block(x, self.mask(modality, generated, layer))
        if not with_loss:
            return self.logits(x), None
        wanted = generated[:, 1:]  # position t is predicted at t - 1
        logits = self.logits(x[:, :-1][wanted])  # only there: most positions need none
        return logits, F.cross_entropy(logits.float(), ids[:, 1:][wanted])

    def logits(self, x):
        """x: (..., D) -> (..., V)."""
        return F.linear(self.norm(x), self.token.weight)

    @torch.inference_mode()
    def generate(self, images, ids, modality, max_new_tokens, end, image_index=None,
                 generated=None):
        """Continue prompts with the likeliest token, until each row has produced `end`.

        images, ids, modality, image_index: as in `forward`; shorter rows are padded on the left.
        generated: (B, T) bool, True for answers of earlier turns in the prompt; default: none.
        Returns (B, <= max_new_tokens) int64; after a row's `end` only `end` follows.
        No position ever sees a later generated token, so what is in the cache stays as it is.
        """
        B, T = ids.shape
        if (modality[:, -1] == PAD).any():
            raise ValueError("a prompt ends in PAD: pad prompts on the left")
        if generated is None:
            generated = torch.zeros_like(ids, dtype=torch.bool)
        row_modality = F.pad(modality, (0, max_new_tokens), value=TEXT)  # (B, S)
        row_generated = F.pad(generated, (0, max_new_tokens), value=True)  # (B, S)
        masks = [self.mask(row_modality, row_generated, layer) for layer in range(len(self.blocks))]
        # Only a wrong answer runs past the context: then the last position is used again.
        positions = self.positions(row_modality).clamp(max=self.config.context - 1)
        caches = [[] for _ in self.blocks]
        x = self.embed(images, ids, modality, image_index)  # (B, T, D)
        tokens = []
        ended = torch.zeros(B, dtype=torch.bool, device=ids.device)
        start = 0
        for stop in range(T, T + max_new_tokens):  # first the prompt, then token by token
            x = x + self.position(positions[:, start:stop])
            for block, mask, cache in zip(self.blocks, masks, caches):
                x = block(x, mask[:, :, start:stop, :stop], cache)
            logits = self.logits(x[:, -1])  # (B, V)
            token = logits.argmax(-1).masked_fill(ended, end)  # (B,)
            tokens.append(token)
            ended |= token == end
            if ended.all():
                break
            x = self.token(token)[:, None]  # (B, 1, D)
            start = stop
        return torch.stack(tokens, 1)


def make_optimizers(model, lr):
    """Muon (Jordan et al. 2024) for all matrices that mix features, AdamW for everything else."""
    matrices, rest = [], []
    for name, p in model.named_parameters():
        embedding = "token" in name or "position" in name
        group = matrices if p.dim() == 2 and not embedding else rest
        group.append(p)
    return [
        torch.optim.Muon(matrices[::2], lr, weight_decay=0),  # two, to run side by side
        torch.optim.Muon(matrices[1::2], lr, weight_decay=0),
        torch.optim.AdamW(rest, 0.3 * lr, betas=(0.9, 0.95), weight_decay=0, fused=True),
    ]


def pick_device(name=None):
    """A torch.device: the named one, or the best there is."""
    device = name or torch.accelerator.current_accelerator(check_available=True) or "cpu"
    try:
        return torch.ones(1, device=device).device
    except (RuntimeError, AssertionError) as error:  # torch raises either, depending on the device
        raise SystemExit(f"--device {name}: not on this machine ({error!r:.100})")


def autocast(device):
    """bfloat16 where the hardware is faster in it: GPUs, and CPUs with AVX512-BF16."""
    fast = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


def save(path, content):
    """torch.save, but `path` is at every moment the whole old or the whole new file."""
    temporary = path.with_suffix(".tmp")
    torch.save(content, temporary)
    temporary.replace(path)


def answer(model, dataset, batch_size=256):
    """Let a model answer all prompts of a `data.Dataset`, greedily -> list of texts."""
    device = model.token.weight.device
    longest = max([8, *(len(wanted) for _, wanted in dataset.rows)])  # 8 show a wrong one
    texts = []
    for start in range(0, len(dataset.rows), batch_size):
        rows = range(start, len(dataset.rows))[:batch_size]
        batch = dataset.batch(rows, device, prompts_only=True)
        with autocast(device):
            new = model.generate(**batch, max_new_tokens=longest, end=EOS_ID)
        texts += [dataset.tokenizer.decode(row) for row in new.tolist()]
    return texts
