"""FLORES-200: sentences of two languages, from the hub, from Meta's archive, or from the folder `SDRRL_DATA_DIR`."""

import hashlib
import os
import tarfile
from functools import cache

import datasets

from sdrrl_trl.tasks.data import as_dataset, local_file


# Both want an account and their terms accepted. FLORES+ is a later version of the sentences
FLORES_REVISIONS = {
    "facebook/flores": "71abf77d8b7beb5cfef59898d6b24d92ab7654fc",
    "openlanguagedata/flores_plus": "5fec6c13f9e5a4db2f745d4ec0d7c9721ddc4f06",
}
# The same sentences as facebook/flores, for everybody
FLORES_ARCHIVE = "https://dl.fbaipublicfiles.com/nllb/flores200_dataset.tar.gz"
FLORES_SHA256 = "b8b0b76783024b85797e5cc75064eb83fc5288b41e9654dabc7be6ae944011f6"


def load_flores(src, tgt, src_name, tgt_name, language, script, **metadata):
    """Devtest sentences of two languages by their FLORES codes; `language` and `script` are those of `tgt`."""
    sources, targets = sentences(src), sentences(tgt)
    if len(sources) != len(targets):
        raise ValueError(
            f"FLORES-200: {len(sources)} sentences in {src}, but {len(targets)} in {tgt}. They belong together line "
            "by line, so translations would be compared with other sentences. Take both from the same release."
        )
    rows = [{"src": src.strip(), "tgt": tgt.strip()} for src, tgt in zip(sources, targets, strict=True)]
    return as_dataset(rows, "devtest", src_name=src_name, tgt_name=tgt_name, language=language, script=script)


def sentences(code):
    """Of a language, in the order that all languages have in common."""
    file = local_file(f"flores200/devtest/{code}.devtest")
    if file:
        return lines_of(file.read_text(encoding="utf-8"))
    return downloaded_sentences(os.environ.get("SDRRL_FLORES_REPO", "facebook/flores"), code)


@cache  # English belongs to every pair
def downloaded_sentences(repository, code):
    """Of the hub, or from the archive if it refuses."""
    revision = FLORES_REVISIONS.get(repository, "main")
    try:
        data = datasets.load_dataset(repository, code, split="devtest", revision=revision).sort("id")
        return list(data["sentence" if "sentence" in data.column_names else "text"])
    except Exception as error:  # no account, no network, no such language or column: `datasets` has many kinds
        problem = f"{repository} refuses {code}: {error}"
        if repository == "facebook/flores":
            try:
                return archived_sentences(code)
            except (OSError, ValueError, KeyError) as failure:
                problem += f"\nThe archive {FLORES_ARCHIVE} does not help either: {failure}"
        page = f"https://huggingface.co/datasets/{repository}"
        refused = isinstance(error, datasets.exceptions.DatasetNotFoundError)  # not out of order
        way_out = f"accept the terms of {page} and run `hf auth login`" if refused else "try again later"
        if datasets.config.HF_HUB_OFFLINE:
            problem, way_out = f"{code} is not here, and nothing can be downloaded.", "connect"
        raise OSError(
            f"FLORES-200: {problem}\nEither {way_out}, or set SDRRL_DATA_DIR to a folder with "
            f"flores200/devtest/{code}.devtest."
        ) from error


def archived_sentences(code):
    """Sentences of a language from Meta's archive, of which only that one file is read."""
    path = datasets.DownloadManager().download(FLORES_ARCHIVE)
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != FLORES_SHA256:
        raise ValueError(f"its SHA-256 is {found}, not {FLORES_SHA256}. Remove {path} and try again.")
    with tarfile.open(path) as archive:
        return lines_of(archive.extractfile(f"flores200_dataset/devtest/{code}.devtest").read().decode("utf-8"))


def lines_of(text):
    # Not splitlines(), which also splits at characters that stand inside sentences, as U+2028
    return text.rstrip("\n").split("\n")
