"""Lines over time as SVG, with nothing but text formatting."""

from collections import namedtuple

Panel = namedtuple("Panel", "name values note")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, GAP = 860, 170, 70, 20, 46, 46


def draw(title, seconds, panels):
    total = TOP + len(panels) * (HEIGHT + GAP)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{total}" viewBox="0 0 {WIDTH} {total}" '
        'font-family="sans-serif" font-size="12">',
        # Pages that show it may be dark.
        f'<rect width="{WIDTH}" height="{total}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="15">{title}</text>',
    ]
    for index, panel in enumerate(panels):
        out += one(panel, seconds, TOP + index * (HEIGHT + GAP))
    return "\n".join([*out, "</svg>", ""])


def one(panel, seconds, top):
    # From zero: what is flat must look flat, and what grows must not hide behind a cut axis.
    high = nice(max(panel.values) * 1.1)
    span = max(seconds[-1], 1.0)
    x = lambda t: LEFT + (WIDTH - LEFT - RIGHT) * t / span
    y = lambda v: top + HEIGHT - HEIGHT * v / high
    note = f' <tspan fill="#777">{panel.note}</tspan>' if panel.note else ""
    out = [f'<text x="{LEFT}" y="{top - 6}">{panel.name}{note}</text>']
    for part in range(5):
        value = high * part / 4
        out.append(f'<path d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        out.append(f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    step = 60 if span > 120 else 10
    for second in range(0, int(span) + 1, step):
        label = f"{second // 60} min" if step == 60 else f"{second} s"
        out.append(f'<text x="{x(second):.1f}" y="{top + HEIGHT + 16}" text-anchor="middle" fill="#777">{label}</text>')
    points = " ".join(f"{x(t):.1f},{y(v):.1f}" for t, v in zip(seconds, panel.values))
    out.append(f'<polyline points="{points}" fill="none" stroke="#1f5fbf" stroke-width="1.3"/>')
    return out


def nice(value):
    """The next round number above, so that its quarters are round, too."""
    scale = 1.0
    while scale * 10 < value:
        scale *= 10
    while True:
        for factor in (1, 2, 4, 6, 8, 10):
            if factor * scale >= value:
                return factor * scale
        scale *= 10
