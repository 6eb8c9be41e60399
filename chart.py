"""A line chart with Pillow: one thick line a row, a thin one for each of its seeds, names at the lines' ends.

`compare.py` draws the learning curves with it. The colours are those of Okabe and Ito, which colour-blind
readers can tell apart; dashes tell them apart in grey, too.
"""
from PIL import Image, ImageDraw, ImageFont

COLORS = ((213, 94, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (90, 90, 90))
DASHES = ((1, 0), (14, 6), (5, 5), (14, 5, 4, 5), (24, 6), (3, 8), (9, 3))  # lengths drawn, left out, drawn, ...
INK, GRID, PAPER = (30, 30, 30), (225, 225, 225), (255, 255, 255)
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 1000, 560, 64, 210, 76, 70  # of the picture, and of its margins
SCALE = 2  # drawn larger and shrunk: smooth lines


def chart(lines, path, title, x_label, y_label, y_range):
    """Draw lines and write the picture to `path`.

    lines: dict of name -> (style, points): a number from 0 to 6, which fixes color and dashes, and a list of
    (x, [y of each seed]), sorted by x, which starts at 0; y_range: (lowest, highest).
    The thick line is the mean over the seeds. Each seed is drawn too, as a band would hide that a seed either learns or
    does not.
    """
    picture = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), PAPER)
    x_max, (low, high) = max(x for _, points in lines.values() for x, _ in points), y_range

    def at(x, y):
        """Data -> pixel."""
        return (SCALE * (LEFT + (WIDTH - LEFT - RIGHT) * x / x_max),
                SCALE * (HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (min(max(y, low), high) - low) / (high - low)))

    pen, font, small = ImageDraw.Draw(picture), ImageFont.load_default(19 * SCALE), ImageFont.load_default(16 * SCALE)
    for y in range(low, high + 1, 10):
        pen.line((at(0, y), at(x_max, y)), GRID, SCALE)
        pen.text((at(0, y)[0] - 8 * SCALE, at(0, y)[1]), str(y), INK, small, anchor="rm")
    for i in range(5):
        x = x_max * i / 4
        pen.line((at(x, low), (at(x, low)[0], at(x, low)[1] + 6 * SCALE)), INK, SCALE)
        pen.text((at(x, low)[0], at(x, low)[1] + 10 * SCALE), f"{x:.0f}", INK, small, anchor="ma")
    pen.line((at(0, low), at(x_max, low)), INK, SCALE)
    pen.text((LEFT * SCALE, 12 * SCALE), title, INK, font)
    pen.text((at(x_max / 2, low)[0], (HEIGHT - 8) * SCALE), x_label, INK, small, anchor="md")
    pen.text((LEFT * SCALE, 40 * SCALE), y_label, INK, small)

    for style, points in lines.values():
        pale = tuple((255 + part) // 2 for part in COLORS[style])
        for seed in range(len(points[0][1])):
            pen.line([at(x, ys[seed]) for x, ys in points], pale, SCALE, joint="curve")
    ends = []
    for name, (style, points) in lines.items():
        color = COLORS[style]
        means = [at(x, sum(ys) / len(ys)) for x, ys in points]
        dashed(pen, means, color, [SCALE * d for d in DASHES[style]])
        ends.append((means[-1][1], name, color, means[-1]))
    below = 0
    for y, name, color, end in sorted(ends):  # names move down where they would lie on each other
        below = max(y, below + 21 * SCALE)
        x = (WIDTH - RIGHT + 22) * SCALE
        pen.line((end, (x - 4 * SCALE, below)), color, SCALE)
        pen.text((x, below), name, color, font, anchor="lm")
    picture.resize((WIDTH, HEIGHT), Image.LANCZOS).save(path, optimize=True)
    print(f"wrote {path}")


def dashed(pen, points, color, dash):
    """A line through points (pixels) that is drawn and left out in turn; dash: lengths in pixels."""
    if not any(dash[1::2]):
        pen.line(points, color, 3 * SCALE, joint="curve")
        return
    turn, left = 0, dash[0]
    for (x0, y0), (x1, y1) in zip(points, points[1:]):
        length = max(((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5, 1e-9)
        done = 0.0
        while done < length:
            step = min(left, length - done)
            if turn % 2 == 0:
                a, b = done / length, (done + step) / length
                pen.line((x0 + a * (x1 - x0), y0 + a * (y1 - y0), x0 + b * (x1 - x0), y0 + b * (y1 - y0)),
                         color, 3 * SCALE)
            done, left = done + step, left - step
            if left <= 0:
                turn += 1
                left = dash[turn % len(dash)]
