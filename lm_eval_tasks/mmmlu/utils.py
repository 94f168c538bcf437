import re

import datasets


# >>> rows
# <<< rows


# >>> in_language
# <<< in_language


# >>> choose
# <<< choose


REVISION = "main"
COLUMNS = ["Question", "A", "B", "C", "D", "Answer"]


def load(locale, language, script, **metadata):
    """MMMLU of one locale, such as PT_BR; EN_US is the English MMLU that it was translated from."""

    def from_hub():
        if locale != "EN_US":
            return datasets.load_dataset("openai/MMMLU", locale, split="test", revision=REVISION)
        rows = datasets.load_dataset("cais/mmlu", "all", split="test", revision=REVISION)
        return [
            dict(zip(COLUMNS, [row["question"], *row["choices"], "ABCD"[row["answer"]]], strict=True))
            | {"Subject": row["subject"]}
            for row in rows
        ]

    rows = [
        {c: str(row[c]).strip() for c in COLUMNS}
        | {"Subject": _subject(row.get("Subject")), "language": language, "script": script}
        for row in read_rows(f"mmmlu/{language}.jsonl", COLUMNS, from_hub)
    ]
    return {"test": datasets.Dataset.from_list(rows)}


def _subject(name):
    """Some locales have the name of a file there: college_mathematics_test.csv_sw-KE.csv."""
    return re.split("_test[.-]", name or "")[0]


def process_results(doc, results):
    """Scores a generated answer: right, no choice named, wrong language."""
    chosen = choose(results[0], [doc[letter] for letter in "ABCD"])
    return {
        "acc": float(chosen == "ABCD".index(doc["Answer"])),
        "invalid": float(chosen is None),
        "wrong_language": wrong_language(results[0], doc["language"], doc["script"]),
    }
