"""Each proxy: how it is started in front of the engines, with which flags, and how many hops it does.

The flags are the ones its users would give: logs at errors only, as many threads as the proxy has CPUs, kept connections,
nothing else tuned. nginx and HAProxy know nothing of prefill: they do one hop to D, or, two of them in a row, two."""

import http.client
import json
import socket
import time

from originals import MODEL as XPYD_MODEL
from originals import tokenizers

from . import install, usage
from .engine import MODEL
from .run import Process

NGINX = """worker_processes {threads}; daemon off; error_log {folder}/err.log crit; pid {folder}/pid;
worker_rlimit_nofile {files};
events {{ worker_connections {connections}; }}
http {{
  access_log off; keepalive_requests 100000000; client_max_body_size 0;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream engine {{ server 127.0.0.1:{to}; keepalive 4096; keepalive_requests 100000000; }}
  server {{ listen 127.0.0.1:{port} backlog=4096; location / {{
    proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection "";
    proxy_buffering off; proxy_request_buffering off; proxy_read_timeout 600s; }} }}
}}
"""
HAPROXY = """global
  maxconn {connections}
  nbthread {threads}
defaults
  mode http
  timeout connect 5s
  timeout client 600s
  timeout server 600s
  option http-no-delay
  http-reuse always
frontend in
  bind 127.0.0.1:{port} backlog 4096
  default_backend engine
backend engine
  server d 127.0.0.1:{to} pool-max-conn -1
"""


class Peer:
    """One that runs. `hops`: legs per request; `stages`: does it do prefill and decode?"""

    name, hops, stages, slow, shards = "?", 1, False, False, 1

    def __init__(self, lab, engines, port):
        self.lab, self.engines, self.port, self.processes = lab, engines, port, []
        self.ports_are_free()
        self.start()
        self.wait()
        self.rest_kib = None

    def ports_are_free(self):
        """Whoever listens there would be measured in this one's place."""
        for port in (self.port, self.port + 1):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError as error:
                    raise SystemExit(f"port {port} is not free for {self.name}: {error} (--base moves all ports)")

    def run(self, command, cpus=None, **more):
        place = cpus or self.lab.proxy_cpus
        self.processes.append(Process(self.lab, self.name.replace(" ", "-"), command, place, **more))

    def start(self):
        pass

    @property
    def pids(self):
        return [process.pid for process in self.processes]

    @property
    def flags(self):
        """As started, less what is different in every run."""
        folder, lines = str(self.lab.folder), []
        for process in self.processes:
            words = [word.rsplit("/", 1)[-1] if word.startswith("/") and folder not in word else word for word in process.command]
            lines.append(" ".join(words).replace(folder, "RUN"))
        return "; ".join(lines)

    def version(self):
        return "?"

    def wait(self, seconds=90):
        """Until it relays the beginning of a stream."""
        end, last = time.monotonic() + seconds, "nothing"
        body = json.dumps({"model": MODEL, "prompt": "ready?", "max_tokens": 2, "stream": True})
        while time.monotonic() < end:
            for process in self.processes:
                if not process.alive():
                    raise SystemExit(f"{self.name} ended:\n{process.text()[-600:]}{process.errors()[-600:]}")
            link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
            try:
                link.request("POST", "/v1/completions", body, {"content-type": "application/json", "connection": "close"})
                answer = link.getresponse()
                # The head is enough: the engine may fall silent after the first token.
                if answer.status == 200:
                    return
                last = f"{answer.status} {answer.read()[:200]}"
            except OSError as error:
                last = repr(error)
            finally:
                link.close()
            time.sleep(0.2)
        text = "".join(process.text()[-600:] + process.errors()[-600:] for process in self.processes)
        raise SystemExit(f"{self.name} does not answer: {last}\n{text}")

    def rss_kib(self):
        return usage.kib(self.pids, "VmRSS")

    def stop(self):
        for process in self.processes:
            process.stop()


class Direct(Peer):
    """No proxy: what the engine and the load are by themselves."""

    name, hops = "direct", 0

    def ports_are_free(self):
        pass

    def start(self):
        self.port = self.engines.decode


class Pdrelay(Peer):
    name, hops, stages = "pdrelay", 2, True

    def start(self):
        cpus = sorted(self.lab.proxy_cpus)[: self.shards]
        place = ["--cpus", ",".join(map(str, cpus))]
        if self.shards > len(cpus):
            # All on the proxy's CPUs, as everybody else: a shard that shares its CPU with engines and load would pay for
            # the caches that they empty, and take from them what they need to keep it busy.
            place = ["--shards", self.shards]
        command = [self.lab.bin / "pdrelay", "serve", "--handshake", "nixl", "--prefill", f"127.0.0.1:{self.engines.prefill}"]
        command += ["--decode", f"127.0.0.1:{self.engines.decode}", "--host", "127.0.0.1", "--port", self.port]
        command += [*place, "--log-level", "error"]
        self.run(command, set(cpus))

    def version(self):
        return install.version([self.lab.bin / "pdrelay", "--version"]).split()[-1]


class TwoShards(Pdrelay):
    name, shards = "pdrelay, 2 shards", 2


class Nginx(Peer):
    name = "nginx"

    def start(self):
        program, environment = install.debian_peer("nginx")
        self.program, self.environment = program, environment
        to = self.engines.decode
        # The hop next to the engine first.
        for hop in range(self.hops):
            last = hop == self.hops - 1
            port = self.port if last else self.port + 1
            folder = self.lab.folder / f"{self.name.replace(' ', '-')}-{hop}-{self.port}"
            folder.mkdir(exist_ok=True)
            (folder / "conf").write_text(
                NGINX.format(
                    folder=folder,
                    files=self.lab.files,
                    connections=self.lab.files - 200,
                    threads=len(self.lab.proxy_cpus),
                    port=port,
                    to=to,
                )
            )
            self.run([program, "-p", folder, "-c", folder / "conf"], environment=environment)
            to = port

    def version(self):
        return install.version([self.program, "-v"], self.environment).rsplit("/", 1)[-1]


class TwoNginx(Nginx):
    name, hops = "nginx x2", 2


class Haproxy(Peer):
    name = "haproxy"

    def start(self):
        program, environment = install.debian_peer("haproxy")
        self.program, self.environment = program, environment
        to = self.engines.decode
        for hop in range(self.hops):
            port = self.port if hop == self.hops - 1 else self.port + 1
            conf = self.lab.folder / f"{self.name.replace(' ', '-')}-{hop}-{self.port}.conf"
            conf.write_text(
                HAPROXY.format(
                    connections=(self.lab.files - 200) // 2, threads=len(self.lab.proxy_cpus), port=port, to=to
                )
            )
            self.run([program, "-db", "-f", conf], environment=environment)
            to = port

    def version(self):
        return install.version([self.program, "-v"], self.environment).split()[2]


class TwoHaproxy(Haproxy):
    name, hops = "haproxy x2", 2


class Router(Peer):
    """What the three Rust routers have in common."""

    hops, stages = 2, True
    launch, disaggregation = [], "--pd-disaggregation"

    def legs(self):
        p, d = self.engines.prefill, self.engines.decode
        return ["--prefill", f"http://127.0.0.1:{p}", "--decode", f"http://127.0.0.1:{d}"]

    def start(self):
        command = [install.python_peer(self.name), *self.launch, "--host", "127.0.0.1", "--port", self.port]
        command += [self.disaggregation, *self.legs(), "--policy", "round_robin", "--log-level", "error"]
        command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", self.port + 1]
        self.run(command)

    def version(self):
        return install.PYTHON[self.name]


class VllmRouter(Router):
    name, disaggregation = "vllm-router", "--vllm-pd-disaggregation"

    def legs(self):
        return [*super().legs(), "--worker-startup-check-interval", 1]


class SglangRouter(Router):
    name, launch = "sglang-router", ["launch"]

    def legs(self):
        return [*super().legs(), "--worker-startup-check-interval", 1]


class Smg(Router):
    name, launch = "smg", ["launch"]

    def legs(self):
        """With `--prefill` and `--decode` it would send no kv_transfer_params: the connector has to be named."""
        path = self.lab.folder / f"smg-{self.port}.json"

        def worker(role, port, kv_role):
            url = f"http://127.0.0.1:{port}"
            return {"id": role, "url": url, "worker_type": role, "model_id": MODEL, "kv_connector": "NixlConnector", "kv_role": kv_role}

        workers = [
            worker("prefill", self.engines.prefill, "kv_producer"),
            worker("decode", self.engines.decode, "kv_consumer"),
        ]
        path.write_text(json.dumps({"version": 1, "workers": workers}))
        return ["--discovery-provider", "file", "--discovery-file", path]


class XpydProxy(Peer):
    name, hops, stages, slow = "xpyd-proxy", 2, True, True

    def start(self):
        path = self.lab.folder / f"xpyd-{self.port}.yaml"
        lines = [f"model: {MODEL}", f"prefill: ['127.0.0.1:{self.engines.prefill}']"]
        lines += [f"decode: ['127.0.0.1:{self.engines.decode}']", "disaggregated_mode: nixl", f"port: {self.port}"]
        lines += ["startup: {probe_interval_seconds: 1}", "log_level: error"]
        path.write_text("\n".join(lines) + "\n")
        # It looks for the model's tokenizer where it is started.
        place = self.lab.folder / MODEL
        if not place.exists():
            place.symlink_to(tokenizers() / XPYD_MODEL)
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        self.run([install.xpyd(), "--config", path], environment=offline, cwd=self.lab.folder)

    def version(self):
        return "1.8.0"


ALL = [Direct, Pdrelay, TwoShards, Nginx, TwoNginx, Haproxy, TwoHaproxy, VllmRouter, SglangRouter, Smg, XpydProxy]
ROUTERS = ("vllm-router", "sglang-router", "smg")
