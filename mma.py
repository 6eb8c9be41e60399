"""Modality-mutual attention (MMA): who may attend to whom in a multimodal decoder.

A decoder-only multimodal LLM reads the image tokens first and the question after them. Under the
causal mask the image tokens can never see the question, so the picture is read in the same way
whatever is asked. MMA ("Seeing is Understanding: Unlocking Causal Attention into Modality-Mutual
Attention for Multimodal LLMs", arXiv 2503.02597) opens exactly that part of the mask: image tokens
also attend to the question. It adds no parameter; it is one boolean matrix.

A row is the token that looks, a column the token looked at. #: seen under the causal mask, too.
o: opened by MMA.

          <user>  # . . . . . . . . . . . .
             img  # # . . . o o o o o o . .    Image tokens see the whole question,
             img  # # # . . o o o o o o . .    but of one another only what the causal
             img  # # # # . o o o o o o . .    mask shows them, and never the answer.
             img  # # # # # o o o o o o . .
              is  # # # # # # . . . . . . .
           there  # # # # # # # . . . . . .    Text stays causal.
               a  # # # # # # # # . . . . .
             cat  # # # # # # # # # . . . .
               ?  # # # # # # # # # # . . .
     <assistant>  # # # # # # # # # # # . .
             yes  # # # # # # # # # # # # .
           <eos>  # # # # # # # # # # # # #

This file needs torch alone: copy it into your own model. Shapes: B rows of a batch, T positions.
`python mma.py` draws the masks of all KINDS.
"""
import torch

PAD, TEXT, IMAGE = -1, 0, 1  # further modalities (audio, depth, ...) take the ids 2, 3, ...
KINDS = ("causal", "mma", "image", "future", "prefix")


def attention_mask(modality, generated, attention="mma"):
    """The mask of a batch, as `F.scaled_dot_product_attention` takes it.

    modality:  (B, T) signed integers: PAD, TEXT, IMAGE or any id above, for each position.
    generated: (B, T) bool: True where the model must produce the token (the answer and its end).
    attention: one of KINDS. Under each a token sees itself and all tokens before it, and
               causal: nothing else;
               image:  the tokens of a modality other than text also see each other;
               future: these tokens also see every later token of the prompt (arXiv 2505.18605);
               prefix: all tokens of the prompt also see each other;
               mma:    image tokens (sounds, ...) also see the tokens of every other modality.
    Returns (B, 1, T, T) bool, True = may attend; dimension 1 stands for all heads.
    Raises ValueError if the arguments are not as described (values are checked on CPUs only).

    >>> modality = torch.tensor([[IMAGE, IMAGE, TEXT, TEXT]])  # two image tokens, question, answer
    >>> generated = torch.tensor([[False, False, False, True]])
    >>> attention_mask(modality, generated, "mma")[0, 0].int().tolist()
    [[1, 0, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    """
    check(modality, generated)
    q, k = modality[:, :, None], modality[:, None, :]  # (B, T, 1) who looks, (B, 1, T) at whom
    T = modality.shape[1]
    causal = torch.ones(T, T, dtype=torch.bool, device=modality.device).tril()
    # A further kind of attention is one more branch here, and a name in KINDS.
    if attention == "causal":
        opened = torch.zeros_like(causal)
    elif attention == "image":
        opened = (q > TEXT) & (k == q)
    elif attention == "future":
        opened = q > TEXT
    elif attention == "prefix":
        opened = ~generated[:, :, None]
    elif attention == "mma":  # all of the paper's section "Modality-Mutual Attention" is this line
        opened = (q > TEXT) & (k != q)
    else:
        raise ValueError(f"unknown attention {attention!r}: choose one of {', '.join(KINDS)}")
    opened = opened & same_prompt(generated)
    real = (q != PAD) & (k != PAD)
    # A row without a single True would be 0/0 in the softmax: padding looks at itself.
    itself = torch.eye(T, dtype=torch.bool, device=modality.device)
    return (((causal | opened) & real) | itself)[:, None]


def same_prompt(generated):
    """Whether two positions lie in the same prompt, with no answer between them: (B, T, T) bool.

    Only there anything may be opened, so that no generated token reaches an earlier position,
    through any number of layers. It has two consequences:
    - In the caption of a picture all text is generated: there the mask of MMA *is* the causal
      mask, and pre-training on captions has no other choice.
    - In a conversation (picture, question 1, answer 1, question 2, answer 2) the picture sees
      question 1. To show it question 2, make an example with the earlier turns as the prompt.
    """
    before = generated.cumsum(1)  # (B, T) how many tokens are generated up to here
    return before[:, :, None] == before[:, None, :]


def mask_mod(modality, generated, attention="mma"):
    """For FlexAttention: `create_block_mask(mask_mod(modality, generated), B, None, T, T)`."""
    mask = attention_mask(modality, generated, attention)[:, 0]  # (B, T, T)
    return lambda b, h, q, k: mask[b, q, k]


def check(modality, generated):
    """Raise ValueError unless the arguments are what `attention_mask` says."""
    if modality.dim() != 2 or modality.shape != generated.shape:
        raise ValueError(f"both must be (B, T), but are {modality.shape} and {generated.shape}")
    if modality.is_floating_point() or not modality.is_signed():
        raise ValueError(f"modality must hold signed integers, but its dtype is {modality.dtype}")
    if generated.dtype != torch.bool:
        raise ValueError(f"generated must be bool, but its dtype is {generated.dtype}")
    if modality.is_cpu and (modality < PAD).any():
        raise ValueError(f"modality must be {PAD} (padding) or more, but is {modality.min()}")
    if modality.is_cpu and (generated & (modality != TEXT)).any():
        raise ValueError("a position is generated, but not TEXT: only text is generated")


def main():
    """Draw the masks of a question about four image tokens, and its answer."""
    print("Row: the token that looks. #: seen, o: seen, but not under the causal mask, .: hidden")
    names = "<user> img img img img is there a cat ? <assistant> yes <eos>".split()
    modality = torch.tensor([[IMAGE if name == "img" else TEXT for name in names]])
    generated = torch.arange(len(names))[None] > names.index("<assistant>")
    causal = attention_mask(modality, generated, "causal")[0, 0].int()
    for attention in KINDS:
        print(f"\n{attention}:")
        mask = attention_mask(modality, generated, attention)[0, 0].int()
        for name, row in zip(names, (mask + causal).tolist()):
            print(f"{name:>16}  {' '.join('.o#'[seen] for seen in row)}")


if __name__ == "__main__":
    main()
