"""Processes that are pinned, and that die with us: an interrupted run must leave nothing behind that listens."""

import ctypes
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import tempfile

from . import usage


class Process:
    def __init__(self, lab, name, command, cpus, environment=None, cwd=None):
        self.log = lab.folder / f"{name}.{len(lab.processes)}.log"
        self.command = [str(part) for part in command]

        def begin():
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)
            os.sched_setaffinity(0, cpus)

        clean = {key: value for key, value in os.environ.items() if not key.endswith("_API_KEY")}
        with open(self.log, "wb") as out, open(f"{self.log}.err", "wb") as err:
            self.child = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**clean, **(environment or {})},
                cwd=cwd,
                preexec_fn=begin,
            )
        self.pid = self.child.pid
        lab.processes.append(self)

    def alive(self):
        return self.child.poll() is None

    def text(self):
        return self.log.read_text(errors="replace")

    def errors(self):
        return pathlib.Path(f"{self.log}.err").read_text(errors="replace")

    def kill(self):
        # Children first learn of it when they are killed themselves: nginx's workers outlive their master.
        for pid in reversed(usage.tree(self.pid)):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.child.wait()

    def stop(self, seconds=3):
        if self.alive():
            self.child.terminate()
        try:
            self.child.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()


class Lab:
    """A folder, processes, and the CPUs: the proxy's and everybody else's."""

    def __init__(self, binaries, proxy_cpus, load_cpus, base):
        self.bin, self.proxy_cpus, self.load_cpus, self.base = binaries, proxy_cpus, load_cpus, base
        self.processes = []
        _, self.files = resource.getrlimit(resource.RLIMIT_NOFILE)
        # More than anyone's arrays of descriptors are made for helps nobody.
        self.files = min(self.files if self.files > 0 else 1 << 20, 1 << 20)
        resource.setrlimit(resource.RLIMIT_NOFILE, (self.files, self.files))

    def __enter__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="pdrelay-peers-"))
        return self

    def __exit__(self, *_):
        for process in reversed(self.processes):
            if process.alive():
                process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
