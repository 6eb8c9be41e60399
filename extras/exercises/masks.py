"""Course 1, an evening: who may see whom. Nine gaps to fill in, each marked with `...`.

    python -m pytest extras/exercises -x        says how far you are, and draws what is wrong
    python -m extras.exercises.hints masks 3    prints a hint for exercise 3

A row is T tokens. Two tensors of shape (T,) say what they are:

                 <user>  img  img  is  it  red  ?  <assistant>  YES  <EOS>
    modality        0     1    1    0   0    0   0       0        0     0     PAD, TEXT, IMAGE, ...
    generated       .     .    .    .   .    .   .       .      True  True    bool

Generated is what the model must produce, here in CAPITALS; all tokens before it are the prompt. A
mask is a (T, T) bool tensor: mask[q, k] is True where the token at q may see the token at k. No
loops are needed, except perhaps in 4: x[:, None] is about who looks, x[None, :] about at whom, and
& or == between two of them gives (T, T). Use & | ~, not and/or/not, and brackets around each
comparison: (a == b) & (c > d). In an assert: torch.equal(a, b) or .any(). Change no argument.
"""
import torch

PAD, TEXT, IMAGE, SOUND = -1, 0, 1, 2


def row(words):
    """"<user> img what ? <assistant> RED <EOS>" -> (names, modality, generated). This is given."""
    names = words.split()
    ids = {"<pad>": PAD, "img": IMAGE, "snd": SOUND, "depth": 3}
    modality = torch.tensor([ids.get(name, TEXT) for name in names])
    return names, modality, torch.tensor([name.isupper() for name in names])


def causal(T):
    """1. Every token sees itself and all tokens before it: (T, T) bool. One line is enough."""
    ...


def one_question(modality, generated):
    """2. Modality-mutual attention (MMA), for pictures and one question: (T, T) bool.

    As the causal mask, but each image token also sees all TEXT of the prompt, before and after it.
    """
    ...


def with_padding(modality, generated):
    """3. Rows of a batch get one length: short ones are filled with PAD, at any place in a row.

    As exercise 2, but no token sees padding. If padding saw nothing, the softmax over its row would
    be 0/0 = NaN, and 0 * NaN = NaN in the next layer. So padding sees itself, and nothing else.
    """
    ...


def leaks(mask, generated):
    """4. What does a token know after many layers? (T, T) bool, True where an answer leaks.

    If A sees B and B sees C, then A knows C after two layers. [q, k] is True if k is generated, q
    stands before k, and yet q knows k after some number of layers, however many: the model copies
    its answer in training, and learns nothing. `mask` is any mask in which each token sees itself.
    """
    ...


def caption(modality, generated):
    """5. "<user> img img A RED FISH <EOS>": no question; the model must produce all the words.

    Somebody forgets to say so: takes the mask of exercise 3 with `generated` all False. Return what
    `leaks` finds in that mask; the argument `generated` is right. (T, T) bool.
    With the right `generated`, which mask does exercise 3 give? What is there to open for MMA?
    """
    ...


def two_questions(modality, generated):
    """6. A conversation in one row: a picture, question 1, ANSWER 1, question 2, ANSWER 2.

    If the picture sees question 2, which has seen ANSWER 1, exercise 3 leaks. So an image token
    sees later text only up to the next generated token. Any prompt may hold padding and pictures.
    """
    ...


def three_modalities(modality, generated):
    """7. SOUND, or any other modality: each id above TEXT is one. (T, T) bool.

    As exercise 6, but the tokens of each modality above TEXT see, in their prompt, the tokens of
    every *other* modality: image tokens see text and sounds, sounds see text and image tokens. Of
    its own modality each token sees what the causal mask shows. Text is as before.
    """
    ...


def one_step(modality, generated, start, stop):
    """8. The mask of one step with a KV cache: (stop - start, stop) bool.

    Keys and values of all positions before `start` lie in the cache; now those from `start` to
    `stop - 1` look, at all positions up to `stop - 1`, under the mask of exercise 7. `modality` and
    `generated` are of the whole row. Why is nothing in the cache computed again?
    """
    ...


def check(attention_mask):
    """9. Write the test! `attention_mask(modality, generated)` is somebody's exercise 7.

    Call it for some rows, and `assert` what a right mask promises. Do not compare with your
    exercise 7. The right mask must pass; five, each modeled on a bug of a real library, must not,
    nor a sixth without the idea itself. Some are wrong only with padding, or without a picture, ...
    """
    ...
