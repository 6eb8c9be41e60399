"""The pictures of the README show what the code computes."""
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from data import make_scene
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
    picture = np.array(figures.draw_masks())
    colors = {"█": (70, 92, 130), "▒": (240, 140, 20), "·": (235, 237, 240)}
    for q, line in enumerate(MASKS.splitlines()[1:]):
        for i in range(4):
            for k, sign in enumerate(line[13 + 16 * i:26 + 16 * i]):
                pixel = picture[150 + 22 * q + 11, 118 + (13 * 22 + 34) * i + 22 * k + 11]
                assert tuple(pixel) == colors[sign]


def test_wrong_answers_are_red(monkeypatch):
    def answer(run, images, examples):
        return [example.answer for example in examples[:-1]] + ["a wrong answer"]

    monkeypatch.setattr(figures.eval_pope, "ask", answer)
    model = SimpleNamespace(config=SimpleNamespace(image_size=64))
    sheet = figures.draw_answers((model, None, None), [make_scene(i) for i in range(4)])
    text = np.array(sheet)[276:]  # below the pictures
    red, green = (np.argwhere((text == color).all(-1)) for color in (figures.RED, figures.GREEN))
    assert len(green) > 100 and len(red) > 10
    assert (red.min(0) > (100, 3 * 292)).all()  # the last line of the last scene
