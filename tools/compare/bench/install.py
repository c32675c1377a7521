"""Peers as their users get them: Python packages by pip, each in a virtual environment of its own, nginx and HAProxy
from Debian's packages, unpacked and not installed. All of it below $COMPARE, so that one folder removes it; what the
machine has already (nginx, haproxy in PATH) is used as it is."""

import os
import pathlib
import shutil
import subprocess
import sys

from originals import COMPARE, ROOT, installed

PYTHON = {"vllm-router": "0.1.17", "sglang-router": "0.3.2", "smg": "1.13.0"}
# A package, and the libraries that a small system lacks.
DEBIAN = {
    "nginx": ["nginx"],
    "haproxy": ["haproxy", "liblua5.3-0", "libopentracing-c-wrapper0", "libopentracing1", "libpcre2-8-0"],
}
FOLDER = COMPARE / "peers"


def say(text):
    print(text, file=sys.stderr, flush=True)


def run(command, **more):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **more)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}:\n{done.stdout[-800:]}{done.stderr[-1500:]}")
    return done.stdout


def environment(name, packages):
    """The python of a virtual environment that has these packages."""
    place = FOLDER / name
    if not (place / "installed").exists():
        say(f"installing {' '.join(packages)} into {place}")
        run([sys.executable, "-m", "venv", "--clear", place])
        run([place / "bin" / "python", "-m", "pip", "install", "-q", *packages])
        (place / "installed").touch()
    return place / "bin" / "python"


def python_peer(name):
    return environment(name, [f"{name}=={PYTHON[name]}"]).parent / name


def xpyd():
    return installed("1.8") / "xpyd"


def charts_python():
    return environment("charts", ["matplotlib==3.11.2"])


def debian_peer(name):
    """The program and what its environment needs."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found:
        return found, {}
    place = FOLDER / name
    if not (place / "installed").exists():
        say(f"unpacking {' '.join(DEBIAN[name])} into {place}")
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        run(["apt-get", "download", *DEBIAN[name]], cwd=place)
        for package in sorted(place.glob("*.deb")):
            run(["dpkg-deb", "-x", package, place])
        (place / "installed").touch()
    libraries = sorted({str(path.parent) for path in place.rglob("*.so.*")})
    return str(place / "usr" / "sbin" / name), {"LD_LIBRARY_PATH": ":".join(libraries)}


def our_binaries():
    """pdrelay, pdsim and pdload, as `cargo build --release` makes them; $BIN names a folder that has them."""
    given = os.environ.get("BIN")
    if given:
        return pathlib.Path(given)
    say("building pdrelay, pdsim and pdload")
    packages = [part for name in ("pdrelay", "pdsim", "pdload") for part in ("-p", name)]
    subprocess.run(["cargo", "build", "--release", "--locked", "--quiet", *packages], cwd=ROOT, check=True)
    return pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"


def version(command, environment=None):
    """The first line in which a program names itself."""
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env={**os.environ, **(environment or {})}
    )
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[0] if lines else "?"
