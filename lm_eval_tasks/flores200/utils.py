import os
from pathlib import Path

import datasets


def load_pair(src, tgt, src_name, tgt_name, **kwargs):
    """Joins the devtest sentences of two languages line by line, from `SDRRL_DATA_DIR` or from the hub."""
    columns = {"src": _sentences(src), "tgt": _sentences(tgt)}
    if len(columns["src"]) != len(columns["tgt"]):
        raise ValueError(f"FLORES-200: {len(columns['src'])} sentences in {src}, but {len(columns['tgt'])} in {tgt}.")
    n = len(columns["src"])
    return {"devtest": datasets.Dataset.from_dict({**columns, "src_name": [src_name] * n, "tgt_name": [tgt_name] * n})}


def _sentences(language):
    folder = os.environ.get("SDRRL_DATA_DIR")
    if folder:
        return (
            (Path(folder) / "flores200" / "devtest" / f"{language}.devtest").read_text(encoding="utf-8").splitlines()
        )
    return datasets.load_dataset("facebook/flores", language, split="devtest")["sentence"]
