"""From text and pictures to padded batches. Read `scenes.py` before, `train.py` after.

Three steps: a `Tokenizer` turns text into ids; `Examples` lays pictures, prompt and answer out as one row
of ids; a `Batch` is many rows, padded, with the two tensors that `mma.py` asks for: what each position is
(`modality`) and whether the model must produce it (`generated`).

Layouts (n image tokens a picture):
    chat:      <user> image tokens, question <assistant> | answer <eos>
    document:  <user> image tokens | caption <eos>
What stands after the bar is generated. In a document no prompt token follows the picture, so in
pre-training MMA could open nothing and equals the causal mask.

Shapes: B rows, T positions, N pictures.
"""
import re
from array import array
from collections import Counter
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import NamedTuple
from zlib import crc32

import numpy as np
import torch

import scenes
from mma import IMAGE, PAD, TEXT
from model import IGNORE

SPECIALS = ("<pad>", "<image>", "<user>", "<assistant>", "<eos>")
PAD_ID, IMAGE_ID, USER_ID, ASSISTANT_ID, EOS_ID = range(len(SPECIALS))
ORDERS = ("image-first", "text-first", "dual")


class Tokenizer:
    """One token for each frequent word, UTF-8 bytes for everything else: nothing is ever unknown.

    Ids: the specials, then the 256 bytes, then the words (a word carries the space before it). Specials
    are written by `Examples` alone; the same characters in a text are plain text, so nobody can inject a
    turn or a picture by typing.
    """
    PIECE = re.compile(r" ?\w+(?:-\w+)*| ?[^\w\s]|.", re.DOTALL)  # every character falls into some piece
    WORDS_FROM = len(SPECIALS) + 256

    def __init__(self, words):
        """words: the vocabulary beyond specials and bytes, a list of distinct strings."""
        self.words = list(words)
        if not all(isinstance(word, str) and word for word in self.words) or len(set(self.words)) < len(self.words):
            raise ValueError("vocabulary: words must be distinct, non-empty strings")
        self.id_of = {word: i for i, word in enumerate(self.words, self.WORDS_FROM)}
        self.encode = lru_cache(maxsize=1 << 15)(self._encode)  # the same questions come again and again

    @classmethod
    def build(cls, texts, max_words=8192, min_count=2):
        """The vocabulary of an iterable of strings: its `max_words` most frequent pieces, `min_count` at least."""
        counts = Counter(piece for text in texts for piece in cls.PIECE.findall(text))
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return cls(word for word, count in ranked[:max_words] if count >= min_count)

    def __len__(self):
        return self.WORDS_FROM + len(self.words)

    def _encode(self, text):
        """Any string -> tuple of ids, never those of the specials."""
        ids = []
        for piece in self.PIECE.findall(text):
            word = self.id_of.get(piece)
            if word is None:
                ids.extend(byte + len(SPECIALS) for byte in piece.encode("utf-8", "surrogatepass"))
            else:
                ids.append(word)
        return tuple(ids)

    def decode(self, ids):
        """Ids (any iterable of int) -> text. Specials print as nothing; bytes that are no UTF-8 as U+FFFD."""
        raw = b"".join(
            self.words[i - self.WORDS_FROM].encode("utf-8", "surrogatepass") if i >= self.WORDS_FROM
            else bytes([i - len(SPECIALS)]) if i >= len(SPECIALS) else b""
            for i in map(int, ids))
        try:
            return raw.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            return raw.decode("utf-8", "replace")


@dataclass(frozen=True)
class Batch:
    """B rows, ready for the model; `model(**batch.inputs())` or, with labels, for the loss."""
    images: torch.Tensor  # (N, size, size, 3) uint8, each picture once
    image_index: torch.Tensor  # (M,) int64: which picture stands at the m-th placeholder run
    ids: torch.Tensor  # (B, T) int64
    modality: torch.Tensor  # (B, T) int64: mma.PAD, TEXT, IMAGE
    generated: torch.Tensor  # (B, T) bool
    labels: torch.Tensor  # (B, T) int64: ids where generated, else model.IGNORE

    def to(self, device):
        """The batch on a device; from pinned memory without waiting."""
        cuda = torch.device(device).type == "cuda"
        return Batch(*((t.pin_memory() if cuda else t).to(device, non_blocking=True)
                       for t in (getattr(self, f.name) for f in fields(self))))

    def inputs(self):
        """The keyword arguments of `MultimodalGPT.forward`."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True, slots=True)
class Item:
    """One example before it is tokenized."""
    pictures: tuple  # indices into the array of images, in the order in which they are shown
    prompt: str  # the question; None in a document
    answer: str
    kind: str = ""  # kind of question, for accuracies by kind


class Material(NamedTuple):
    """One split of a data set, as training wants it."""
    images: np.ndarray  # (N, size, size, 3) uint8
    captions: list  # of Item, documents
    questions: list  # of Item
    objects: list  # for each picture the set of the kinds in it


class Examples:
    """Many examples as one flat array of ids, so that a batch is a few array operations, however large."""

    def __init__(self, items, images, tokenizer, config, order="image-first"):
        """items: list of Item; images: (N, size, size, 3) uint8 array; order: see ORDERS.

        text-first puts the question before the pictures, so that even a causal mask shows it to them;
        dual alternates between both orders (the paper's dual-order training).
        Raises ValueError for an item that does not fit config.context, and says by how much.
        """
        if order not in ORDERS:
            raise ValueError(f"unknown order {order!r}: choose one of {', '.join(ORDERS)}")
        self.items, self.images, self.tokenizer = items, images, tokenizer
        flat, starts, prompts = array("i"), [0], []  # an array: a list takes twice the memory
        for i, item in enumerate(items):
            pictures = (IMAGE_ID,) * (config.image_tokens * len(item.pictures))
            if item.prompt is None:
                prompt = (USER_ID, *pictures)
            else:
                text = tokenizer.encode(item.prompt)
                text_first = order == "text-first" or (order == "dual" and i % 2)
                body = text + pictures if text_first else pictures + text
                prompt = (USER_ID, *body, ASSISTANT_ID)
            row = prompt + tokenizer.encode(item.answer) + (EOS_ID,)
            if len(row) > config.context:
                raise ValueError(f"example {i} ({(item.prompt or item.answer)[:40]!r}...) has {len(row)} positions, "
                                 f"{len(row) - config.context} more than the context of {config.context}")
            flat.extend(row)
            starts.append(len(flat))
            prompts.append(len(prompt))
        self.flat = np.frombuffer(flat, dtype=np.int32)
        self.starts, self.lengths = np.array(starts[:-1]), np.diff(starts)
        self.prompt_lengths = np.array(prompts)
        self.answer_lengths = self.lengths - self.prompt_lengths
        self.picture_counts = np.array([len(item.pictures) for item in items])
        self.picture_starts = np.cumsum(self.picture_counts) - self.picture_counts
        self.pictures = np.array([p for item in items for p in item.pictures], dtype=np.int64)

    def __len__(self):
        return len(self.items)

    def batch(self, rows, prompts_only=False):
        """rows: (B,) indices -> Batch, padded on the right; `prompts_only` for `generate`, padded on the left."""
        rows = np.asarray(rows)
        lengths = (self.prompt_lengths if prompts_only else self.lengths)[rows][:, None]
        at = np.arange(lengths.max())[None]
        if prompts_only:
            at = at - (at.shape[1] - lengths)
        real = (at >= 0) & (at < lengths)
        ids = np.where(real, self.flat[(self.starts[rows][:, None] + at) * real], PAD_ID).astype(np.int64)
        generated = real & (at >= self.prompt_lengths[rows][:, None])
        shown = ragged(self.picture_starts[rows], self.picture_counts[rows])
        pictures, image_index = np.unique(self.pictures[shown], return_inverse=True)
        return Batch(*map(torch.from_numpy, (
            np.ascontiguousarray(self.images[pictures]), image_index.astype(np.int64), ids,
            np.where(real, np.where(ids == IMAGE_ID, IMAGE, TEXT), PAD), generated,
            np.where(generated, ids, IGNORE))))


def ragged(starts, counts):
    """The indices starts[i], starts[i] + 1, ... (counts[i] of them), one after the other, without a loop."""
    return np.repeat(starts - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())


class Batches:
    """Which rows form the batch at any step: a pure function of (seed, step).

    There is no iterator state to save, so a resumed run continues with the very same batches. An epoch
    visits every picture once, but for an incomplete last batch, with `per_picture` of its examples (or all
    that it has), chosen anew each time. Batches hold rows of like length: little padding is computed.
    """
    POOL = 16  # batches that are sorted by length together; more would hardly save padding

    def __init__(self, examples, pictures_per_batch, per_picture, seed):
        """examples: an Examples; a row belongs to its first picture. ValueError if they do not fill a batch."""
        first = np.array([item.pictures[0] if item.pictures else -1 - i for i, item in enumerate(examples.items)])
        order = np.argsort(first, kind="stable")
        _, counts = np.unique(first[order], return_counts=True)
        column = ragged(np.zeros_like(counts), counts)
        self.table = np.full((len(counts), counts.max()), -1)  # (pictures, most examples of one), -1 = none
        self.table[np.repeat(np.arange(len(counts)), counts), column] = order
        self.lengths, self.size, self.per_picture, self.seed = examples.lengths, pictures_per_batch, per_picture, seed
        self.steps_per_epoch = len(self.table) // self.size
        if not self.steps_per_epoch:
            raise ValueError(f"a batch of {self.size} pictures cannot be filled from {len(self.table)} pictures")
        self.epoch, self.plan = None, None

    def __getitem__(self, step):
        """step -> (B,) int array of rows."""
        epoch, at = divmod(step, self.steps_per_epoch)
        if epoch != self.epoch:
            rng = np.random.default_rng([self.seed, epoch])
            key = np.where(self.table < 0, 2.0, rng.random(self.table.shape))
            rows = np.take_along_axis(self.table, key.argsort(1)[:, :self.per_picture], 1)
            rows = rows[rng.permutation(len(rows))[:self.steps_per_epoch * self.size]]
            # within a pool of batches sort by length, then cut into batches and mix those
            length = np.where(rows < 0, 0, self.lengths[rows]).max(1)
            pool = np.arange(len(rows)) // (self.POOL * self.size)
            rows = rows[np.lexsort((length, pool))].reshape(self.steps_per_epoch, self.size, -1)
            self.epoch, self.plan = epoch, rows[rng.permutation(self.steps_per_epoch)]
        rows = self.plan[at].ravel()
        return rows[rows >= 0]

    def fingerprint(self, steps):
        """A checksum of the first batches: equal for two runs that see the same rows in the same order."""
        checksum = 0
        for step in range(steps):
            checksum = crc32(self[step].tobytes(), checksum)
        return checksum


def scene_items(split, n, seed, cache_dir):
    """The picture world as training material: a Material of the first n scenes of a split ("train", "val", "test").

    seed varies which questions are asked, not the scenes.
    """
    world = [scenes.make_scene(s) for s in scenes.split_seeds(split, n)]
    return Material(
        images=scenes.render(split, n, cache_dir),
        captions=[Item((i,), None, scenes.caption(scene), "caption") for i, scene in enumerate(world)],
        questions=[Item((i,), q.text, q.answer, q.kind) for i, asked in enumerate(scenes.ask(world, seed)) for q in asked],
        objects=[{thing.kind for thing in scene.things} for scene in world])
