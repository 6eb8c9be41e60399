"""The pictures of the README show what the code computes."""
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import train
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


def test_masks_are_those_of_the_paper_as_text_and_as_a_picture():
    text, picture = figures.masks_as_text(), np.array(figures.draw_masks())
    assert text.startswith(MASKS) and max(map(len, text.split("\n"))) <= 80
    colors = {"█": (70, 92, 130), "▒": (240, 140, 20), "·": (235, 237, 240)}
    for q, line in enumerate(MASKS.split("\n")[1:14]):
        for i in range(4):
            for k, sign in enumerate(line[13 + 16 * i:26 + 16 * i]):
                pixel = picture[150 + 22 * q + 11, 118 + (13 * 22 + 34) * i + 22 * k + 11]
                assert tuple(pixel) == colors[sign]


def test_wrong_answers_are_red(monkeypatch):
    def answer(run, images, examples):
        return [example.answer for example in examples[:-1]] + ["\x1b[2J"]

    monkeypatch.setattr(figures.eval_pope, "ask", answer)
    model = SimpleNamespace(config=SimpleNamespace(image_size=64))
    sheet = figures.draw_answers((model, None, None), [make_scene(i) for i in range(4)])
    text = np.array(sheet)[276:]  # below the pictures
    red, green = (np.argwhere((text == color).all(-1)) for color in (figures.RED, figures.GREEN))
    assert len(green) > 100 and len(red) > 10
    assert (red.min(0) > (100, 3 * 292)).all()  # the last line of the last scene


def test_the_bold_line_is_the_median_of_the_seeds(tmp_path):
    flat = {"mma": [[(0, y), (100, y)] for y in (60, 70, 98)], "causal": [[(0, 50), (100, 50)]]}
    figures.chart(flat, tmp_path / "chart.png", "title", "steps", "percent", (40, 100))
    column = np.array(Image.open(tmp_path / "chart.png"))[:, 420].astype(int)
    rows = {y: round(490 - 414 * (y - 40) / 60) for y in (50, 70, 76, 98)}  # 40 % is row 490
    assert abs(column[rows[70]] - figures.COLORS[0]).max() < 10
    assert abs(column[rows[50]] - figures.COLORS[1]).max() < 10
    assert (column[rows[76]] == 255).all()  # the mean
    assert (column[rows[98] - 2:rows[98] + 2] < 255).any()  # a seed


@pytest.mark.parametrize("figure", ["masks", "scenes", "curves"])
def test_the_program_writes_where_it_says(tmp_path, monkeypatch, capsys, figure):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    options = train.parse([])
    run = {"row": "mma", "seed": 0, "mix": "default", "data": "world", "split": "test",
           "options": {}, "steps": options.sft_steps, "learning_rate": options.sft_lr,
           "curves": {"exist_color": [[1, 0.5]]}}
    (tmp_path / "results" / "runs.jsonl").write_text(json.dumps(run) + "\n")
    monkeypatch.setattr("sys.argv", ["figures", figure])
    figures.main()
    assert capsys.readouterr().out.endswith(f"wrote results/{figure}.png\n")
    Image.open(tmp_path / "results" / f"{figure}.png").verify()
