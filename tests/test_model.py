"""The model: that masks reach the attention, that padding changes nothing, that the cache changes nothing."""
import random

import pytest
import torch

from mma import IMAGE, KINDS, PAD, TEXT, attention_mask
from model import IGNORE, Config, KVCache, MultimodalGPT, choose, positions

CONFIG = Config(vocab_size=40, context=64, width=32, heads=2, layers=2, vit_layers=1, image_size=16, patch_size=4,
                window=4)
END, PLACEHOLDER = 4, 1


@pytest.fixture
def model():
    """A small model whose zero-initialised layers are random, so that every path carries something."""
    model = MultimodalGPT(CONFIG)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3)
    return model.double().eval()  # float64: any difference that is left is a mistake, not rounding


def pictures(n):
    return torch.randint(0, 256, (n, 16, 16, 3), dtype=torch.uint8)


def row(layout):
    """"t i q a ." -> ids, modality, generated of one row; i is a picture (4 tokens), a capital letter is generated."""
    ids, modality, generated = [], [], []
    for c in layout:
        n = 4 if c == "i" else 1
        ids += [PLACEHOLDER] * 4 if c == "i" else [5 + ord(c) % 35]
        modality += [IMAGE if c == "i" else TEXT] * n
        generated += [c.isupper()] * n
    return torch.tensor([ids]), torch.tensor([modality]), torch.tensor([generated])


def pad(tensors, left, right):
    ids, modality, generated = tensors
    return (torch.nn.functional.pad(ids, (left, right)), torch.nn.functional.pad(modality, (left, right), value=PAD),
            torch.nn.functional.pad(generated, (left, right)))


def test_image_tokens_are_a_quarter_of_the_patches(model):
    assert CONFIG.image_tokens == 4 and model.projector(model.vit(pictures(3))).shape == (3, 4, 32)
    assert Config(vocab_size=1).image_tokens == 16  # 64x64 in 8x8 patches


def test_each_image_token_is_made_of_its_own_two_by_two_patches():
    """With no ViT block, a token depends on the pixels of its own quarter of the picture alone."""
    model = MultimodalGPT(CONFIG).double()
    model.vit.blocks = torch.nn.ModuleList()
    image = pictures(1)
    before = model.projector(model.vit(image))
    image[:, 8:, :8] ^= 255  # bottom left quarter
    changed = (model.projector(model.vit(image)) != before).any(-1)[0]
    assert changed.tolist() == [False, False, True, False]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["uiqweAB", "tuiqiwA", "uqwiAB", "uqAwB", "uiqAiwBC"])
def test_outputs_move_exactly_where_the_mask_lets_them(model, kind, layout):
    """Change the input at k: the output at q moves if and only if k reaches q through the layers' masks."""
    ids, modality, generated = row(layout)
    T = ids.shape[1]
    mask = attention_mask(modality, generated, kind)
    seen = mask[0, 0]
    reach = (seen.double() @ seen.double()) > 0  # two layers; a position always sees itself
    x = torch.randn(1, T, 32, dtype=torch.float64)

    def outputs(x):
        for block in model.blocks:
            x = block(x, mask)
        return x

    before = outputs(x)
    for k in range(T):
        moved = x.clone()
        moved[0, k] += torch.randn(32, dtype=torch.float64)
        assert torch.equal((outputs(moved) != before).any(-1)[0], reach[:, k])


def test_the_question_moves_the_image_tokens_under_mma_and_not_under_causal(model):
    images, (ids, modality, generated) = pictures(1), row("uiqwA")
    other = ids.clone()
    other[0, 5] += 1  # the first word of the question, after <user> and four image tokens
    for kind, moves in (("causal", False), ("image", False), ("prefix", True), ("mma", True)):
        a, b = (model(images, x, modality, generated, kind=kind)[0] for x in (ids, other))
        assert (a[0, 1:5] != b[0, 1:5]).any().item() == moves, kind


@pytest.mark.parametrize("kind", KINDS)
def test_answer_tokens_never_leak_into_earlier_logits(model, kind):
    images, (ids, modality, generated) = pictures(2), row("uiqwiABCD")
    before = model(images, ids, modality, generated, kind=kind)[0]
    for k in generated[0].nonzero()[:, 0].tolist():
        other = ids.clone()
        other[0, k] += 1
        after = model(images, other, modality, generated, kind=kind)[0]
        assert torch.equal(before[0, :k], after[0, :k]) and not torch.equal(before[0, k], after[0, k])


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_gives_the_same_logits_alone_padded_and_in_a_batch(model, kind):
    images, one, two, text = pictures(3), row("uiqwAB"), row("uiiqA"), row("tqA")
    alone = [model(images[:1], *one, kind=kind)[0], model(images[1:], *two, kind=kind)[0],
             model(None, *text, kind=kind)[0]]
    T = max(r[0].shape[1] for r in (one, two, text)) + 3
    for left in (0, 3, 1):
        rows = [pad(r, left, T - r[0].shape[1] - left) for r in (one, two, text)]
        together = model(images, *map(torch.cat, zip(*rows)), kind=kind)[0]
        for i, logits in enumerate(alone):
            torch.testing.assert_close(together[i:i + 1, left:left + logits.shape[1]], logits, atol=1e-9, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("left", [0, 3])
def test_cached_generation_equals_recomputing_everything(model, kind, left):
    images = pictures(3)
    short, long = row("uiqw"), row("uiiqwe")
    T = long[0].shape[1]
    for prompts, shown in (([long, long], [0, 1, 1, 2]), ([short, long], [0, 1, 2])):
        rows = [pad(p, T - p[0].shape[1] + left, 0) for p in prompts]
        ids, modality, generated = map(torch.cat, zip(*rows))
        got = model.generate(images, ids, modality, 6, END, kind, torch.tensor(shown))
        ended = torch.zeros(2, dtype=torch.bool)
        for step in range(got.shape[1]):  # the dull way: the whole row through the whole model at each step
            logits = model(images, ids, modality, generated, kind=kind, image_index=torch.tensor(shown))[0][:, -1]
            token = torch.where(ended, END, logits.argmax(-1))
            assert torch.equal(got[:, step], token)
            ended |= token == END
            ids = torch.cat([ids, token[:, None]], 1)
            modality = torch.nn.functional.pad(modality, (0, 1), value=TEXT)
            generated = torch.nn.functional.pad(generated, (0, 1), value=True)


def test_generation_stops_when_every_row_has_ended(model):
    ids, modality, _ = map(torch.cat, zip(row("uiq"), row("uiw")))
    with torch.no_grad():
        model.norm.weight.zero_()  # every logit is 0: argmax takes id 0
    assert model.generate(pictures(2), ids, modality, 9, end=0).tolist() == [[0], [0]]
    assert model.generate(pictures(2), ids, modality, 9, end=3).tolist() == [[0] * 9] * 2


def test_after_a_rows_end_only_the_end_follows(model):
    ids, modality, _ = map(torch.cat, zip(row("uiqw"), row("uiwe"), row("uiee")))
    images = pictures(3)
    free = model.generate(images, ids, modality, 8, end=-1)
    end = free[0, 1].item()  # a token that the first row produces as its second
    ended = model.generate(images, ids, modality, 8, end=end).tolist()
    for got, wanted in zip(ended, free.tolist()):
        stop = wanted.index(end) + 1 if end in wanted else 8
        assert got == (wanted[:stop] + [end] * 8)[:len(got)]


def test_sampling_is_seeded_and_top_k_one_is_greedy(model):
    ids, modality, _ = row("uiqw")
    images = pictures(1)

    def sample(seed, **options):
        return model.generate(images, ids, modality, 12, END, generator=torch.Generator().manual_seed(seed), **options).tolist()

    assert sample(1, temperature=2.0) == sample(1, temperature=2.0) != sample(2, temperature=2.0)
    assert sample(1, temperature=2.0, top_k=1) == sample(1)


def test_sampling_follows_the_softmax_of_the_top_k():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).expand(20000, -1)
    drawn = choose(logits, 1.0, 2, torch.Generator().manual_seed(0)).bincount(minlength=4) / 20000
    torch.testing.assert_close(drawn, torch.tensor([0.625, 0.375, 0.0, 0.0]), atol=0.02, rtol=0)


# Compiling takes a minute, and what is tested here is the mask: the slow form will do.
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kind", KINDS)
def test_flex_attention_gives_the_logits_of_the_dense_mask(kind):
    torch.manual_seed(0)
    model = MultimodalGPT(Config(vocab_size=40, context=64, width=32, heads=2, layers=2, vit_layers=1, image_size=16,
                                 patch_size=4)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.2)
        rows = [row("uiqwAB"), pad(row("uiwA"), 0, 2)]
        inputs = pictures(2), *map(torch.cat, zip(*rows))
        dense = model(*inputs, kind=kind)[0]
        model.flex = True
        torch.testing.assert_close(model(*inputs, kind=kind)[0], dense, atol=2e-4, rtol=1e-4)


def test_loss_is_the_mean_over_labels_alone_and_shifted_by_one(model):
    images, (ids, modality, generated) = pictures(1), row("uiqwAB")
    labels = torch.where(generated, ids, IGNORE)
    logits, loss = model(images, ids, modality, generated, labels=labels, kind="mma")
    every = model(images, ids, modality, generated, kind="mma")[0][0].log_softmax(-1)
    at = generated[0].nonzero()[:, 0].tolist()
    assert logits.shape == (2, 40)
    by_hand = -sum(every[t - 1, ids[0, t]] for t in at) / len(at)
    assert abs(loss.item() - by_hand.item()) < 1e-5


def test_questions_about_one_picture_share_it(model):
    images, (ids, modality, generated) = pictures(2), map(torch.cat, zip(row("uiqw"), row("uiwe"), row("uiew")))
    index = torch.tensor([1, 1, 0])
    shared = model(images, ids, modality, generated, image_index=index)[0]
    torch.testing.assert_close(shared, model(images[index], ids, modality, generated)[0])


def test_positions_are_counted_over_real_tokens():
    assert positions(torch.tensor([[PAD, PAD, 0, 1, 0], [0, 1, 1, 0, PAD]])).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 3]]


def test_cache_returns_what_was_put_in():
    cache, parts = KVCache(5), [torch.randn(2, 3, n, 4) for n in (3, 1, 1)]
    for i, part in enumerate(parts, 1):
        k, v = cache.append(part, -part)
        assert torch.equal(k, torch.cat(parts[:i], 2)) and torch.equal(v, -k)


@pytest.mark.parametrize("change, says", [
    (dict(images=pictures(2)), "4 image placeholders in the batch, but 8 image tokens"),
    (dict(images=None), "4 image placeholders in the batch, but 0"),
    (dict(images=pictures(1)[:, :8]), r"images must be \(N, 16, 16, 3\) uint8"),
    (dict(images=pictures(1).float()), "torch.float32"),
    (dict(kind="both"), "unknown kind of attention 'both'"),
])
def test_wrong_input_is_refused_by_name(model, change, says):
    ids, modality, generated = row("uiqA")
    with pytest.raises(ValueError, match=says):
        model(**{**dict(images=pictures(1), ids=ids, modality=modality, generated=generated), **change})


def test_rows_and_generations_beyond_the_context_say_by_how_much(model):
    ids, modality, generated = row("t" * 70)
    with pytest.raises(ValueError, match="70 positions, 6 more than the context of 64"):
        model(None, ids, modality, generated)
    with pytest.raises(ValueError, match="6 more than the context"):
        model.generate(None, ids[:, :60], modality[:, :60], 10, END)
    for wrong in (dict(max_new_tokens=0), dict(temperature=-1.0), dict(top_k=0)):
        with pytest.raises(ValueError, match="must be at least 1, 0 and 1"):
            model.generate(None, ids[:, :9], modality[:, :9], **{**dict(max_new_tokens=2, end=END), **wrong})
    with pytest.raises(ValueError, match="pad prompts on the left"):
        model.generate(None, *pad(row("tq"), 0, 1)[:2], 3, END)


@pytest.mark.parametrize("change, says", [
    (dict(width=33), "width 33 is no multiple of heads"), (dict(layers=0), "layers is 0"),
    (dict(width=10**9), "width is 1000000000"), (dict(image_size=20), "image_size 20"), (dict(heads=2.0), "heads is 2.0"),
])
def test_impossible_configurations_are_refused_before_memory_is_taken(change, says):
    with pytest.raises(ValueError, match=says):
        Config(**{**dict(vocab_size=40, heads=2), **change})


def test_any_layout_gives_finite_logits(model):
    rng = random.Random(0)
    for _ in range(60):
        layout = "".join(rng.choice("iqwt") for _ in range(rng.randint(1, 5))) + rng.choice(["", "A", "AB"])
        inputs = pad(row(layout), rng.randint(0, 2), rng.randint(0, 2))
        logits = model(pictures(layout.count("i")), *inputs, kind=rng.choice(KINDS))[0]
        assert logits.isfinite().all(), layout
