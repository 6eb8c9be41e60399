"""`python mma.py`, `python data.py` and `python model.py` show what the code computes."""
from pathlib import Path

import numpy as np
from PIL import Image

import data
import mma
import model
import train

ROOT = Path(mma.__file__).parent


def test_mma_draws_the_mask_of_the_documentation(capsys):
    mma.main()
    drawn = [line.split() for line in capsys.readouterr().out.splitlines()]
    after = {name: drawn.index([f"{name}:"]) + 1 for name in mma.KINDS}
    documented = [line.split()[:14] for line in mma.__doc__.splitlines() if "# " in line]
    assert drawn[after["mma"]:][:13] == documented
    hidden = [["." if sign == "o" else sign for sign in line] for line in documented]
    assert drawn[after["causal"]:][:13] == hidden


def test_data_shows_a_scene_its_texts_and_a_row_of_a_batch(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data.main()
    out = capsys.readouterr().out
    scene = data.make_scene(0)
    assert data.caption(scene) in out and out.count("<image>") == 16
    question, answer, _ = next(data.questions_about([scene], 0))[0]
    assert f"{question} {answer}\n" in out and out.endswith("<eos>  <- must be generated\n")
    assert np.array_equal(np.array(Image.open("scene.png"))[4::8, 4::8], data.draw(scene))


def test_model_walks_a_question_through_every_stage_with_the_shapes_of_the_real_model(
        monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    model.main()
    head, _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:len(model.STAGES)]] == [*model.STAGES]
    assert "(1, 64, 64, 3)    -> (1, 16, 128)" in lines[2] and lines[2].startswith("vit ")
    network, tokenizer, _ = train.load("results/mma.pt")
    [example, *_] = data.make_world("test", 1).questions
    dataset = data.Dataset([example], data.make_world("test", 1).images, tokenizer, network.config)
    assert example.prompt in head and lines[-1].endswith(f"{train.answer(network, dataset)[0]!r}.")
