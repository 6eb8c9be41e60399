"""The pictures of the README show what the code computes."""
from types import SimpleNamespace

import numpy as np

from data import make_world
from extras import figures

MASKS = """\
             causal          image           prefix          mma
     <user>  █············   █············   █▒▒▒▒▒▒▒▒▒▒··   █············
        img  ██···········   ██▒▒▒········   ██▒▒▒▒▒▒▒▒▒··   ██···▒▒▒▒▒▒··
        img  ███··········   ███▒▒········   ███▒▒▒▒▒▒▒▒··   ███··▒▒▒▒▒▒··
        img  ████·········   ████▒········   ████▒▒▒▒▒▒▒··   ████·▒▒▒▒▒▒··
        img  █████········   █████········   █████▒▒▒▒▒▒··   █████▒▒▒▒▒▒··
         is  ██████·······   ██████·······   ██████▒▒▒▒▒··   ██████·······
      there  ███████······   ███████······   ███████▒▒▒▒··   ███████······
          a  ████████·····   ████████·····   ████████▒▒▒··   ████████·····
        cat  █████████····   █████████····   █████████▒▒··   █████████····
          ?  ██████████···   ██████████···   ██████████▒··   ██████████···
<assistant>  ███████████··   ███████████··   ███████████··   ███████████··
        yes  ████████████·   ████████████·   ████████████·   ████████████·
      <eos>  █████████████   █████████████   █████████████   █████████████
"""


def test_masks_are_those_of_the_paper():
    picture = figures.draw_masks()
    colors = {"█": (70, 92, 130), "▒": (240, 140, 20), "·": (235, 237, 240)}
    for q, line in enumerate(MASKS.splitlines()[1:]):
        for i in range(4):
            for k, sign in enumerate(line[13 + 16 * i:26 + 16 * i]):
                middle = 129 + 320 * i + 22 * k, 161 + 22 * q  # of a cell
                assert picture.getpixel(middle) == colors[sign]


def test_wrong_answers_are_red(monkeypatch):
    def answer(run, images, examples):
        return [example.answer for example in examples[:-1]] + ["a wrong answer"]

    monkeypatch.setattr(figures.eval_pope, "ask", answer)
    model = SimpleNamespace(config=SimpleNamespace(image_size=64))
    lines = figures.answer_lines((model,), make_world("test", 12).questions)
    sheet = np.array(figures.sheet(np.zeros((12, 8, 8, 3), np.uint8), lines))
    red, green = ((sheet == color).all(-1) for color in (figures.RED, figures.GREEN))
    assert green.sum() > 100
    assert red[-50:, 3 * 292:].sum() == red.sum() > 10  # the last line of the last scene
