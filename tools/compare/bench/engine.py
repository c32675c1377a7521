"""The engines that every proxy stands in front of: one prefill and one decode engine of pdsim, on the load's CPUs."""

import re
import signal
import subprocess
import time

from .run import Process

MODEL = "dummy"


class Engines:
    def __init__(self, lab, base, flags, apart=False):
        """`flags` set the pace. `apart`: only that of D, in a process of its own; P is instant."""
        self.prefill, self.decode = base, base + 1
        # Prompts of 4 MB are to be relayed, not to be judged.
        common = [lab.bin / "pdsim", "--model", MODEL, "--max-model-len", 100_000_000, "--keep-alive-s", 60, "--decode-batch", 65536]
        both = ["--prefill", 1, "--decode", 1, "--port-base", base, *flags]
        # Params of another process's P cannot be looked up: they are believed.
        alone = ["--kv-elsewhere", "--prefill", 1, "--port-base", base, "--seed", 1]
        other = ["--kv-elsewhere", "--decode", 1, "--port-base", base + 1, "--seed", 2, *flags]
        commands = [alone, other] if apart else [both]
        self.processes = [Process(lab, "engines", [*common, *words], lab.load_cpus) for words in commands]
        end = time.monotonic() + 20
        while self.text().count("127.0.0.1:") < 2:
            if time.monotonic() > end or not all(process.alive() for process in self.processes):
                errors = "".join(process.errors()[-400:] for process in self.processes)
                raise SystemExit(f"the engines do not start: {errors}")
            time.sleep(0.05)

    def text(self):
        return "".join(process.text() for process in self.processes)

    def stop(self):
        """Requests that prefill and decode had, and what the ledger says of the KV hand-overs."""
        for process in self.processes:
            process.child.send_signal(signal.SIGINT)
        for process in self.processes:
            try:
                process.child.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        text = self.text()
        counts = dict(re.findall(r"^(prefill|decode) \S+: (\d+) requests", text, re.M))
        ledger = [line for line in text.splitlines() if line.startswith("ledger:")]
        return {"requests": {role: int(n) for role, n in counts.items()}, "ledger": ledger}
