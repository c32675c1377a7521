"""The engines that every proxy stands in front of: one pdsim, one prefill and one decode engine, on the load's CPUs."""

import re
import signal
import subprocess
import time

from .run import Process

MODEL = "dummy"


class Engines:
    def __init__(self, lab, base, flags):
        self.prefill, self.decode = base, base + 1
        command = [lab.bin / "pdsim", "--prefill", 1, "--decode", 1, "--port-base", base, "--model", MODEL]
        # Prompts of 4 MB are to be relayed, not to be judged.
        command += ["--max-model-len", 100_000_000, "--keep-alive-s", 60, *flags]
        self.process = Process(lab, "engines", command, lab.load_cpus)
        end = time.monotonic() + 20
        while self.process.text().count("127.0.0.1:") < 2:
            if time.monotonic() > end or not self.process.alive():
                raise SystemExit(f"the engines do not start: {self.process.errors()[-400:]}")
            time.sleep(0.05)

    def stop(self):
        """Requests that prefill and decode had, and what the ledger says of the KV hand-overs."""
        self.process.child.send_signal(signal.SIGINT)
        try:
            self.process.child.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
        text = self.process.text()
        counts = dict(re.findall(r"^(prefill|decode) \S+: (\d+) requests", text, re.M))
        ledger = next((line for line in text.splitlines() if line.startswith("ledger:")), "")
        return {"requests": {role: int(n) for role, n in counts.items()}, "ledger": ledger}
