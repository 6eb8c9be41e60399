"""The pictures of the README show what the code computes."""
from pathlib import Path

import numpy as np
from PIL import Image

import driving
from data import Example, read_lines
from driving import write_lines
from extras import compare, figures, sound
from train import load

ROOT = Path(figures.__file__).parent.parent


def test_the_sheet_in_results_is_what_the_models_in_results_answer(monkeypatch):
    monkeypatch.setattr("train.autocast", driving.SMALL["autocast"])  # float32 everywhere
    runs = [load(ROOT / f"results/{name}.pt") for name in ("causal", "mma")]
    sheet, words = figures.draw_sheet(*runs)
    shown = Image.open(ROOT / "results/answers.png")
    assert sheet.size == shown.size, "draw it anew: python -m extras.figures CAUSAL MMA --ship"
    # Another processor rounds otherwise, and another Pillow may draw letters otherwise.
    assert np.abs(np.float32(sheet) - np.float32(shown)).mean() < 1


def test_of_six_photographs_as_many_are_answered_wrongly_as_of_all_and_all_kinds_are_shown():
    examples = [Example(i, f"{kind} {i}", answer, kind) for i in range(60)
                for kind, answer in (("exist", "yes"), ("exist", "no"), ("color", "red"))]
    for n, shown in ((0, 0), (1, 1), (60, 2), (179, 5), (180, 6)):
        texts = {e: "?" if i < n else e.answer for i, e in enumerate(examples)}
        chosen = figures.choose_six([texts, texts])
        assert sum(texts[e] != e.answer for e in chosen) == shown
        assert len({e.picture for e in chosen}) == 6 and len({e.answer for e in chosen}) == 3


def test_a_sheet_of_your_own_pictures_lies_beside_the_run(tiny, folder, monkeypatch, capsys):
    lines = [{"image": f"{i}.png", "objects": [["cat"], ["cup"]][i % 2]} for i in range(200, 220)]
    write_lines(folder / "train.jsonl", lines)
    write_lines(folder / "test.jsonl", lines[:12])
    tiny("--data", folder, "--name", "one", "--image-size", 32).train()
    tiny("--data", folder, "--name", "two", "--seed", 1).train()
    monkeypatch.setattr("sys.argv", ["figures", "runs/one", "runs/two/model.pt"])
    figures.main()
    assert "wrote runs/one/answers.png: 6 pictures" in capsys.readouterr().out
    sheet = Image.open("runs/one/answers.png")
    assert sheet.getpixel((140, 260))[0] in range(200, 212) and not Path("results").exists()


def test_a_circle_is_drawn_per_run_at_its_accuracy(monkeypatch):
    runs = [("causal", 0.05, 0.6), ("causal", 0.05, 0.75), ("causal", 0.05, 0.8),
            ("causal", 0.02, 0.9),  # not the first rate of this row
            ("mma", 0.02, 1.0)]
    lines = [(None, dict(zip(("row", "rate", "accuracy"), run))) for run in runs]
    monkeypatch.setattr(figures, "read_lines", {"results/kept-decoder.jsonl": lines}.get)
    monkeypatch.setattr(figures, "SETTINGS", {"kept-decoder": figures.SETTINGS["kept-decoder"]})
    strip = np.array(figures.draw_strips())[:63, 300:]
    columns = (strip == figures.COLORS[0]).all(-1).any(0).nonzero()[0] + 300
    assert {*columns} == {*range(455, 466), *range(695, 706), *range(775, 786)}  # 16 per percent


def test_the_first_rate_of_a_row_in_results_is_its_best():
    for name, (_, *rows) in figures.SETTINGS.items():
        best = (sound if name == "sound" else compare).ROWS
        lines = [line for _, line in read_lines(ROOT / f"results/{name}.jsonl")]
        for row in rows:
            assert next(line["rate"] for line in lines if line["row"] == row) == best[row].rate
