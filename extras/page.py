"""The data of results/masks.html, a page to play with: who sees whom, and why an answer leaks.

    python -m extras.page    asks the mask and the two shipped models, and writes into the page

The page has no rule of its own: it looks up what `mma.attention_mask` says. Its HTML and JavaScript
are written by hand; only what stands between two comments is replaced.
"""
import json
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from base64 import b64encode
from io import BytesIO
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from data import FIRST_SEED, draw, make_scene, make_world
from eval_pope import ask
from extras.figures import look
from extras.intervene import Intervened, TwoQuestions, all_questions, pairs_of_questions
from mma import IMAGE, KINDS, PAD, TEXT, attention_mask
from train import load

PAGE = Path("results/masks.html")
RUNS = ("results/causal.pt", "results/mma.pt")
START, END = "// Data, written by python -m extras.page\n", "// End of data"
SCENES = [make_scene(FIRST_SEED["test"] + i) for i in range(12)]  # whatever is answered there
TOKENS = {"pad": PAD, "text": TEXT, "answer": TEXT, "image": IMAGE, "sound": 2}  # -> modality


def rule():
    """What `attention_mask` says of two tokens: dict of "mma image text later together" -> 0 or 1.

    This one asks whether under mma an image token sees a text token that comes later. `apart` are
    two tokens with a generated one between them, or where the second one is generated.
    """
    rows = list(product(TOKENS, repeat=3))  # every kind of pair is in some row of three tokens
    modality = torch.tensor([[TOKENS[name] for name in row] for row in rows])
    generated = torch.tensor([[name == "answer" for name in row] for row in rows])
    table = {}
    for attention in KINDS:
        masks = attention_mask(modality, generated, attention)[:, 0].int().tolist()
        for row, mask in zip(rows, masks):
            for q, k in np.ndindex(3, 3):
                order = "earlier" if k < q else "later" if k > q else "same"
                side = "apart" if "answer" in row[min(q, k) + 1:max(q, k) + 1] else "together"
                pair = f"{attention} {row[q]} {row[k]} {order} {side}"
                if table.setdefault(pair, mask[q][k]) != mask[q][k]:
                    raise ValueError(f"{pair}: sometimes seen, sometimes not; the page needs more")
    return table


def answers(runs, scene):
    """All questions about a Scene: lists of [kind, question, right answer, of each run: [answer,
    *how strongly it looks at each image token, in thousandths]]."""
    picture = draw(scene)
    for kind, pairs in all_questions(scene).items():
        for question, right in dict.fromkeys(pairs):
            looks = [look(run, picture, question) for run in runs]
            said = [[text, *np.rint(1000 * x).astype(int).tolist()] for text, x in looks]
            yield [kind, question, right, *said]


def swaps(run, scenes):
    """Pairs of questions A and B, as in extras.intervene, a list for each Scene: [A, B, answer to
    A, to B, and what a run says if image tokens see A in no layer, in 1, in all others, in all]."""
    model, layers = run[0], [*range(run[0].config.layers)]
    part = make_world("test", len(scenes), 0, model.config.image_size)
    part = part._replace(questions=list(pairs_of_questions(scenes)))
    found = [[*pair.prompt, *pair.answer] for pair in part.questions]
    for model.swapped in ([], layers[:1], layers[1:], layers):
        for pair, (_, text) in zip(found, ask(run, part, TwoQuestions)):
            pair.append(text)
    return [[pair for pair, e in zip(found, part.questions) if e.picture == i]
            for i in range(len(scenes))]


def main():
    """The command line."""
    ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter).parse_args()
    runs = [load(path) for path in RUNS]
    content = {"KINDS": KINDS, "RULE": rule(), "SCENES": []}
    for scene, pairs in zip(tqdm(SCENES), swaps(load(RUNS[1], model_class=Intervened), SCENES)):
        Image.fromarray(draw(scene)).save(png := BytesIO(), "png", optimize=True)
        address = f"data:image/png;base64,{b64encode(png.getvalue()).decode()}"
        content["SCENES"].append([address, list(answers(runs, scene)), pairs])
    lines = [f"const {name} = {json.dumps(value)};\n" for name, value in content.items()]
    html = PAGE.read_text()
    start = html.index(START) + len(START)
    PAGE.write_text(html[:start] + "".join(lines) + html[html.index(END):])
    print(f"wrote {PAGE}: {PAGE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
