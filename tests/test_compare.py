"""The comparison: every row trained once, from the same start, on the same data; and the README shows its figures."""
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import chart
import compare
import runs
import train
from mma import IMAGE, TEXT, attention_mask
from test_train import SMALL

ROOT = Path(compare.__file__).parent
TINY = ["--pretrain-steps", "4", "--sft-steps", "4", "--val-scenes", "8", "--device", "cpu", "--batch-size", "8"]


@pytest.fixture
def in_small_world(tmp_path, monkeypatch):
    monkeypatch.setitem(train.PRESETS, "tiny", SMALL)
    monkeypatch.chdir(tmp_path)


def test_a_line_of_a_chart_has_the_color_of_its_style_and_a_thin_line_for_each_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(chart, "SCALE", 1)  # not shrunk: pure colors
    chart.chart({"a": (0, [(0, [45, 95]), (10, [45, 95])])}, tmp_path / "chart.png", "", "", "", (40, 100))
    with Image.open(tmp_path / "chart.png") as picture:
        column = [picture.getpixel((chart.LEFT + 100, y)) for y in range(chart.TOP, chart.HEIGHT - chart.BOTTOM)]
    middle = [y / len(column) for y, color in enumerate(column) if color == chart.COLORS[0]]
    assert len(middle) == 3 and 100 - 60 * middle[1] == pytest.approx(70, abs=0.5)  # thick: the mean
    pale = [y / len(column) for y, color in enumerate(column) if color == tuple((255 + c) // 2 for c in chart.COLORS[0])]
    assert [100 - 60 * y for y in pale] == pytest.approx([95, 45], abs=0.5)


def test_a_row_has_the_same_style_in_both_pictures(tmp_path, monkeypatch):
    results, drawn = json.loads((ROOT / "results" / "results.json").read_text()), []
    monkeypatch.setattr(compare, "chart", lambda lines, *_: drawn.append({name: style for name, (style, _) in lines.items()}))
    compare.write(results, tmp_path)
    main, long = drawn
    assert set(main) == set(compare.ROWS) and len(set(main.values())) == len(main)
    assert long == {name: main[name] for name in compare.LONG_ROWS}


def test_a_comparison_trains_every_row_once_and_writes_its_tables(in_small_world, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare.py", "--seeds", "2", "--scenes", "5", "--", *TINY])
    compare.main()
    printed = capsys.readouterr().out
    assert "comparison: equal in every row: 4 steps" in printed and "3 times as long: equal in every row: 12 steps" in printed
    results = json.loads(Path("results/results.json").read_text())
    assert list(results["main"]) == list(compare.ROWS) and list(results["long"]) == list(compare.LONG_ROWS)
    assert all(set(row) == {"0", "1"} for row in results["main"].values())
    table = Path("results/table.md").read_text()
    assert table == compare.tables(results) and table in printed
    first = table.split("\n\n")[1].splitlines()
    assert [line.split("|")[1].strip() for line in first[2:]] == list(compare.ROWS)
    mma = results["main"]["mma"]
    mean = sum(100 * mma[seed]["pope"]["popular"]["accuracy"] for seed in "01") / 2
    assert first[-1].split("|")[3].split()[0] == f"{mean:.1f}"
    assert results["main"]["causal text-first"] != results["main"]["causal"]
    for curves in ("curves.png", "curves-long.png"):
        with Image.open(f"results/{curves}") as picture:
            assert picture.size == (chart.WIDTH, chart.HEIGHT)

    trained = compare.pretrained(0, TINY, "pretrain-mma", compare.PRETRAINING["mma"])  # there is no question to open
    for name, weight in runs.load(trained)[0].state_dict().items():
        assert torch.equal(weight, runs.load("runs/compare-pretrain-seed0")[0].state_dict()[name]), name

    monkeypatch.setattr(train, "set_up", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(compare, "TestSet", None)  # nor asked again
    compare.main()
    assert json.loads(Path("results/results.json").read_text()) == results
    Path("runs").rename("away")  # what was measured elsewhere is taken from its results
    monkeypatch.setattr(sys, "argv", [*sys.argv[:1], "--known", "results/results.json", *sys.argv[1:]])
    compare.main()
    assert json.loads(Path("results/results.json").read_text()) == results


def test_rows_that_are_not_comparable_are_refused(in_small_world):
    row = {"steps": 4, "data": 123, "parameters": 9}
    compare.check_equal({"causal": {"0": row}, "mma": {"0": row}}, "comparison")
    for key in row:
        with pytest.raises(ValueError, match=f"seed 0: the rows are not comparable, their {key} differ"):
            compare.check_equal({"causal": {"0": row}, "mma": {"0": {**row, key: 5}}}, "comparison")
    with pytest.raises(ValueError, match="the seeds are not comparable, their steps differ"):
        compare.check_equal({"mma": {"0": row, "1": {**row, "steps": 5}}}, "comparison")
    compare.check_equal({"mma": {"0": row, "1": {**row, "data": 5}}}, "comparison")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff", b'{"main": {}}'])
def test_a_file_of_known_results_that_is_none_is_named(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match="x.json: no results.json of this program"):
        compare.read_results(tmp_path / "x.json")


def test_runs_of_other_options_are_not_taken_for_rows(in_small_world):
    compare.pretrained(0, TINY)
    with pytest.raises(ValueError, match="trained with pretrain_steps 4, not 5; move that folder away"):
        compare.pretrained(0, [*TINY[2:], "--pretrain-steps", "5"])


def test_the_order_of_the_data_has_a_fingerprint(in_small_world):
    options = ["--val-scenes", "4", "--device", "cpu"]
    first, same, other = (train.set_up(train.parse([*options, "--seed", seed])).batches["sft"] for seed in "001")
    assert first.fingerprint(9) == same.fingerprint(9) != other.fingerprint(9)
    assert first.fingerprint(9) != first.fingerprint(8)


def test_the_wrong_mask_leaks_the_caption_and_the_right_ones_do_not(in_small_world):
    modality = torch.tensor([[TEXT, IMAGE, IMAGE, TEXT, TEXT]])
    generated = torch.tensor([[False, False, False, True, True]])
    wrong = compare.caption_taken_for_a_prompt(modality, generated, "causal")[0, 0]
    assert wrong[1, 3] and wrong[2, 4] and not wrong[3, 4]  # image tokens see the caption, the caption is causal
    for kind in ("causal", "mma"):
        assert not attention_mask(modality, generated, kind)[0, 0][:3, 3:].any()

    trainer = train.set_up(train.parse(["--val-scenes", "4", "--device", "cpu", "--float32"]))
    batch, changed = trainer.examples["pretrain"].batch([0]), trainer.examples["pretrain"].batch([0])
    changed.ids[0, -1] += 1  # the last token of the caption
    torch.nn.init.normal_(trainer.model.blocks[0].attention.out.weight)  # at the start every block is the identity
    torch.nn.init.normal_(trainer.model.blocks[1].attention.out.weight)

    def earlier(b):
        inputs = {name: value for name, value in b.inputs().items() if name != "labels"}
        return trainer.model(**inputs, kind="causal")[0][0, :-1]

    assert torch.equal(earlier(batch), earlier(changed))
    for _, attribute, value in compare.PRETRAINING["image tokens see the caption (wrong)"]:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(compare.model, attribute, value)
            assert not torch.allclose(earlier(batch), earlier(changed))


def test_spreads_say_how_many_seeds_reached_something():
    assert compare.spread([1.0, 3.0]) == "2.0 ± 1.4" and compare.spread([2.0]) == "2.0"
    assert compare.spread([None, None]) == "not reached"
    assert compare.spread([100, None], "{:.0f}") == "not reached (100 in 1 of 2 seeds)"


def test_the_readme_shows_the_figures_of_the_committed_results():
    """Both tables are those of results.json, and every figure in the text around them stands in a table."""
    results = json.loads((ROOT / "results" / "results.json").read_text())
    table, readme = (ROOT / "results" / "table.md").read_text(), (ROOT / "README.md").read_text()
    assert table == compare.tables(results)
    for part in table.strip().split("\n\n"):
        assert part in readme, f"the README lacks this part of results/table.md:\n{part[:300]}"
    section = readme.split("## What comes out")[1].split("\n## ")[0]
    text = "\n".join(line for line in section.splitlines() if not line.startswith("|"))
    for figure in re.findall(r"\d+\.\d+", text):
        assert re.search(rf"(?<![\d.]){re.escape(figure)}(?!\d)", table), f"{figure} stands in no table"
