import csv
import os
from pathlib import Path

import datasets


REVISION = "189375ca64f5c09f8db2b22f833c57c4418c55ab"


def load(language, script, **metadata):
    """MultiJail's prompts in one language, from the folder `SDRRL_DATA_DIR` or from the hub."""
    folder = os.environ.get("SDRRL_DATA_DIR")
    if folder:
        where = Path(folder) / "multijail" / "MultiJail.csv"
        if not where.exists():
            raise FileNotFoundError(
                f"There is no {where}. Put the data there, or unset SDRRL_DATA_DIR to load them from the hub."
            )
        with open(where, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    else:
        where = "the data set on the hub"
        rows = list(datasets.load_dataset("DAMO-NLP-SG/MultiJail", split="train", revision=REVISION))
    columns = {"id", "tags", language}
    missing = sorted(columns - set(rows[0])) if rows else sorted(columns)
    if missing:
        raise ValueError(f"{where} has no column {', '.join(missing)}: its schema has changed, or it is empty.")
    for row in rows:
        if not (row[language] or "").strip():
            raise ValueError(
                f"{where}: the row with the id {row['id']} has no prompt in the column {language}. Restore the file."
            )
    facts = {"language": language, "script": script}
    rows = [{"id": str(row["id"]), "prompt": row[language], "tags": str(row["tags"]), **facts} for row in rows]
    return {"train": datasets.Dataset.from_list(rows)}
