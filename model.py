"""A small multimodal LLM: tokenizer, ViT, linear projector, GPT decoder.

Read `mma.py` before, `data.py` after. The decoder has no idea of images: it is given a sequence of
vectors, some from the picture and some from the token embedding, and a mask of who may see whom.

Shapes: B rows, T positions, D width, H heads, N pictures, n image tokens a picture (one a patch),
S positions in the KV cache, V vocabulary.
"""
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F

from mma import IMAGE, PAD, TEXT, attention_mask

IGNORE = -100  # a label that asks for no prediction, as in F.cross_entropy
SPECIALS = ("<pad>", "<image>", "<user>", "<assistant>", "<eos>")
PAD_ID, IMAGE_ID, USER_ID, ASSISTANT_ID, EOS_ID = range(len(SPECIALS))


class Tokenizer:
    """One token for each frequent word, UTF-8 bytes for everything else: nothing is ever unknown.

    Ids: the specials, then the 256 bytes, then the words (a word carries the space before it). No
    text becomes a special: typed, "<eos>" is five ordinary characters.
    """
    PIECE = re.compile(r" ?\w+(?:-\w+)*| ?[^\w\s]|.", re.DOTALL)  # each character is in some piece

    def __init__(self, words):
        self.words = list(words)
        single_bytes = [bytes([i]) for i in range(256)]
        self.pieces = [b""] * len(SPECIALS) + single_bytes + [word.encode() for word in self.words]
        self.id_of = {word: len(SPECIALS) + 256 + i for i, word in enumerate(self.words)}

    @classmethod
    def build(cls, texts, max_words=8192):
        """The vocabulary of an iterable of strings: the most frequent pieces that come twice."""
        counts = Counter(piece for text in texts for piece in cls.PIECE.findall(text))
        ranked = sorted(counts, key=lambda piece: (-counts[piece], piece))
        return cls(piece for piece in ranked[:max_words] if counts[piece] > 1)

    def encode(self, text):
        """Any string -> list of ids."""
        ids = []
        for piece in self.PIECE.findall(text):
            if piece in self.id_of:
                ids.append(self.id_of[piece])
            else:
                ids += [len(SPECIALS) + byte for byte in piece.encode("utf-8", "replace")]
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
    patch_size: int = 16
    window: int = 32  # pixels a side that are seen to embed a patch; patch_size: a plain ViT

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} must be a multiple of patch_size "
                             f"{self.patch_size}")
        if self.window < self.patch_size or (self.window - self.patch_size) % 2:
            raise ValueError(f"window {self.window} must be patch_size {self.patch_size} plus an "
                             "even margin")
        if self.image_tokens >= self.context:
            raise ValueError(f"{self.image_tokens} image tokens leave no room for text in a "
                             f"context of {self.context}")

    @property
    def image_tokens(self):
        """n, the decoder tokens that one picture becomes: one a patch."""
        return (self.image_size // self.patch_size) ** 2


class Attention(nn.Module):
    """Multi-head self-attention; normalized queries and keys keep the logits bounded."""

    def __init__(self, config):
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def split(self, x):
        """x: (B, T, D) -> queries, keys and values, (B, H, T, D/H) each."""
        B, T, D = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.heads, D // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, D/H) each
        return F.layer_norm(q, q.shape[-1:]), F.layer_norm(k, k.shape[-1:]), v

    def forward(self, x, mask=None, cache=None):
        """x: (B, T, D) -> (B, T, D); mask: None or (B, 1, T, S) bool; cache: None or a list.

        The list keeps the keys and values of this layer: each token is computed once.
        """
        q, k, v = self.split(x)
        if q.is_cpu and q.dtype == torch.bfloat16:  # its backward pass is ten times slower there
            q, k, v = q.float(), k.float(), v.float()
        if cache is not None:
            if cache:  # keys and values of the positions before
                k, v = torch.cat([cache[0], k], dim=2), torch.cat([cache[1], v], dim=2)
            cache[:] = k, v  # (B, H, S, D/H)
        with torch.autocast("cpu", enabled=False):
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (B, H, T, D/H)
        return self.out(y.transpose(1, 2).reshape(x.shape))


class Block(nn.Module):
    """A pre-norm transformer block; ViT and decoder differ in the mask alone."""

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
    """Vision transformer: pictures to patch features. Every patch sees every patch: no mask."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        # A patch is seen with a margin: a small object then falls into one window as a whole,
        # wherever the grid of patches cuts it, and shapes are learned sooner.
        self.patch = nn.Linear(3 * config.window ** 2, config.width)
        self.position = nn.Parameter(torch.zeros(config.image_tokens, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.vit_layers))
        self.norm = nn.LayerNorm(config.width, bias=False)

    def forward(self, images):
        """images: (N, image_size, image_size, 3) uint8 -> (N, n, D)."""
        window, stride = self.config.window, self.config.patch_size
        x = images.permute(0, 3, 1, 2).to(self.patch.weight.dtype) / 127.5 - 1  # (N, 3, size, size)
        x = F.unfold(x, window, stride=stride, padding=(window - stride) // 2)
        x = self.patch(x.transpose(1, 2)) + self.position  # (N, n, D)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class MultimodalGPT(nn.Module):
    """ViT, projector and decoder.

    `attention` is the mask, one of mma.KINDS. It is no part of the weights: set it at any time.
    """

    def __init__(self, config, attention="causal"):
        super().__init__()
        self.config, self.attention = config, attention
        self.vit = ViT(config)
        self.projector = nn.Linear(config.width, config.width)  # patch features to image tokens
        self.token = nn.Embedding(config.vocab_size, config.width)  # tied: also the output layer
        self.position = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, bias=False)
        for name, p in self.named_parameters():
            if name.endswith(("out.weight", "down.weight")):
                nn.init.zeros_(p)  # every block starts as the identity
            elif p.dim() == 2:
                embedding = "token" in name or "position" in name
                nn.init.normal_(p, std=0.02 if embedding else p.shape[1] ** -0.5)

    def mask(self, modality, generated, layer):
        """The mask of one layer, (B, 1, T, T) bool. Override it to try another mask."""
        return attention_mask(modality, generated, self.attention)

    def positions(self, modality):
        """(B, T) int64 positions, counted over real tokens: padding changes nothing."""
        return ((modality != PAD).cumsum(1) - 1).clamp(min=0)

    def embed(self, images, ids, modality, image_index=None):
        """(B, T, D): token embeddings, and image tokens where the modality is IMAGE."""
        x = self.token(ids)
        if images is None:
            return x
        image_tokens = self.projector(self.vit(images))  # (N, n, D)
        if image_index is not None:
            image_tokens = image_tokens[image_index]  # (M, n, D)
        is_image = modality == IMAGE
        given = image_tokens.shape[:2].numel()
        if ids.is_cpu and (wanted := int(is_image.sum())) != given:
            raise ValueError(f"{wanted} positions for image tokens, but {given} image tokens")
        return x.masked_scatter(is_image[..., None], image_tokens.to(x.dtype))

    def forward(self, images, ids, modality, generated, labels=None, image_index=None):
        """Logits, and with labels the loss.

        images:      (N, image_size, image_size, 3) uint8, or None where no row has a picture.
        ids:         (B, T) int64 token ids, anything where image tokens go.
        modality:    (B, T) integers, generated: (B, T) bool, see `mma.attention_mask`.
        labels:      (B, T) int64 or None: the id where one must be predicted, else IGNORE.
                     Position t is predicted from the positions before it: the shift is made here.
        image_index: (M,) int64 or None: which of the N pictures is the m-th one in the batch, row
                     by row; questions about one picture then share one pass through the ViT.
        Returns (logits, loss): without labels (B, T, V) and None; with labels the logits that the
        loss was computed from, (number of labels, V), and their mean cross-entropy.
        Raises ValueError if pictures and positions for them do not match (on a CPU), or if a row is
        longer than the context; see `mma.attention_mask` for the rest.
        """
        if ids.shape[1] > self.config.context:
            raise ValueError(f"{ids.shape[1]} positions, but the context is {self.config.context}")
        x = self.embed(images, ids, modality, image_index) + self.position(self.positions(modality))
        for layer, block in enumerate(self.blocks):
            x = block(x, self.mask(modality, generated, layer))
        if labels is None:
            return self.logits(x), None
        x, labels = x[:, :-1], labels[:, 1:]
        asked = labels != IGNORE
        logits = self.logits(x[asked])  # only there: most positions need none
        return logits, F.cross_entropy(logits.float(), labels[asked])

    def logits(self, x):
        """x: (..., D) -> (..., V)."""
        return F.linear(self.norm(x), self.token.weight)

    @torch.inference_mode()
    def generate(self, images, ids, modality, max_new_tokens, end, image_index=None,
                 generated=None):
        """Continue prompts with the likeliest token, until each row has produced `end`.

        images, ids, modality, image_index: as in `forward`; shorter rows are padded on the left.
        max_new_tokens, end: most tokens to add to a row, and the id that ends it.
        generated: (B, T) bool, True for answers of earlier turns in the prompt; default: none.
        Returns (B, <= max_new_tokens) int64; after a row's `end` only `end` follows.
        Raises ValueError for padding on the right and for more positions than the context.

        The prompt, pictures and question together, goes through once; then each new token sees the
        cache. No position ever sees a later generated token, so nothing in the cache changes when
        one comes: the mask of the whole row can be made before the first is known.
        """
        B, T = ids.shape
        if T + max_new_tokens > self.config.context:
            raise ValueError(f"generate: {T} prompt positions and {max_new_tokens} new tokens, "
                             f"but the context is {self.config.context}")
        if (modality[:, -1] == PAD).any():
            raise ValueError("generate: a prompt ends in PAD; pad prompts on the left")
        if generated is None:
            generated = torch.zeros_like(ids, dtype=torch.bool)
        row_modality = F.pad(modality, (0, max_new_tokens), value=TEXT)  # (B, S)
        row_generated = F.pad(generated, (0, max_new_tokens), value=True)  # (B, S)
        masks = [self.mask(row_modality, row_generated, layer) for layer in range(len(self.blocks))]
        caches = [[] for _ in self.blocks]
        positions = self.positions(row_modality)
        x = self.embed(images, ids, modality, image_index)  # (B, T, D)
        start, stop = 0, T  # the positions that go through the decoder now
        tokens, ended = [], torch.zeros(B, dtype=torch.bool, device=ids.device)
        while True:
            x = x + self.position(positions[:, start:stop])
            for block, mask, cache in zip(self.blocks, masks, caches):
                x = block(x, mask[:, :, start:stop, :stop], cache)
            token = self.logits(x[:, -1]).argmax(-1).masked_fill(ended, end)  # (B,)
            tokens.append(token)
            ended |= token == end
            if ended.all() or len(tokens) == max_new_tokens:
                return torch.stack(tokens, 1)
            x = self.token(token)[:, None]  # (B, 1, D)
            start, stop = stop, stop + 1


def make_optimizers(model, muon_lr, adam_lr):
    """Muon (Jordan et al. 2024) for the matrices between hidden layers, AdamW for everything else.

    The patch embedding and the projector are such matrices: they mix features.
    """
    matrices, rest = [], []
    for name, p in model.named_parameters():
        if p.requires_grad:
            hidden = "blocks." in name or name in ("vit.patch.weight", "projector.weight")
            (matrices if hidden and p.dim() == 2 else rest).append(p)
    halves = matrices[::2], matrices[1::2]  # for two threads side by side
    muons = [torch.optim.Muon(half, lr=muon_lr, weight_decay=0.0) for half in halves]
    adam = torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    return [*muons, adam]


# Where it runs.

def pick_device(name=None):
    """A torch.device: the named one, or the best there is."""
    if name is None:
        mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    try:
        return torch.ones(1, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch raises either, depending on the device
        raise SystemExit(f"--device {name}: not on this machine ({str(error).splitlines()[0]})")


def threads(device):
    """A pool of two threads on a CPU, each with half of the cores; of one thread elsewhere.

    Two halves of a batch side by side are 1.6 times as fast as operations spread over all cores.
    """
    workers = 2 if device.type == "cpu" and not dist.is_initialized() else 1
    cores = max(1, torch.get_num_threads() // workers)
    return ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(cores,))


def autocast(device, wanted=True):
    """bfloat16 where the hardware is faster in it: GPUs, and CPUs with AMX or AVX512-BF16."""
    if device.type == "cpu":
        fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    else:
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted and fast)


def answer(model, dataset, max_new_tokens=8, batch_size=256):
    """Let a model answer all prompts of a `data.Dataset`, greedily -> list of texts."""
    device, indices = model.token.weight.device, range(len(dataset.rows))

    def answer_batch(start):
        batch = dataset.batch(indices[start:start + batch_size], prompts_only=True)
        images, ids, modality, image_index = (
            batch[name].to(device) for name in ("images", "ids", "modality", "image_index"))
        with autocast(device):
            most = min(max_new_tokens, model.config.context - ids.shape[1])
            new = model.generate(images, ids, modality, most, EOS_ID, image_index)
        return [dataset.tokenizer.decode(row) for row in new.tolist()]

    with threads(device) as pool:
        return sum(pool.map(answer_batch, indices[::batch_size]), [])
