"""Modality-mutual attention (MMA): who may attend to whom in a multimodal decoder.

A decoder-only multimodal LLM reads the image tokens first and the question after them. Under the
causal mask the image tokens can never see the question, so the picture is read in the same way
whatever is asked. MMA ("Seeing is Understanding: Unlocking Causal Attention into Modality-Mutual
Attention for Multimodal LLMs", arXiv 2503.02597) opens exactly that part of the mask: image tokens
also attend to the question. It adds no parameter; it is one boolean matrix.

This file needs torch alone: copy it into your own model. Shapes: B rows of a batch, T positions.
"""
import torch

PAD, TEXT, IMAGE = -1, 0, 1  # further modalities (audio, depth, ...) take the ids 2, 3, ...
KINDS = ("causal", "image", "prefix", "mma")


def may_attend(q_pos, k_pos, q_modality, k_modality, q_turn, k_turn, q_generated, attention):
    """Whether the token at q may look at the token at k. Broadcasts over any shapes; returns bool.

    The one place where the rule is written; an attention of your own is one more branch here, and a
    name in KINDS. Under each of them a token sees all that is not later than itself. Some see later
    tokens, too, but only in their turn: none from the next generated token on.

    causal: none.
    image:  the tokens of one non-text modality see one another.
    prefix: all tokens of the prompt (what is not generated) see one another.
    mma:    a non-text token sees every token of a different modality. Text stays causal, and so do
            image tokens among themselves.
    """
    if attention == "causal":
        opened = torch.zeros_like(q_generated)
    elif attention == "image":
        opened = (q_modality > TEXT) & (k_modality == q_modality)
    elif attention == "prefix":
        opened = ~q_generated
    elif attention == "mma":
        opened = (q_modality > TEXT) & (k_modality != q_modality)
    else:
        raise ValueError(f"unknown attention {attention!r}: choose one of {', '.join(KINDS)}")
    allowed = (k_pos <= q_pos) | (opened & (q_turn == k_turn))
    real = (q_modality != PAD) & (k_modality != PAD)
    # A row without a single True would be 0/0 in the softmax: padding looks at itself.
    return (real & allowed) | ((q_modality == PAD) & (q_pos == k_pos))


def attention_mask(modality, generated, attention="mma"):
    """The mask of a whole batch, as `F.scaled_dot_product_attention` takes it.

    modality:  (B, T) signed integers: PAD, TEXT, IMAGE or any id above, for each position.
    generated: (B, T) bool: True where the model must produce the token (the answer and its end).
    attention: one of KINDS.
    Returns (B, 1, T, T) bool, True = may attend; dimension 1 stands for all heads.
    Raises ValueError if this does not hold; that generated tokens are text is checked on CPUs only.

    >>> modality = torch.tensor([[IMAGE, IMAGE, TEXT, TEXT]])  # two image tokens, question, answer
    >>> generated = torch.tensor([[False, False, False, True]])
    >>> attention_mask(modality, generated, "mma")[0, 0].int().tolist()
    [[1, 0, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    """
    check(modality, generated)
    # Each generated token begins a turn, and no rule opens anything beyond a turn: no token sees a
    # generated token that comes after it, through any number of layers.
    # In a conversation (picture, question 1, answer 1, question 2, answer 2) the image sees only
    # question 1. To show it question 2, make that an example with the turns before it as prompt.
    turn = generated.cumsum(1)
    pos = torch.arange(modality.shape[1], device=modality.device)
    q, k = pos[:, None], pos[None]  # modality[:, q] is (B, T, 1), modality[:, k] is (B, 1, T)
    mask = may_attend(q, k, modality[:, q], modality[:, k], turn[:, q], turn[:, k],
                      generated[:, q], attention)
    return mask[:, None]


def mask_mod(modality, generated, attention="mma"):
    """For FlexAttention: `create_block_mask(mask_mod(modality, generated), B, None, T, T)`."""
    check(modality, generated)
    turn = generated.cumsum(1)

    def mod(b, h, q, k):
        return may_attend(q, k, modality[b, q], modality[b, k], turn[b, q], turn[b, k],
                          generated[b, q], attention)

    return mod


def check(modality, generated):
    """Raise ValueError unless the arguments are what `attention_mask` says."""
    if modality.dim() != 2 or modality.shape != generated.shape:
        raise ValueError(f"both must be (B, T), but are {modality.shape} and {generated.shape}")
    if modality.is_floating_point() or not modality.is_signed():
        raise ValueError(f"modality must hold signed integers, but its dtype is {modality.dtype}")
    if generated.dtype != torch.bool:
        raise ValueError(f"generated must be bool, but its dtype is {generated.dtype}")
    if modality.is_cpu and (generated & (modality != TEXT)).any():
        raise ValueError("a position is generated, but not TEXT: only text is generated")
