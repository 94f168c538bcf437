"""Small things that every stage needs: the error for users, atomic files, progress."""

import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sdrrl_trl import __version__


# Bits per byte of drift: the arm of docs/results.md that was to forget has 0.25, the others at most 0.1
RUINED = 0.2
# Files of a model: weights, tokenizer, template, configurations; not what training and evaluation leave beside them
_OF_MODEL = ("*.safetensors", "*model*.bin", "*.gguf", "*.model", "*.jinja", "*config.json", "*token*.json", "vocab*")


class SDRRLError(ValueError):
    """A mistake in the options or the input. The command line prints it without a traceback and exits with code 2."""


def in_a_line(error: Exception) -> str:
    """What a library says of an error, which may be many lines with colours, in at most 500 characters."""
    text = " ".join("".join(char if char.isprintable() else " " for char in str(error)).split())
    return text[:500] if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {text}"[:500]


def package_version(name: str) -> str | None:
    """Installed version of a distribution, `None` if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:  # a checkout that PYTHONPATH names is no distribution
        return __version__ if name == "sdrrl-trl" else None


def is_first_process() -> bool:
    """Whether this is the one of several processes that prints."""
    return int(os.environ.get("RANK", 0)) == 0


def require(distribution: str, extra: str, why: str) -> None:
    """Raises [`SDRRLError`] naming the extra to install if `distribution` is missing."""
    if package_version(distribution) is None:
        raise SDRRLError(
            f"{why} needs the package `{distribution}`, which is not installed. "
            f'Install it with `pip install "sdrrl-trl[{extra}]"`.'
        )


def sha256(data: str | bytes) -> str:
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def sha256_of(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomic(path: Path, data: str | bytes) -> None:
    """Writes a whole file or nothing: temporary file in the same folder, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def first_damaged(folder: Path, hashes: dict[str, str]) -> str | None:
    """The first of the files, by their names in the folder, that is missing or has another SHA-256."""
    damaged = (name for name in hashes if not (folder / name).is_file() or sha256_of(folder / name) != hashes[name])
    return next(damaged, None)


def write_json(path: Path, data: Any) -> None:
    write_atomic(path, json.dumps(data, ensure_ascii=False, indent=2) + "\n")


def read_json(path: Path, expect: tuple[str, ...] = ()) -> dict[str, Any]:
    """
    Content of a JSON file that holds an object.

    Raises:
        `SDRRLError`: if it cannot be read, is damaged, or lacks one of the keys in `expect`.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SDRRLError(f"Cannot read {path}: {error}. Restore it, or redo its stage into another folder.") from error
    if not isinstance(content, dict) or not set(expect) <= set(content):
        raise SDRRLError(f"{path} is not what was written there. Restore it, or redo its stage into another folder.")
    return content


def fingerprint(path: str) -> str:
    """
    Tells one model from another: hash of the files in a local folder; for a hub id, the id itself.

    Raises:
        `SDRRLError`: if the path can only be a folder and there is no model in it.
    """
    folder = Path(path)
    if not folder.is_dir():
        if folder.is_absolute() or path.startswith(".") or path.count("/") > 1:
            raise SDRRLError(f"There is no model in {path}. Give a folder with a model or adapter, or a hub id.")
        return path
    files = sorted({file for pattern in _OF_MODEL for file in folder.glob(pattern)})
    if not files:
        raise SDRRLError(f"There is no model in {path}: it holds no weights.")
    digest = hashlib.sha256()
    if (folder / "adapter_config.json").exists():  # it is no model without its base
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
        digest.update(fingerprint(str(base)).encode())
    for file in files:
        digest.update(f"{file.name}:{sha256_of(file)}\n".encode())
    return digest.hexdigest()[:16]


MODEL_FILES = {"config.json", "adapter_config.json"}  # one of them is in every folder with a model


def on_hub(model: str) -> bool:
    """Whether a model is named by an id of the hub, not by what is here."""
    return re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", model) is not None and not Path(model).exists()


def public_name(model: str) -> str:
    """A model's id on the hub, or the name of its folder: a path here says nothing to others."""
    return model if on_hub(model) else Path(model).name


def check_output_dir(folder: Path, needed_bytes: int) -> None:
    """Raises [`SDRRLError`] unless `folder` can be written to and its disk has `needed_bytes` free."""
    existing = folder.absolute()
    try:
        while not existing.exists():
            existing = existing.parent
    except OSError as error:  # a name too long
        raise SDRRLError(f"There can be no output folder {folder}: {error}") from error
    if folder.absolute() == Path(folder.absolute().anchor):
        raise SDRRLError(f"The output folder {folder} is the root of a disk. Choose a folder on it.")
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise SDRRLError(f"Cannot write to the output folder {folder}: {existing} is not a writable folder.")
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise SDRRLError(
            f"The disk of {folder} has {free / 1e9:.1f} GB free, about {needed_bytes / 1e9:.1f} GB are needed: the "
            "run would stop half way. Free some space or choose another `output_dir`."
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """
    Only one process works on a folder at a time. The lock goes with the process, however it ends.

    Raises:
        `SDRRLError`: if another process holds it.
    """
    # Inside the folder, whose parent may not be writable
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise SDRRLError(f"{folder} is in use. Is the same command running twice? Wait for it or stop it.") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte
        raise SDRRLError(f"Cannot write into {folder}: {error}. Choose another `output_dir`.") from error
    for leftover in folder.glob(".*.[0-9]*.tmp"):  # of `write_atomic` in a killed process
        leftover.unlink()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def timed(path: Path, stage: str) -> Iterator[None]:
    """Adds the seconds spent inside to those of `stage` in a JSON file. A run ended by `kill -9` is not counted."""
    seconds = read_json(path) if path.exists() else {}
    start = time.monotonic()
    try:
        yield
    finally:
        write_json(path, seconds | {stage: round(seconds.get(stage, 0.0) + time.monotonic() - start, 1)})


def progress(items: Iterable, total: int, what: str, unit: str, done: int = 0):
    """
    Goes through `(n, item)` pairs, `n` being how many units the item stands for, and prints how far it is: at the
    start, every ten seconds and at the end, with rate and time left. `done` units were finished by an earlier run.
    """
    is_main = is_first_process()  # of several processes, the first shows its share
    start = last = time.monotonic()
    finished = done
    if is_main and done < total:
        print(f"{what}: {done}/{total} {unit}", file=sys.stderr, flush=True)
    for n, item in items:
        yield item
        finished += n
        now = time.monotonic()
        # Lines, on a terminal, too: a bar would be torn by the warnings of libraries
        if is_main and (now - last >= 10 or finished == total):
            last = now
            pace = rate_and_rest(finished - done, total - finished, now - start)
            print(f"{what}: {finished}/{total} {unit}, {pace}", file=sys.stderr, flush=True)


def rate_and_rest(done: int, left: int, seconds: float) -> str:
    """How fast it goes, and how long what is left will take."""
    rate = done / max(seconds, 1e-9)
    unit, per = next((one for one in (("s", 1), ("min", 60)) if rate * one[1] >= 1), ("h", 3600))
    return f"{rate * per:.1f}/{unit}, {in_time(left / rate)} left"


def in_time(seconds: float) -> str:
    """A time in the unit that suits it."""
    unit, size = ("h", 3600) if seconds > 7200 else ("min", 60) if seconds > 120 else ("s", 1)
    return f"{seconds / size:.0f} {unit}"
