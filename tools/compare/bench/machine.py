"""What the machine is, and how much others used of it while we measured: figures from a busy machine are not wrong,
but whoever reads them has to know."""

import os
import pathlib
import platform
import subprocess

from originals import ROOT


def facts():
    model = "?"
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return {
        "cpus": sorted(os.sched_getaffinity(0)),
        "model": model,
        "kernel": platform.release(),
        "load_average": os.getloadavg(),
        "commit": commit(),
    }


def commit():
    def git(*words):
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain") else "")


def cpu_times():
    """Jiffies of all CPUs, by what they were for."""
    fields = pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
    return dict(zip(names, map(int, fields)))


def stood_still(before, after, seconds):
    """Seconds for which nothing ran here, not even an idle CPU's clock: a virtual machine was paused."""
    ticks = sum(after.values()) - sum(before.values())
    return max(0.0, seconds - ticks / os.sysconf("SC_CLK_TCK") / os.cpu_count())


def between(before, after):
    """Shares of the time between two readings: what the hypervisor took, and what was idle."""
    spent = {name: after[name] - before[name] for name in before}
    total = max(sum(spent.values()), 1)
    return {"steal": spent["steal"] / total, "idle": spent["idle"] / total, "nice": spent["nice"] / total}
