"""Rounds become one Markdown page: medians with their spread, what was added over no proxy at all, and the ratios that are
promised. A figure that was measured through errors is not shown as one."""

from statistics import median

ROUTERS = ("vllm-router", "sglang-router", "smg")
# They go to D alone: no prefill, and one hop where all others have two.
ONE_HOP = ("nginx", "haproxy")
SINGLE = "that of one hop (the better of nginx and HAProxy)"
PARTS = ("p50", "p99", "p999")


class Rows:
    """All rounds' rows, by load and proxy."""

    def __init__(self, rows):
        self.rows, self.cells, self.peers = {}, [], []
        for row in rows:
            key = (row["cell"], row["peer"])
            self.rows.setdefault(key, []).append(row)
            for name, known in ((row["cell"], self.cells), (row["peer"], self.peers)):
                if name not in known:
                    known.append(name)

    def of(self, cell, peer):
        return self.rows.get((cell, peer), [])

    def errors(self, cell, peer):
        return [row["error"] for row in self.of(cell, peer) if "error" in row]

    def values(self, cell, peer, field):
        """Over the rounds, but only if none of them failed."""
        if self.errors(cell, peer):
            return []
        return [row[field] for row in self.of(cell, peer) if row.get(field) is not None]

    def mid(self, cell, peer, field):
        values = self.values(cell, peer, field)
        return median(values) if values else None

    def added(self, cell, peer, what, part):
        """This percentile through the proxy less the same one without, round by round, in milliseconds."""
        direct = {row["round"]: row for row in self.of(cell, "direct") if what in row and "error" not in row}
        if self.errors(cell, peer):
            return None
        found = [
            (row[what][part] - direct[row["round"]][what][part]) / 1e3
            for row in self.of(cell, peer)
            if what in row and row["round"] in direct
        ]
        return median(found) if found else None

    def lumps(self, cell, peer):
        """Do most tokens of this proxy's streams come with the one before?"""
        return any(row["itl"]["p50"] == 0 for row in self.of(cell, peer) if "itl" in row)


def number(value, digits=1):
    return "-" if value is None else f"{value:,.{digits}f}"


def spread(values, digits=1):
    if not values:
        return "-"
    return f"**{median(values):,.{digits}f}** ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def line(cells):
    return "| " + " | ".join(cells) + " |"


def matrix(rows):
    """Loads by proxies, CPU time: the table for a README."""
    peers = [peer for peer in rows.peers if peer != "direct"]
    out = [line(["CPU us per", *peers]), line(["---", *["--:"] * len(peers)])]
    for cell in rows.cells:
        unit = next(row["unit"] for peer in rows.peers for row in rows.of(cell, peer))
        values = []
        for peer in peers:
            if rows.errors(cell, peer):
                values.append("errors")
            else:
                values.append(number(rows.mid(cell, peer, "cpu_us")))
        out.append(line([f"{unit}: {cell}", *values]))
    return out


def full(rows, versions):
    """Every row with everything: one line per load and proxy."""
    head = ["load", "proxy", "CPU us (spread)", "per", "requests/s", "proxy CPUs", "load busy"]
    head += ["added TTFT ms p50, p99, p99.9", "added ITL ms p50, p99, p99.9", "rounds", "steal"]
    out = [line(head), line(["---", "---", "--:", "---", "--:", "--:", "--:", "--:", "--:", "--:", "--:"])]
    for cell in rows.cells:
        for peer in rows.peers:
            found = rows.of(cell, peer)
            if not found:
                continue
            name = f"{peer} {versions.get(peer, {}).get('version', '')}".strip()
            errors = rows.errors(cell, peer)
            if errors:
                text = errors[0].replace("|", "/").replace("\n", " ")[:160]
                out.append(line([cell, name, f"FAILED: {text}", *["-"] * 6, str(len(found)), "-"]))
                continue
            added = [
                ", ".join(number(rows.added(cell, peer, what, part), 2) for part in PARTS)
                if any(what in row for row in found) and peer != "direct"
                else "-"
                for what in ("ttft", "itl")
            ]
            steal = max(row.get("steal", 0.0) for row in found)
            out.append(
                line(
                    [
                        cell,
                        name,
                        spread(rows.values(cell, peer, "cpu_us")),
                        found[0]["unit"],
                        number(rows.mid(cell, peer, "requests_per_s"), 0),
                        number(rows.mid(cell, peer, "cores"), 2),
                        number(rows.mid(cell, peer, "load_busy"), 2),
                        *added,
                        str(len(found)),
                        f"{steal * 100:.0f} %",
                    ]
                )
            )
    return out


def memory(result):
    out = [line(["proxy", "RSS at rest, MB", "idle streams", "KiB per idle stream"]), line(["---", "--:", "--:", "--:"])]
    for row in result["idle"]:
        per = "FAILED: " + row["error"][:100].replace("\n", " ") if "error" in row else number(row["kib_per_stream"], 2)
        out.append(line([row["peer"], number(row["rest_kib"] / 1024), str(row["streams"]), per]))
    return out


def peaks(rows):
    out = [line(["load", "proxy", "peak RSS over rest, MB per request in flight"]), line(["---", "---", "--:"])]
    for cell in rows.cells:
        for peer in rows.peers:
            value = rows.mid(cell, peer, "peak_over_rest_mb_per_request")
            if value is not None and peer != "direct":
                out.append(line([cell, peer, number(value)]))
    return out if len(out) > 2 else []


def bench(result):
    head = ["proxy", "CPU us per request", "per chunk", "TTFT ms p50, p99", "ITL ms p50, p99", "rounds"]
    out = [line(head), line(["---", "--:", "--:", "--:", "--:", "--:"])]
    by_peer = {}
    for row in result["bench"]:
        by_peer.setdefault(row["peer"], []).append(row)
    for peer, rows in by_peer.items():
        failed = next((row["error"] for row in rows if "error" in row), None)
        if failed:
            out.append(line([peer, "FAILED: " + failed[-120:].replace("\n", " "), "-", "-", "-", str(len(rows))]))
            continue

        def mid(get):
            return median(get(row) for row in rows)

        latency = [
            ", ".join(number(mid(lambda row: row[what][part]) / 1e3) for part in ("p50", "p99")) for what in ("ttft", "itl")
        ]
        us = "-" if peer == "direct" else spread([row["cpu_us"] for row in rows], 0)
        chunk = "-" if peer == "direct" else number(mid(lambda row: row["cpu_us_per_chunk"]))
        out.append(line([peer, us, chunk, *latency, str(len(rows))]))
    return out


class Promise:
    """One line of what is promised: pdrelay's figure over somebody else's, and what it may be at most."""

    def __init__(self, text, measured, limit):
        self.text, self.measured, self.limit = text, measured, limit

    def line(self):
        kept = "yes" if self.measured <= self.limit else "**no**"
        return line([self.text, f"{self.limit:.3g}", f"{self.measured:.3g}", kept])


def ratio(rows, cell, others, field="cpu_us"):
    ours = rows.mid(cell, "pdrelay", field)
    theirs = [value for value in (rows.mid(cell, other, field) for other in others) if value]
    return ours / min(theirs) if ours and theirs else None


def promises(result):
    rows = Rows(result["rows"])
    out = []
    for count in (64, 512):
        cell = f"1 KB, c={count}"
        out.append(Promise(f"{cell}: over the best router", ratio(rows, cell, ROUTERS), 1 / 6))
        out.append(Promise(f"{cell}: over xPyD-proxy", ratio(rows, cell, ["xpyd-proxy"]), 1 / 120))
        out.append(Promise(f"{cell}: over two nginx hops", ratio(rows, cell, ["nginx x2"]), 0.9))
        out.append(Promise(f"{cell}: over two HAProxy hops", ratio(rows, cell, ["haproxy x2"]), 0.9))
    for base in ("64 streams at 5 ms", "64 streams of 16 chunks at 5 ms", "1000 streams at 50 ms"):
        for phase in ("lockstep", "staggered"):
            cell = f"{base}, {phase}"
            out.append(Promise(f"{cell}, per chunk: over the best router", ratio(rows, cell, ROUTERS), 1 / 3))
            out.append(Promise(f"{cell}, per chunk: over one nginx hop", ratio(rows, cell, ["nginx"]), 1.0))
    for what in ("text", "image"):
        cell = f"4 MB {what}, c=4"
        out.append(Promise(f"{cell}: over the best router", ratio(rows, cell, ROUTERS), 1 / 6))
        peak = rows.mid(cell, "pdrelay", "peak_over_rest_mb_per_request")
        out.append(Promise(f"{cell}: peak RSS, MB per request in flight", peak, 6.0))
    cell = "first token, 1 KB, c=2000"
    stages = [peer for peer in rows.peers if peer in (*ROUTERS, "xpyd-proxy")]
    for part in ("p50", "p99"):
        out.append(Promise(f"{cell}: added TTFT {part} over the best router's", added(rows, cell, stages, "ttft", part), 1.0))
        out.append(Promise(f"{cell}: added TTFT {part} over {SINGLE}", added(rows, cell, ONE_HOP, "ttft", part), 1.0))
    for cell in rows.cells:
        if " streams " in cell:
            out.append(Promise(f"{cell}: added ITL p99.9 over the best router's", added(rows, cell, stages, "itl", "p999"), 1.0))
            out.append(Promise(f"{cell}: added ITL p99.9 over {SINGLE}", added(rows, cell, ONE_HOP, "itl", "p999"), 1.0))
    per = next((row["kib_per_stream"] for row in result["idle"] if row["peer"] == "pdrelay" and "error" not in row), None)
    out.append(Promise("idle stream, KiB of RSS", per, 8.0))
    for count in (64, 512):
        cell = f"1 KB, c={count}"
        two, one = rows.mid(cell, "pdrelay, 2 shards", "cpu_us"), rows.mid(cell, "pdrelay", "cpu_us")
        out.append(Promise(f"{cell}: two shards over one", two / one if two and one else None, 1.05))
    return out


def added(rows, cell, others, what, part):
    ours = rows.added(cell, "pdrelay", what, part)
    if what == "itl":
        # Who holds tokens back and gives them in lumps has none between most of them.
        others = [other for other in others if not rows.lumps(cell, other)]
    theirs = [value for value in (rows.added(cell, other, what, part) for other in others) if value is not None]
    if ours is None or not theirs:
        return None
    best = max(min(theirs), 0.001)
    return max(ours, 0.0) / best


def flags(name, peer):
    does = "one hop to D" if peer["hops"] == 1 else "two hops in a row, to D"
    if peer["stages"]:
        # As its answers showed, where they were checked.
        does = "asks P and D, hands no KV over" if peer.get("hands_kv_over") is False else "asks P, then D with P's KV"
    return f"* {name} {peer['version']} ({does}): `{peer['flags']}`"


def page(result):
    machine, rows = result["machine"], Rows(result["rows"])
    average = " ".join(f"{value:.2f}" for value in machine["load_average"])
    out = [
        f"`{result['command']}`, {result['date']}, commit {machine['commit']}; {result['rounds']} interleaved rounds, medians.",
        "",
        f"{machine['model']}, kernel {machine['kernel']}; proxy on CPUs {result['proxy_cpus']}, engines and load on "
        f"{result['load_cpus']}. Load average before: {average}; the hypervisor took at most "
        f"{max([row.get('steal', 0) for row in result['rows']], default=0) * 100:.1f} % in any window.",
        "",
        *matrix(rows),
    ]
    for title, part in (
        ("What is promised", [line(["promise", "at most", "measured", "kept"]), line(["---", "--:", "--:", "---"])]
         + [promise.line() for promise in promises(result) if promise.measured is not None]),
        ("Memory", memory(result) if result["idle"] else []),
        ("Peak memory of large bodies", peaks(rows)),
        ("`vllm bench serve`", bench(result) if result["bench"] else []),
        ("All rows", full(rows, result["peers"])),
        ("Versions and flags", [flags(name, peer) for name, peer in result["peers"].items() if peer["flags"]]),
    ):
        if part:
            out += ["", f"### {title}", "", *part]
    if result["wrong"]:
        out += ["", "### Wrong answers", "", *[f"* {text}" for text in result["wrong"]]]
    return "\n".join(out) + "\n"
