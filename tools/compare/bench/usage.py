"""What a process and all its descendants hold and use, from /proc: a proxy is whatever it starts, not its first process.

CPU time inside a measured window is pdload's to read, at the window's very ends; here it is read for loads that are not
pdload, and memory is read for all."""

import os
import pathlib
import time


def tree(root):
    """The process and its descendants."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                text = pathlib.Path(f"/proc/{entry}/stat").read_text()
                parents[int(entry)] = int(text.rpartition(")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                pass  # gone meanwhile
    found, grown = {root}, True
    while grown:
        new = {pid for pid, parent in parents.items() if parent in found} - found
        grown = bool(new)
        found |= new
    return sorted(found)


def cpu_s(roots):
    """CPU seconds of all threads, ended ones included: the processes' own clocks, exact to the nanosecond."""
    total = 0.0
    for pid in {pid for root in roots for pid in tree(root)}:
        try:
            # How the kernel numbers the clock of a process: clock_getcpuclockid(3).
            total += time.clock_gettime((~pid << 3) | 2)
        except OSError:
            pass
    return total


def kib(roots, field):
    """The sum of a field of /proc/PID/status, such as VmRSS or VmHWM."""
    total = 0
    for pid in {pid for root in roots for pid in tree(root)}:
        try:
            for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith(field + ":"):
                    total += int(line.split()[1])
        except OSError:
            pass
    return total


def forget_peak(roots):
    """VmHWM starts again at what is held now."""
    for pid in {pid for root in roots for pid in tree(root)}:
        try:
            pathlib.Path(f"/proc/{pid}/clear_refs").write_text("5")
        except OSError:
            pass
