"""A small multimodal LLM: a ViT, a linear projector and a GPT decoder.

Read `mma.py` before, `data.py` after. The decoder has no idea of images: it is given a sequence of
vectors, some from the picture and some from the token embedding, and a mask of who may see whom.

Shapes: B rows, T positions, D width, H heads, N pictures, n image tokens per picture (one per
patch), S positions in the KV cache, V vocabulary. With the default sizes a picture of 64 x 64
pixels becomes n = 16 image tokens of D = 128 numbers; a question and its answer are T = 28 tokens.
`python model.py` walks a question through a trained model and prints the shape of each stage.
"""
from dataclasses import dataclass, replace

import torch
import torch.nn as nn
import torch.nn.functional as F

from mma import IMAGE, PAD, TEXT, attention_mask

PATCH = 16  # pixels a side of a patch


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
        """n, the decoder tokens that one picture becomes: one per patch."""
        return (self.image_size // PATCH) ** 2


def linear(inputs, outputs, bias=False, scale=1.0):
    """nn.Linear whose outputs start about as large as its inputs, times `scale`."""
    layer = nn.Linear(inputs, outputs, bias)
    nn.init.normal_(layer.weight, std=scale * inputs ** -0.5)
    return layer


class Attention(nn.Module):
    """Multi-head self-attention; normalized queries and keys keep the logits bounded."""

    def __init__(self, config, scale=1.0):
        super().__init__()
        D = config.width
        self.heads = config.heads
        self.qkv = linear(D, 3 * D, scale=scale)
        self.out = linear(D, D, scale=0)  # as `down` in Block: a block starts as the identity

    def queries_keys_values(self, x):
        """x: (B, T, D) -> queries, keys and values, (B, H, T, D/H) each."""
        q, k, v = self.qkv(x).unflatten(2, (3 * self.heads, -1)).transpose(1, 2).chunk(3, 1)
        size = q.shape[-1:]
        return F.layer_norm(q, size), F.layer_norm(k, size), v

    def weights(self, q, k, mask=None):
        """How strongly each position looks at each other: (B, H, T, S), a row adds up to 1."""
        # Not F.scaled_dot_product_attention, with which a training step takes longer on a CPU.
        scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5  # (B, H, T, S)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return scores.softmax(-1)

    def forward(self, x, mask=None, cache=None):
        """x: (B, T, D) -> (B, T, D); mask: (B, 1, T, S) bool; cache: a list of [k, v] so far."""
        q, k, v = self.queries_keys_values(x)
        if cache:  # keys and values of the positions before
            k = torch.cat([cache[0], k], dim=2)
            v = torch.cat([cache[1], v], dim=2)
        if cache is not None:
            cache[:] = k, v  # (B, H, S, D/H) each
        y = self.weights(q, k, mask) @ v  # (B, H, T, D/H)
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A pre-norm transformer block; ViT and decoder differ in the mask alone.

    scale: of the first weights. The optimizer's steps count twice as much for half as large ones.
    """

    def __init__(self, config, scale=1.0):
        super().__init__()
        D = config.width
        self.norm1 = nn.LayerNorm(D, bias=False)
        self.attention = Attention(config, scale)
        self.norm2 = nn.LayerNorm(D, bias=False)
        self.up = linear(D, 4 * D, scale=scale)
        self.down = linear(4 * D, D, scale=0)

    def forward(self, x, mask=None, cache=None):
        x = x + self.attention(self.norm1(x), mask, cache)
        hidden = F.gelu(self.up(self.norm2(x)))  # (B, T, 4 D)
        return x + self.down(hidden)


def convolve(x, layer):
    """Convolve with 8 x 8 pixels and stride 4: (N, C, h, w) -> (N, out_features, h / 4, w / 4).

    Its weights lie in an nn.Linear, because the optimizer Muon takes matrices alone.
    """
    kernel = layer.weight.unflatten(1, (-1, 8, 8))
    return F.conv2d(x, kernel, layer.bias, stride=4, padding=2)


class ViT(nn.Module):
    """Vision transformer: pictures to patch features. Every patch sees every patch: no mask."""

    def __init__(self, config):
        super().__init__()
        D = config.width
        C = D // 4  # channels between the two convolutions
        self.image_shape = (config.image_size, config.image_size, 3)
        # As in "Early Convolutions Help Transformers See Better" (2106.14881).
        self.convolution1 = linear(3 * 64, C, bias=True)
        self.convolution2 = linear(C * 64, D, bias=True)
        self.position = nn.Parameter(0.02 * torch.randn(config.image_tokens, D))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.vit_layers))
        self.norm = nn.LayerNorm(D, bias=False)

    def forward(self, images):
        """images: (N, image_size, image_size, 3) uint8 -> (N, n, D)."""
        if images.shape[1:] != self.image_shape or images.dtype != torch.uint8:
            raise ValueError(f"each of the images must be uint8 of shape {self.image_shape}, but "
                             f"they are {images.dtype} of shape {tuple(images.shape)}")
        x = images.permute(0, 3, 1, 2).to(self.position.dtype) / 127.5 - 1
        x = convolve(x, self.convolution1).relu()  # (N, C, image_size / 4, image_size / 4)
        x = convolve(x, self.convolution2).flatten(2).transpose(1, 2)  # (N, n, D)
        x = x + self.position
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
        self.projector = linear(D, D, bias=True)  # patch features to image tokens
        self.token = nn.Embedding(config.vocab_size, D)  # tied: also the output layer
        self.position = nn.Embedding(config.context, D)
        self.new_decoder(config.layers)
        self.norm = nn.LayerNorm(D, bias=False)
        for embedding in (self.token, self.position):
            nn.init.normal_(embedding.weight, std=0.02)

    def new_decoder(self, layers, scale=1.0):
        """Blocks that have learned nothing yet in place of those of the decoder."""
        self.config = replace(self.config, layers=layers)
        self.blocks = nn.ModuleList(Block(self.config, scale) for _ in range(layers))

    def mask(self, modality, generated):
        """The mask of all layers, (B, 1, T, T) bool. Override it to try another mask."""
        return attention_mask(modality, generated, self.attention)

    def positions(self, modality):
        """(B, T) int64 positions, counted over real tokens: padding changes nothing."""
        return ((modality != PAD).cumsum(1) - 1).clamp(min=0)

    def embed(self, images, ids, modality, image_index=None):
        """(B, T, D): token embeddings, and image tokens at IMAGE. Override it to add a modality."""
        x = self.token(ids)
        if images is None:
            if (modality == IMAGE).any():
                raise ValueError("there are places for image tokens, but images is None")
            return x
        image_tokens = self.projector(self.vit(images))  # (N, n, D)
        if image_index is not None:
            image_tokens = image_tokens[image_index]  # (M, n, D)
        x[modality == IMAGE] = image_tokens.flatten(0, -2).to(x.dtype)
        return x

    def decode(self, x, mask, caches=None):
        """Through all blocks: (B, T, D) -> (B, T, D). caches: a list per block, for `generate`."""
        for i, block in enumerate(self.blocks):
            x = block(x, mask, None if caches is None else caches[i])
        return x

    def head(self, x):
        """The last norm, and the logit of each token to be the next: (..., D) -> (..., V)."""
        return F.linear(self.norm(x), self.token.weight)

    def hidden(self, images, ids, modality, generated, image_index=None):
        """What the decoder makes of a batch, (B, T, D). Arguments: see `forward`."""
        x = self.embed(images, ids, modality, image_index)
        x = x + self.position(self.positions(modality))
        return self.decode(x, self.mask(modality, generated))

    def forward(self, images, ids, modality, generated, image_index=None):
        """The logits of the next token at each position, (B, T, V).

        images:      (N, image_size, image_size, 3) uint8, or None where no row has a picture.
        ids:         (B, T) int64 token ids, anything where image tokens go.
        modality:    (B, T) integers, generated: (B, T) bool, see `mma.attention_mask`.
        image_index: int64, which of the N pictures stands at each place for a picture, counted row
                     by row: (B,), or (B, 2) for two pictures in each prompt. Questions about one
                     picture share one pass through the ViT. None: the pictures in their order.
        """
        return self.head(self.hidden(images, ids, modality, generated, image_index))

    def loss(self, images, ids, modality, generated, image_index=None):
        """Mean cross-entropy of the generated tokens, a scalar. Arguments: see `forward`."""
        x = self.hidden(images, ids, modality, generated, image_index)
        targets = generated[:, 1:]  # position t is predicted at t - 1
        logits = self.head(x[:, :-1][targets])  # (number of generated tokens, V)
        return F.cross_entropy(logits.float(), ids[:, 1:][targets])

    @torch.inference_mode()
    def generate(self, images, ids, modality, max_new_tokens, end, image_index=None,
                 generated=None):
        """Continue prompts with the likeliest token, until each row has produced `end`.

        images, ids, modality, image_index: as in `forward`; shorter rows are padded on the left.
        generated: (B, T) bool, True for answers of earlier turns in the prompt; default: none.
        Returns (B, <= max_new_tokens) int64; after a row's `end` only `end` follows.
        Raises ValueError if a prompt is padded on the right or longer than the context.
        No position ever sees a later generated token, so what is in the cache stays as it is.
        """
        B, T = ids.shape
        if (modality[:, -1] == PAD).any():
            raise ValueError("a prompt ends in PAD: pad prompts on the left")
        if T > self.config.context:
            raise ValueError(f"a prompt of {T} tokens, but the context is {self.config.context}")
        if generated is None:
            generated = torch.zeros_like(ids, dtype=torch.bool)
        modality_after = F.pad(modality, (0, max_new_tokens), value=TEXT)  # (B, S)
        generated_after = F.pad(generated, (0, max_new_tokens), value=True)  # (B, S)
        mask = self.mask(modality_after, generated_after)  # (B, 1, S, S)
        # An answer that never ends may run past the context: there the last position is repeated.
        positions = self.positions(modality_after).clamp(max=self.config.context - 1)
        caches = [[] for _ in self.blocks]
        x = self.embed(images, ids, modality, image_index)  # (B, T, D)
        tokens = []
        ended = torch.zeros(B, dtype=torch.bool, device=ids.device)
        start = 0
        for stop in range(T, T + max_new_tokens):  # first the prompt, then token by token
            x = x + self.position(positions[:, start:stop])
            x = self.decode(x, mask[..., start:stop, :stop], caches)
            token = self.head(x[:, -1]).argmax(-1).masked_fill(ended, end)  # (B,)
            tokens.append(token)
            ended |= token == end
            if ended.all():
                break
            x = self.token(token)[:, None]  # (B, 1, D)
            start = stop
        return torch.stack(tokens, 1)


STAGES = {  # module -> what it does, in the order in which they are called
    "token": "ids become vectors; those at image tokens do not count",
    "vit.blocks.0": "ViT, block 1: each patch looks at all patches",
    "vit": "all of the ViT: a picture has become patch features",
    "projector": "patch features become image tokens and go into the row",
    "position": "where a token stands is added to it",
    "blocks.0.attention": "decoder, block 1: image tokens look at the question",
    "blocks.0": "and each token is worked out on its own",
    "blocks.3": "the same three times more: the last block",
    "norm": "ready to predict: at each position the next token",
}


def main():
    """Walk a question through the model of results/mma.pt, and print the shape of each stage."""
    from data import Dataset, make_world  # of files that are read later
    from train import load
    model, tokenizer, _ = load("results/mma.pt")
    part = make_world("test", 1)
    dataset = Dataset(part.questions, part.images, tokenizer, model.config)
    batch = dataset.batch([0], prompts_only=True)
    print(f"{part.questions[0].prompt}  (right: {part.questions[0].answer})\n")

    def show(name, x, y, meaning):
        shapes = f"{str(tuple(x.shape)):17} -> {str(tuple(y.shape)):13}"
        print(f"{name:19} {shapes} {meaning}")

    for name, meaning in STAGES.items():
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, y, name=name: show(name, inputs[0], y, STAGES[name]))
    logits = model(**batch)[0, -1]  # (V,)
    text = tokenizer.decode([logits.argmax()])
    print(f"\nAfter the last token the largest of {len(logits)} logits is that of {text!r}.")


if __name__ == "__main__":
    main()
