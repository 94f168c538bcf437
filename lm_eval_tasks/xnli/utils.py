import datasets


# >>> rows
# <<< rows


# >>> in_language
# <<< in_language


# >>> choose
# <<< choose


REVISION = "main"
COLUMNS = ["premise", "hypothesis", "label"]


def load(language, split="validation", script=None, **metadata):
    """XNLI of one language. With `script`, each row also has them for the check of the answer's language."""

    def from_hub():
        return datasets.load_dataset("facebook/xnli", language, split=split, revision=REVISION)

    rows = [{name: row[name] for name in COLUMNS} for row in read_rows(f"xnli/{language}.jsonl", COLUMNS, from_hub)]
    if script:
        rows = [row | {"language": language, "script": script} for row in rows]
    data = datasets.Dataset.from_list(rows)
    return {"train": data, split: data}


def process_results(doc, results):
    """Scores a generated answer: right, no choice named, wrong language."""
    chosen = choose(results[0], ["", "", ""])
    return {
        "acc": float(chosen == doc["label"]),
        "invalid": float(chosen is None),
        "wrong_language": wrong_language(results[0], doc["language"], doc["script"]),
    }
