"""The benchmark measures what it says, on a very small model."""
from driving import TINY
from extras import bench


def test_functions_are_timed_alternately_and_figures_are_medians():
    order = []
    seconds = bench.alternately([lambda: order.append("a"), lambda: order.append("b")], 3, warmup=1)
    assert order == ["a", "b"] * 4 and seconds.shape == (2, 3)
    assert [*bench.row("speed", [3.0, 1.0, 2000.0]).values()] == ["speed", "3 (1 to 2,000)"]


def test_every_figure_is_printed(monkeypatch, capsys):
    monkeypatch.setattr(bench, "NEW", 2)
    monkeypatch.setattr(bench, "STEPS", 1)
    monkeypatch.setattr("sys.argv", ["bench", "--", *TINY])
    bench.main()
    printed = capsys.readouterr().out
    for figure in ("pretrain: steps per second", "sft: steps per second", "mma / causal",
                   "batch of 1: tokens per second", "batch of 64: tokens per second"):
        [line] = [line for line in printed.split("\n") if figure in line]
        assert float(line.split("|")[2].split()[0].replace(",", "")) > 0
