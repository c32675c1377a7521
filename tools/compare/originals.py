"""The originals, each installed once by pip into a throw-away virtual environment below $COMPARE (default: the
user's cache folder, pdrelay-compare); shared by the scripts here."""

import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
COMPARE = pathlib.Path(os.environ.get("COMPARE") or CACHE / "pdrelay-compare")
PACKAGES = {"1.0": "xpyd==1.0.0", "1.8": "xpyd-proxy==1.8.0", "sim": "xpyd-sim==0.5.0"}
MODEL = "tiny-tokenizer"


def installed(name):
    """The bin folder of the environment of one of PACKAGES."""
    venv = COMPARE / f"xpyd-{name}"
    if not (venv / "installed").exists():
        print(f"installing {PACKAGES[name]} into {venv}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
        subprocess.run([venv / "bin" / "python", "-m", "pip", "install", "-q", PACKAGES[name]], check=True)
        (venv / "installed").touch()
    return venv / "bin"


def tokenizers():
    """A folder with a tokenizer called MODEL: 1.0 takes a model's name for the path of its tokenizer."""
    folder = COMPARE / "tokenizers"
    if not (folder / MODEL / "tokenizer.json").exists():
        maker = ROOT / "tools" / "real-engine" / "make_tiny.py"
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [installed("1.8") / "python", maker, folder, "--tokenizer-only"], check=True, stdout=subprocess.DEVNULL
        )
    return folder


def pdrelay(build):
    """Where cargo puts the binary."""
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
    return target / build / "pdrelay"
