"""Modality-mutual attention (MMA): who may attend to whom in a multimodal decoder.

Start reading here; then `model.py`, `scenes.py`, `data.py`, `train.py`, `eval_pope.py`.

A decoder-only multimodal LLM reads the image tokens first and the question after them. Under the
causal mask the image tokens can never see the question, so the picture is read in the same way
whatever is asked. MMA ("Seeing is Understanding: Unlocking Causal Attention into Modality-Mutual
Attention for Multimodal LLMs", arXiv 2503.02597) opens exactly that part of the mask: image tokens
also attend to the question. It adds no parameter; it is one boolean matrix.

This file needs torch alone and knows nothing of the rest of the project: copy it into your own model.
Shapes: B rows of a batch, T positions of a row. `python mma.py` prints the masks and draws `masks.png`.
"""
import torch

PAD, TEXT, IMAGE = -1, 0, 1  # any id >= 1 is a modality other than text; 2, 3, ... are free for audio, depth, ...
KINDS = ("causal", "image", "prefix", "mma")


def may_attend(q_pos, k_pos, q_modality, k_modality, q_generated, k_generated, kind):
    """Whether the token at q may look at the token at k. Broadcasts over any shapes; returns bool.

    The one place where the rule is written: `attention_mask` calls it on a whole (B, T, T) grid,
    `mask_mod` on single positions inside FlexAttention. With both tokens real (not PAD):

    causal: k is not later than q.
    image:  causal, and the tokens of one non-text modality see one another in both directions.
    prefix: causal, and all prompt tokens (not generated) see one another.
    mma:    causal, and a non-text token also sees every prompt token of a different modality.

    Text rows stay causal under `mma`, and so do image tokens among themselves. Nothing but the causal
    part ever reaches a generated token, so what must be predicted is never seen early.
    """
    causal = k_pos <= q_pos
    if kind == "causal":
        opened = causal
    elif kind == "image":
        opened = (q_modality > TEXT) & (k_modality == q_modality)
    elif kind == "prefix":
        opened = ~q_generated & ~k_generated
    elif kind == "mma":
        opened = (q_modality > TEXT) & (k_modality != q_modality) & ~k_generated
    else:
        raise ValueError(f"unknown kind of attention {kind!r}: choose one of {', '.join(KINDS)}")
    real = (q_modality != PAD) & (k_modality != PAD)
    # A row without a single True would be 0/0 in the softmax: padding looks at itself.
    return (real & (causal | opened)) | ((q_modality == PAD) & (q_pos == k_pos))


def attention_mask(modality, generated, kind="mma", validate=True):
    """The mask of a whole batch, as `F.scaled_dot_product_attention` takes it.

    modality:  (B, T) signed integers: PAD, TEXT, IMAGE or any id above, for each position.
    generated: (B, T) bool: True where the model must produce the token (the answer and its end token).
    kind:      one of KINDS.
    validate:  False skips the checks of the values (not of shapes and dtypes), for which the host would
               have to wait for a GPU; for loops whose batches are known to be right.
    Returns (B, 1, T, T) bool, True = may attend; dimension 1 stands for all heads. Hugging Face
    decoders take it as a 4-D attention mask with attn_implementation="sdpa"; eager attention adds its
    mask, so there pass torch.where(mask, 0.0, torch.finfo(dtype).min).
    Raises ValueError for wrong shapes or dtypes, an unknown kind, a generated position that is not text.

    >>> modality = torch.tensor([[IMAGE, IMAGE, TEXT, TEXT]])           # two image tokens, question, answer
    >>> generated = torch.tensor([[False, False, False, True]])
    >>> attention_mask(modality, generated, "mma")[0, 0].int().tolist()
    [[1, 0, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    """
    _check(modality, generated, kind, validate)
    pos = torch.arange(modality.shape[1], device=modality.device)
    return may_attend(
        pos[:, None], pos[None, :],
        modality[:, :, None], modality[:, None, :],
        generated[:, :, None], generated[:, None, :], kind,
    ).unsqueeze(1)  # (B, 1, T, T)


def mask_mod(modality, generated, kind="mma", validate=True):
    """The same rule for FlexAttention: `create_block_mask(mask_mod(...), B, None, T, T)`.

    Takes what `attention_mask` takes and raises what it raises. Returns a function of four index
    tensors (b, h, q_idx, kv_idx) -> bool.
    """
    _check(modality, generated, kind, validate)

    def mod(b, h, q_idx, kv_idx):
        """Indices of row, head, query and key -> bool, the same for every head."""
        return may_attend(q_idx, kv_idx, modality[b, q_idx], modality[b, kv_idx],
                          generated[b, q_idx], generated[b, kv_idx], kind)

    return mod


def _check(modality, generated, kind, validate):
    if kind not in KINDS:
        raise ValueError(f"unknown kind of attention {kind!r}: choose one of {', '.join(KINDS)}")
    for name, tensor in (("modality", modality), ("generated", generated)):
        if not isinstance(tensor, torch.Tensor) or tensor.dim() != 2:
            given = tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise ValueError(f"{name} must be a tensor of shape (B, T), but is {given}")
    if modality.shape != generated.shape:
        raise ValueError(f"modality {tuple(modality.shape)} and generated {tuple(generated.shape)} differ in shape")
    if modality.dtype not in (torch.int8, torch.int16, torch.int32, torch.int64):
        raise ValueError(f"modality must hold signed integers, but its dtype is {modality.dtype}")
    if generated.dtype != torch.bool:
        raise ValueError(f"generated must be bool, but its dtype is {generated.dtype}")
    if modality.device != generated.device:
        raise ValueError(f"modality is on {modality.device}, generated on {generated.device}: move one of them")
    if not validate:
        return
    if (modality < PAD).any():
        b, t = (modality < PAD).nonzero()[0].tolist()
        raise ValueError(f"modality[{b}, {t}] is {modality[b, t].item()}: the smallest id is PAD ({PAD})")
    wrong = generated & (modality != TEXT)
    if wrong.any():
        b, t = wrong.nonzero()[0].tolist()
        what = "PAD" if modality[b, t] == PAD else f"of modality {modality[b, t].item()}"
        raise ValueError(f"generated[{b}, {t}] is True, but that position is {what}: only text is generated")


# The rest draws the masks of one short example; leave it behind when you copy the file.

EXAMPLE = ("<user> img img img img is there a cat ? <assistant> yes <eos>").split()


def example():
    """The example of the README: names of its positions, modality (1, 13) and generated (1, 13)."""
    modality = torch.tensor([[IMAGE if name == "img" else TEXT for name in EXAMPLE]])
    generated = torch.zeros(modality.shape, dtype=torch.bool)
    generated[0, EXAMPLE.index("<assistant>") + 1:] = True
    return EXAMPLE, modality, generated


def to_text(names, masks, kinds=KINDS):
    """Masks (dict of kind -> (T, T) bool) side by side as lines of text, 80 columns for the example."""
    width = max(map(len, names)) + 1
    lines = [" " * width + "".join(f" {kind:<{len(names) + 2}}" for kind in kinds)]
    for q, name in enumerate(names):
        row = ""
        for kind in kinds:
            cells = ("█" if causal else "▒" if seen else "·"
                     for causal, seen in zip(masks["causal"][q].tolist(), masks[kind][q].tolist()))
            row += " " + "".join(cells) + "  "
        lines.append(f"{name:>{width - 1}} " + row)
    return "\n".join(lines + ["", "row: the token that looks    column: the token looked at, in the same order",
                              "█ seen under the causal mask too    ▒ opened by this kind    · hidden"])


def to_picture(names, masks, kinds=KINDS):
    """The masks of `to_text` as one labelled Pillow picture."""
    from PIL import Image, ImageDraw, ImageFont  # here, so that the mask itself needs torch alone

    cell, left, top, gap = 22, 118, 150, 34
    size = cell * len(names)
    font, small, big = (ImageFont.load_default(size=s) for s in (15, 16, 24))
    picture = Image.new("RGB", (left + len(kinds) * (size + gap), top + size + 62), "white")
    draw = ImageDraw.Draw(picture)
    seen_colour, opened_colour, hidden_colour = (70, 92, 130), (240, 140, 20), (235, 237, 240)
    image_colour, text_colour = (20, 120, 90), (40, 40, 40)

    def colour_of(name):
        """The colour of a position's label."""
        return image_colour if name == "img" else text_colour

    for q, name in enumerate(names):
        draw.text((left - 10, top + (q + 0.5) * cell), name, colour_of(name), font=font, anchor="rm")
    for i, kind in enumerate(kinds):
        x0 = left + i * (size + gap)
        draw.text((x0 + size / 2, 22), kind, text_colour, font=big, anchor="mm")
        for k, name in enumerate(names):
            label = Image.new("RGBA", (110, cell), (0, 0, 0, 0))
            ImageDraw.Draw(label).text((0, cell / 2), name, colour_of(name), font=font, anchor="lm")
            label = label.rotate(90, expand=True)
            picture.paste(label, (x0 + k * cell, top - 4 - label.height), label)
        for q in range(len(names)):
            for k in range(len(names)):
                colour = (seen_colour if masks["causal"][q, k] else
                          opened_colour if masks[kind][q, k] else hidden_colour)
                x, y = x0 + k * cell, top + q * cell
                draw.rectangle([x, y, x + cell - 2, y + cell - 2], fill=colour)
    x = left
    for colour, meaning in ((seen_colour, "seen under the causal mask too"),
                            (opened_colour, "opened by this kind of attention"), (hidden_colour, "hidden")):
        draw.rectangle([x, top + size + 25, x + 16, top + size + 41], fill=colour)
        draw.text((x + 26, top + size + 33), meaning, text_colour, font=small, anchor="lm")
        x += 60 + draw.textlength(meaning, small)
    draw.text((x, top + size + 33), "row: the token that looks; column: the token looked at",
              text_colour, font=small, anchor="lm")
    return picture


def main():
    """Print the four masks of the example, and draw them into masks.png."""
    names, modality, generated = example()
    masks = {kind: attention_mask(modality, generated, kind)[0, 0] for kind in KINDS}
    print(to_text(names, masks))
    try:
        to_picture(names, masks).save("masks.png", optimize=True)
    except OSError as error:
        raise SystemExit(f"mma.py: masks.png cannot be written here ({error.strerror})") from None
    print("\nwrote masks.png")


if __name__ == "__main__":
    main()
