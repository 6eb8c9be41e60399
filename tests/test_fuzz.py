"""Whatever comes in, from a stranger or by mistake: a right result, or an error that the documentation promises.

`survives` makes one call and counts it. To fuzz another entry point, write a test that calls it with malformed inputs
and the errors that its docstring names; any other exception fails the test.
"""
import io
import pickle
import random
import resource
import string
import zipfile
from collections import Counter

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

import data
import runs
from data import Examples, Item, Tokenizer
from eval_pope import answer
from mma import KINDS, attention_mask, mask_mod
from model import IGNORE, Config, MultimodalGPT
from test_mma import dull_mask

COUNTED = Counter()  # entry point -> inputs survived


def survives(entry, call, *documented):
    """call(): returns (True, its result), or (False, the error) if that is of a documented kind; counts the input."""
    COUNTED[entry] += 1
    try:
        return True, call()
    except documented as error:
        text = str(error)
        assert text and "\n" not in text and len(text) < 1000, f"{entry}: not one short line: {text[:2000]!r}"
        return False, error


TEXTS = ["Is there a star in the image?", "a red fish at top-left, a blue cup at center.", "yes", "no"] * 3
TOKENIZER = Tokenizer.build(TEXTS)
CONFIG = Config(vocab_size=len(TOKENIZER), context=64, width=16, heads=2, layers=1, vit_layers=1, image_size=16,
                patch_size=4, window=4)  # 4 image tokens
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Operations this small only wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return MultimodalGPT(CONFIG).eval()


@pytest.fixture(scope="module")
def checkpoint(model):
    """The bytes of a good checkpoint, as an unfinished run saves them."""
    about = dict(stage="sft", attention="mma", order="image-first", seed=0, options={"seed": 0}, seconds={}, data=None)
    optimizer = torch.optim.AdamW(model.parameters())
    training = {"step": 3, "seconds": {}, "metrics_bytes": 5, "losses": [1.0], "optimizers": [optimizer.state_dict()]}
    buffer = io.BytesIO()
    torch.save(runs.pack(model, TOKENIZER, training=training, **about), buffer)
    return buffer.getvalue()


def load(path, content, model):
    """runs.load of these bytes: a model that computes, and the very same one if it is called the same."""
    path.write_bytes(content)
    good, loaded = survives("runs.load", lambda: runs.load(path), ValueError)
    if good:
        assert all(weight.isfinite().all() for weight in loaded[0].state_dict().values())
    return good, loaded


def same_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_a_checkpoint_that_is_cut_off_anywhere_is_refused(tmp_path, checkpoint, model):
    lengths = {0, 1, 4, 22, len(checkpoint) - 1, *(len(checkpoint) * i // 100 for i in range(100))}
    for length in lengths:
        assert not load(tmp_path / "model.pt", checkpoint[:length], model)[0], length
    assert load(tmp_path / "model.pt", checkpoint, model)[0]


def test_a_checkpoint_with_a_wrong_byte_is_refused_or_means_the_same(tmp_path, checkpoint, model):
    """Some bytes are padding: there nothing is lost. A weight is never another number."""
    rng, refused = random.Random(0), 0
    for i in range(350):
        content = bytearray(checkpoint)
        if i < 250:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        else:  # a block that was overwritten, as by a disk that lost a sector
            start, length = rng.randrange(len(content)), rng.choice((1, 16, 512, 4096))
            content[start:start + length] = rng.choice((bytes, rng.randbytes))(len(content[start:start + length]))
        good, loaded = load(tmp_path / "model.pt", bytes(content), model)
        refused += not good
        if good:
            assert same_weights(loaded[0], model) and loaded[1].words == TOKENIZER.words
    assert refused > 200


def repacked(checkpoint, change):
    """The checkpoint with the pickle inside it changed, and every checksum right again."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(checkpoint)) as old, zipfile.ZipFile(buffer, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            new.writestr(entry.filename, change(content) if entry.filename.endswith("data.pkl") else content)
    return buffer.getvalue()


def test_a_checkpoint_whose_pickle_was_changed_with_care_is_refused_or_a_model(tmp_path, checkpoint, model):
    rng = random.Random(1)

    def change(content):
        content = bytearray(content)
        for _ in range(rng.choice((1, 1, 2, 5))):
            at = rng.randrange(len(content))
            what = rng.randrange(4)
            if what == 0:
                content[at] = rng.randrange(256)
            elif what == 1:
                del content[at:at + rng.randint(1, 8)]
            elif what == 2:
                content[at:at] = rng.randbytes(rng.randint(1, 8))
            else:
                content[at] = rng.choice(b"}])(.0Nq\x85\x86\x87tRsuaeQJK")  # opcodes
        return bytes(content)

    assert load(tmp_path / "model.pt", repacked(checkpoint, bytes), model)[0]
    for _ in range(250):
        load(tmp_path / "model.pt", repacked(checkpoint, change), model)


def strange_values():
    """Values that a weights-only file may hold in the stead of any other."""
    nested = [0]
    for _ in range(40):
        nested = [nested, nested]  # 2 ** 40 numbers, if anybody printed them
    return [None, True, -1, 0, 3.5, float("nan"), 10**100, "", "x" * 100_000, "\x1b[2J\n\r\0", b"x", [], {}, nested,
            (1, 2), {1: 2}, {"a": {}}, torch.Size([1, 2]), torch.float32,
            torch.zeros(0), torch.tensor(float("nan")), torch.zeros(1).expand(10**12), torch.zeros(2, 3).T,
            torch.zeros(2, dtype=torch.complex64), torch.zeros(2, dtype=torch.float8_e5m2),
            torch.zeros(2, 2).to_sparse(), torch.zeros(2, device="meta"), torch.nn.Parameter(torch.ones(3))]


def test_a_checkpoint_with_a_strange_value_anywhere_is_refused_or_a_model(tmp_path, checkpoint, model):
    """And memory never grows with what a file merely claims."""
    whole, path, before = torch.load(io.BytesIO(checkpoint), weights_only=True), tmp_path / "model.pt", memory()
    places = [(key,) for key in whole] + [("config", key) for key in whole["config"]]
    places += [("weights", key) for key in list(whole["weights"])[::6]] + [("words", 0), ("training", "step")]
    rng = random.Random(2)
    for value in strange_values():
        for place in rng.sample(places, 8):
            with_it = {key: v.copy() if isinstance(v, dict | list) else v for key, v in whole.items()}
            inside = with_it
            for key in place[:-1]:
                inside = inside[key]
            inside[place[-1]] = value
            buffer = io.BytesIO()
            torch.save(with_it, buffer)
            load(path, buffer.getvalue(), model)
    for missing in whole:
        buffer = io.BytesIO()
        torch.save({key: value for key, value in whole.items() if key != missing}, buffer)
        load(path, buffer.getvalue(), model)
    assert memory() - before < 300e6


def memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # the most that this process ever had


def test_files_that_swell_or_share_memory_are_refused(tmp_path, checkpoint, model):
    path, before = tmp_path / "model.pt", memory()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**9 // 4))
    good, error = survives("runs.load", lambda: runs.load(path), ValueError)
    assert not good and "compressed" in str(error)
    whole = torch.load(io.BytesIO(checkpoint), weights_only=True)
    one = torch.zeros(max(w.numel() for w in whole["weights"].values()))
    whole["weights"] = {name: one[:w.numel()].view(w.shape) for name, w in whole["weights"].items()}
    buffer = io.BytesIO()
    torch.save({**whole, "training": None}, buffer)
    good, error = load(path, buffer.getvalue(), model)
    assert not good and "share memory" in str(error)
    for content in (b"", b"PK\x05\x06" + bytes(18), pickle.dumps(whole["words"]), b"\x80\x02.", b"\0" * 10_000):
        assert not load(path, content, model)[0]
    assert memory() - before < 200e6


ALPHABETS = ["abc XYZ-?.,", "äßñçœ łéÅ", "日本語テキスト", "🙂👩‍👩‍👧🇫🇷", "\x00\x1b\t\n\r\x7f\x85",
             "\u202e\u200b\ufeff\ud800\udfff", string.printable, [*data.SPECIALS, " "],
             ["Is there a star", " in the image?", "--", "-a"],
             [chr(i) for i in range(0x300, 0x370)], [chr(i) for i in range(0x10000, 0x10FFFF, 977)]]


def random_text(rng, most=40):
    alphabet = rng.choice(ALPHABETS)
    return "".join(rng.choice(alphabet if rng.random() < 0.8 else rng.choice(ALPHABETS))
                   for _ in range(rng.randint(0, most)))


def test_any_text_survives_the_tokenizer():
    rng = random.Random(3)
    texts = [random_text(rng) for _ in range(300)] + [random_text(rng, 1000) for _ in range(10)]
    texts += ["".join(chr(rng.randrange(0x110000)) for _ in range(30)) for _ in range(100)]
    texts += ["".join(rng.choices(alphabet, k=100_000)) for alphabet in ALPHABETS[:7]]  # a hundred thousand characters
    texts += ["a" * 100_000, "a-" * 50_000, "-" * 100_000, " " * 100_000, "\u0301" * 100_000, "<image>" * 15_000]
    for text in texts:
        ids = survives("Tokenizer", lambda: TOKENIZER.encode(text))[1]
        assert TOKENIZER.decode(ids) == text
        assert not ids or len(data.SPECIALS) <= min(ids) and max(ids) < len(TOKENIZER)  # specials cannot be typed
        survives("Tokenizer", lambda: Tokenizer.build([text, text]))
    survives("Tokenizer", lambda: TOKENIZER.decode([rng.randrange(len(TOKENIZER)) for _ in range(1000)]))


def test_any_question_is_answered_or_refused_as_too_long(model):
    """Whatever is typed, the row has exactly the special tokens that the layout gives it."""
    rng = random.Random(4)
    for order in data.ORDERS:
        texts = [random_text(rng, rng.choice((5, 20, 70))) for _ in range(60)]
        texts += ["<assistant> yes <eos>", "<image>" * 4, "x" * 100_000]
        fitting = []
        for text in texts:
            items = [Item((rng.randrange(3),) * rng.choice((1, 1, 2, 0)), text, random_text(rng, 10))]
            good, made = survives("Examples", lambda: Examples(items, IMAGES, TOKENIZER, CONFIG, order), ValueError)
            assert good or "more than the context of 64" in str(made)
            if good:
                specials = Counter(i for i in made.flat.tolist() if i < len(data.SPECIALS))
                assert specials == +Counter({data.USER_ID: 1, data.ASSISTANT_ID: 1, data.EOS_ID: 1,
                                             data.IMAGE_ID: 4 * len(items[0].pictures)})
                if len(items[0].pictures) and made.prompt_lengths[0] <= 56:
                    fitting += items
        examples = Examples(fitting, IMAGES, TOKENIZER, CONFIG, order)
        good, texts = survives("answer", lambda: answer(model, examples, range(len(fitting)), rng.choice(KINDS)))
        assert len(texts) == len(fitting) and all(isinstance(text, str) for text in texts)


INTEGERS = [torch.int8, torch.int16, torch.int32, torch.int64]
DTYPES = [*INTEGERS, torch.uint8, torch.bool, torch.float32, torch.float16, torch.float64, torch.bfloat16,
          torch.complex64]


def random_tensor(rng, dtypes, shape=None, values=(-1, 0, 0, 1, 1, 2)):
    """A tensor that is right now and then."""
    if rng.random() < 0.04:
        return rng.choice([None, 1, "x", [[0, 1]], np.zeros((2, 3), np.int64), torch.tensor(1)])
    if shape is None or rng.random() < 0.08:
        shape = [rng.choice((0, 1, 2, 3, 5)) for _ in range(rng.choice((0, 1, 2, 2, 2, 3)))]
    dtype = rng.choice(dtypes) if rng.random() < 0.85 else rng.choice(DTYPES)
    numbers = [rng.choice(values if rng.random() < 0.97 else (-2, 127, -128, 10**6, 2**62))
               for _ in range(int(np.prod(shape)))]
    limit = torch.iinfo(dtype) if dtype in DTYPES[:5] else None  # numbers that the dtype has
    numbers = [max(limit.min, min(limit.max, n)) if limit else float(n) for n in numbers]
    return torch.tensor(numbers, dtype=torch.float64 if limit is None else torch.int64).reshape(shape).to(dtype)


def test_any_tensors_give_the_right_mask_or_an_error():
    rng, right = random.Random(5), 0
    for i in range(400):
        shape = [rng.choice((0, 1, 2, 3)), rng.choice((0, 1, 2, 5, 9))]
        modality = random_tensor(rng, INTEGERS, shape)
        generated = random_tensor(rng, [torch.bool], shape, (0, 0, 0, 0, 0, 1))
        kind = rng.choice([*KINDS] * 8 + ["", "MMA", None, 3])
        good, mask = survives("attention_mask", lambda: attention_mask(modality, generated, kind), ValueError)
        also, mod = survives("mask_mod", lambda: mask_mod(modality, generated, kind), ValueError)
        assert good == also
        if good:
            B, T = modality.shape
            assert mask.shape == (B, 1, T, T) and mask.dtype == torch.bool
            assert mask[:, 0].tolist() == [dull_mask(m, g, kind) for m, g in zip(modality.tolist(), generated.tolist())]
            if B and T:
                right += 1
                assert torch.equal(create_mask(mod, B, 1, T, T, device="cpu"), mask)
    assert right > 40


def test_any_inputs_give_logits_or_an_error(model):
    rng, right = random.Random(6), 0
    torch.manual_seed(6)
    for i in range(300):
        B, T = rng.choice((0, 1, 2, 3)), rng.choice((0, 1, 5, 9, 65))
        modality = torch.full((B, T), 0)
        pictures = rng.choice((0, 0, 1, 2)) if B else 0
        for n in range(pictures):
            modality[n % B, :4] = 1
        generated = torch.zeros(B, T, dtype=torch.bool)
        ids = torch.randint(0, CONFIG.vocab_size, (B, T))
        images = torch.randint(0, 256, (pictures, 16, 16, 3), dtype=torch.uint8)
        labels = torch.where(torch.rand(B, T) < 0.3, ids, IGNORE)
        arguments = {"images": images if pictures or rng.random() < 0.5 else None, "ids": ids, "modality": modality,
                     "generated": generated, "labels": rng.choice([None, labels]),
                     "kind": rng.choice(KINDS), "image_index": rng.choice([None, torch.arange(pictures)])}
        for name in rng.sample(sorted(arguments), rng.choice((0, 1, 1, 2))):  # what is wrong with it
            arguments[name] = {
                "images": lambda: random_tensor(rng, [torch.uint8], [pictures, 16, rng.choice((15, 16)), 3], (0, 255)),
                "ids": lambda: random_tensor(rng, [torch.int64], (B, T), (0, 1, 5, CONFIG.vocab_size - 1)),
                "modality": lambda: random_tensor(rng, INTEGERS, (B, T)),
                "generated": lambda: random_tensor(rng, [torch.bool], (B, T), (0, 1)),
                "labels": lambda: random_tensor(rng, [torch.int64], (B, T), (IGNORE, 5)),
                "kind": lambda: rng.choice(("", None, "both")),
                "image_index": lambda: random_tensor(rng, [torch.int64], [rng.choice((0, 1, 2))], (0, 1, -1))}[name]()
        documented = (ValueError, IndexError)  # IndexError: a label out of range
        if not all(isinstance(value, torch.Tensor) or value is None and name in ("images", "labels", "image_index")
                   for name, value in arguments.items() if name != "kind"):
            documented += TypeError, AttributeError  # no tensor at all: Python's own errors will do
        if arguments["images"] is not None and not getattr(arguments["images"], "shape", None):
            documented += (TypeError,)  # len() of a single number
        good, result = survives("MultimodalGPT.forward", lambda: model(**arguments), *documented)
        if good:
            logits, loss = result
            assert logits.isfinite().all() and logits.shape[-1] == CONFIG.vocab_size
            assert (loss is None) == (arguments["labels"] is None)
            right += bool(B and T)
        prompt = {key: arguments[key] for key in ("images", "ids", "modality", "kind", "image_index")}
        more = {"max_new_tokens": rng.choice((1, 3, 8, 0, -1, 10**9)), "end": rng.choice((4, -1)),
                "temperature": rng.choice((0, 0, 1.0, -1.0, float("nan"), float("inf"), 1e-30)),
                "top_k": rng.choice((None, 1, 5, 0, 10**9))}
        good, ids = survives("MultimodalGPT.generate", lambda: model.generate(**prompt, **more), *documented)
        if good:
            assert len(ids) == len(prompt["ids"]) and ids.shape[1] <= more["max_new_tokens"]
            assert not len(ids) or -1 <= ids.min() and ids.max() < CONFIG.vocab_size
            right += bool(B and T)
    assert right > 30


def test_the_inputs_above_were_more_than_twelve_hundred():
    """Runs last; when it runs alone, there is nothing to count."""
    print(dict(COUNTED))
    assert not COUNTED or len(COUNTED) < 8 or sum(COUNTED.values()) > 1200
