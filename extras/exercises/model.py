"""Course 2, a weekend: rebuild the model until it sees. Eight gaps to fill in, each marked `...`.

    python -m pytest extras/exercises/test_model.py -x    names the first number that is wrong
    python -m extras.exercises.hints model 3              prints a hint for exercise 3

Your functions get the weights of the trained model, results/mma.pt, as a dict of name -> tensor,
and what that model computes on its way to an answer. They must compute the same. Shapes: B rows, T
positions, D = 128 numbers per token, N pictures, n = 16 image tokens per picture, V known tokens.

    vit.convolution1.weight (32, 3 * 64), .bias    vit.convolution2.weight (D, 32 * 64), .bias
    vit.position (n, D)    vit.blocks.0. to vit.blocks.2.    vit.norm.weight (D)
    projector.weight (D, D), .bias    token.weight (V, D)    position.weight (256, D)
    blocks.0. to blocks.3.    norm.weight (D)

Each block has attention.qkv.weight (3 D, D), attention.out.weight (D, D), norm1.weight (D),
norm2.weight (D), up.weight (4 D, D), down.weight (D, 4 D). Of torch.nn.functional you need
F.linear(x, weight, bias), F.layer_norm(x, (D,), weight), F.gelu, F.conv2d, F.cross_entropy, F.pad.
"""
import torch
import torch.nn.functional as F

PAD, TEXT, IMAGE = -1, 0, 1
HEADS, D = 4, 128


def part(w, prefix):
    """The weights whose names start with `prefix`, under the rest of their names. This is given."""
    return {name.removeprefix(prefix): x for name, x in w.items() if name.startswith(prefix)}


def attention(w, x, mask=None, cache=None):
    """1. Self-attention: (B, T, D) -> (B, T, D). w: "qkv.weight" and "out.weight".

    The first D outputs of qkv are queries, then come D of keys and D of values; of each D the first
    32 belong to head 1, and so on. Queries and keys pass F.layer_norm over these 32, without
    weights. Scores are query @ key / sqrt(32), -inf where the mask, (B, 1, T, T) bool, is False.
    Their softmax weights the values; then come "out.weight" and, in exercise 8, `cache`.
    """
    ...


def block(w, x, mask=None, cache=None):
    """2. A block: (B, T, D) -> (B, T, D). w: what one block has, "norm1.weight" and so on.

    x plus attention of norm1 of x; and then x plus down of gelu of up of norm2 of x.
    """
    ...


def vit(w, images):
    """3. Pictures to patches: (N, 64, 64, 3) uint8 -> (N, n, D). w: part(w, "vit.") of all weights.

    Bytes 0 to 255 become -1 to 1. Two convolutions of 8 x 8 pixels, stride 4, padding 2, and a ReLU
    between them, make 4 x 4 places: row by row, the n patches. Their weights are kept as matrices:
    make (outputs, inputs, 8, 8) of them. Add "position"; then three blocks, no mask, and the norm.
    """
    ...


def embed(w, images, ids, modality):
    """4. The row that the decoder reads: (B, T, D). w: all weights. ids, modality: (B, T).

    Each token is the row of token.weight at its id. But where modality is IMAGE there are, picture
    after picture, the n image tokens that `vit` and the projector make of it: none, one or two in a
    row. To each token a row of position.weight is added: row 0 to the first that is not PAD, row 1
    to the next, and so on. PAD is at the left only, and gets row 0, too.
    """
    ...


def logits(w, images, ids, modality, mask):
    """5. `embed`, four blocks, norm, the product with each row of token.weight: (B, T, V)."""
    ...


def loss(w, images, ids, modality, generated, mask):
    """6. Mean cross-entropy of the generated tokens alone; t - 1 predicts token t: a scalar."""
    ...


def generate(w, images, ids, modality, mask, steps):
    """7. Answer prompts, `steps` times with the likeliest token: (B, steps) int64.

    The whole row is computed anew for each token, a TEXT. mask: (B, 1, T + steps, T + steps).
    """
    ...


def generate_fast(w, images, ids, modality, mask, steps):
    """8. As `generate`, with a KV cache: the prompt once, and then each new token alone.

    `attention` gets one more rule, and `block` passes it on: `cache` is None or a list, empty at
    first. Keys and values in it come before the new ones; afterwards it holds [keys, values] of all
    S positions so far, (B, heads, S, 32) each. Each block has its own list; a step, some of `mask`.
    """
    ...
