"""Bars from a result's JSON, as PNG. Run by an interpreter that has matplotlib: `chart.py RESULT.json FOLDER`."""

import json
import pathlib
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from bench.table import Rows  # noqa: E402

OURS, OTHERS = "#1f5fbf", ["#8fa6c4", "#a9b8c9", "#c9b48f", "#d8c9a9", "#b98f8f", "#c4a0a0", "#d0b6b6", "#999999", "#bbbbbb"]


def bars(axis, rows, cells, value, unit):
    """Groups of bars, one group a load; logarithmic, since the peers differ by factors."""
    peers = [peer for peer in rows.peers if peer != "direct"]
    colours = dict(zip([peer for peer in peers if not peer.startswith("pdrelay")], OTHERS))
    width = 0.85 / max(len(peers), 1)
    for index, peer in enumerate(peers):
        places, heights = [], []
        for at, cell in enumerate(cells):
            height = value(cell, peer)
            if height is not None and height > 0:
                places.append(at - 0.425 + width * (index + 0.5))
                heights.append(height)
        shade = OURS if peer == "pdrelay" else "#6f9fdf" if peer.startswith("pdrelay") else colours[peer]
        axis.bar(places, heights, width, label=peer, color=shade)
        for place, height in zip(places, heights):
            axis.text(place, height, f"{height:,.3g}", ha="center", va="bottom", fontsize=6, rotation=90)
    axis.set_xticks(range(len(cells)), cells, fontsize=8, rotation=12, ha="right")
    axis.set_yscale("log")
    axis.margins(y=0.15)
    axis.set_ylabel(unit)
    axis.grid(axis="y", alpha=0.3)
    axis.legend(fontsize=7, ncol=5, loc="upper left", bbox_to_anchor=(0, 1.2))


def save(path, draw):
    figure, axis = plt.subplots(figsize=(11, 4.6), dpi=110)
    draw(axis)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
    print(path)


def main(result, folder):
    rows = Rows(result["rows"])
    units = {cell: row["unit"] for cell in rows.cells for peer in rows.peers for row in rows.of(cell, peer)}
    of = {unit: [cell for cell in rows.cells if units[cell] == unit] for unit in ("request", "chunk")}

    def cpu(cell, peer):
        return rows.mid(cell, peer, "cpu_us")

    small = [cell for cell in of["request"] if "MB" not in cell]
    large = [cell for cell in of["request"] if "MB" in cell]
    for name, cells, unit in (
        ("cpu-per-request", small, "CPU us per request"),
        ("cpu-large-bodies", large, "CPU us per request"),
        ("cpu-per-chunk", of["chunk"], "CPU us per chunk"),
    ):
        if cells:
            save(folder / f"{name}.png", lambda axis: bars(axis, rows, cells, cpu, unit))
    for what, part in (("ttft", "p99"), ("itl", "p999")):
        cells = [cell for cell in rows.cells if any(rows.added(cell, peer, what, part) for peer in rows.peers if peer != "direct")]
        if cells:
            title = f"added {what.upper()} {'p99.9' if part == 'p999' else part}, ms"
            value = lambda cell, peer: rows.added(cell, peer, what, part)  # noqa: E731
            save(folder / f"added-{what}.png", lambda axis: bars(axis, rows, cells, value, title))
    if small:
        rate = lambda cell, peer: rows.mid(cell, peer, "requests_per_s")  # noqa: E731
        save(folder / "throughput.png", lambda axis: bars(axis, rows, small, rate, "requests/s"))
    if result["idle"]:

        def memory(axis):
            found = [row for row in result["idle"] if "error" not in row]
            axis.bar([row["peer"] for row in found], [row["kib_per_stream"] for row in found], color=OTHERS[0])
            axis.set_ylabel("KiB of RSS per idle stream")

        save(folder / "memory.png", memory)


if __name__ == "__main__":
    main(json.loads(pathlib.Path(sys.argv[1]).read_text()), pathlib.Path(sys.argv[2]))
