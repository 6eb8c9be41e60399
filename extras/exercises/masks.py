"""Course 1, an evening: who may see whom. Nine gaps to fill in, each marked with `...`.

    python -m pytest extras/exercises -x        says how far you are, and draws what is wrong
    python -m extras.exercises.hints masks 3    prints a hint for exercise 3

A row is T tokens. Two tensors of shape (T,) say what they are:

                 <user>  img  img  is  it  red  ?  <assistant>  YES  <EOS>
    modality        0     1    1    0   0    0   0       0        0     0     PAD, TEXT, IMAGE, ...
    generated       .     .    .    .   .    .   .       .      True  True    bool

Generated is what the model must produce, here in CAPITALS; all tokens before it are the prompt. A
mask is a (T, T) bool tensor: mask[q, k] is True where the token at q may see the token at k. No
loops are needed: x[:, None] is about who looks, x[None, :] about who is looked at, and an operator
such as & or == between two of them gives (T, T).
"""
import torch

PAD, TEXT, IMAGE, SOUND = -1, 0, 1, 2


def row(words):
    """"<user> img what ? <assistant> RED <EOS>" -> (names, modality, generated). This is given."""
    names = words.split()
    ids = {"<pad>": PAD, "img": IMAGE, "snd": SOUND}
    modality = torch.tensor([ids.get(name, TEXT) for name in names])
    generated = torch.tensor([name.isupper() for name in names])
    return names, modality, generated


def causal(T):
    """1. Every token sees itself and all tokens before it: (T, T) bool. One line is enough."""
    ...


def one_question(modality, generated):
    """2. Modality-mutual attention (MMA), for pictures and one question: (T, T) bool.

    As the causal mask, but each image token also sees all TEXT of the prompt, be it before or
    after the picture. Of image tokens it sees what the causal mask shows, and never a generated
    token. Text, too, sees what the causal mask shows.
    """
    ...


def with_padding(modality, generated):
    """3. Rows of a batch get one length: short ones are filled with PAD, at any place in a row.

    As exercise 2, but no token sees padding. What does padding see? If nothing, the softmax over
    its row of the mask is 0/0 = NaN, and 0 * NaN = NaN carries that to all others in the next
    layer. So each padding token sees itself, and nothing else. (T, T) bool.
    """
    ...


def leaks(mask, generated):
    """4. What does a token know after many layers? (T, T) bool, True where an answer leaks.

    If A sees B and B sees C, then A knows C after two layers. [q, k] is True if k is generated, q
    stands before k, and yet q knows k after some number of layers, however many.
    The model must predict token k from what stands before k. With a leak it copies the answer in
    training, and has learned nothing when there is no answer to copy: a right mask has no leak.
    `mask` may be any mask in which each token sees itself.
    """
    ...


def caption(modality, generated):
    """5. "<user> img img A RED FISH <EOS>": no question; the model must produce all the words.

    Somebody forgets to say so: takes the mask of exercise 3 with `generated` all False. Return what
    `leaks` finds in that mask; the argument `generated` is right. (T, T) bool.
    With the right `generated`, exercise 3 gives for a caption a mask that you have seen before.
    Which one? What is there that MMA could open?
    """
    ...


def two_questions(modality, generated):
    """6. A conversation in one row: a picture, question 1, ANSWER 1, question 2, ANSWER 2.

    Question 2 has seen ANSWER 1. If the picture sees question 2, it knows ANSWER 1: the mask of
    exercise 3 leaks. So an image token sees later text only in its own prompt: where neither that
    text nor anything between the two is generated. There may be padding, and more pictures in any
    of the prompts. (T, T) bool.
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

    A model that answers reads its whole prompt first, and then token by token what it wrote. Keys
    and values of all positions before `start` lie in its cache; now it is given the positions from
    `start` to `stop - 1`. These look, at all positions up to `stop - 1`, under the mask of
    exercise 7. `modality` and `generated` are of the whole row, (T,).
    Why does a token in the cache never have to be computed again?
    """
    ...


def check(attention_mask):
    """9. Write the test! `attention_mask(modality, generated)` is somebody's exercise 7.

    Call it for some rows, and `assert` what a right mask promises. The right one must pass. Five
    wrong ones, each modeled on a bug of a real library, must not. Some of them are wrong in some
    rows only: with padding, without a picture, ...
    """
    ...
