import datasets


# >>> rows
# <<< rows


# >>> in_language
# <<< in_language


# >>> choose
# <<< choose


REVISION = "75b399394a9803252cfec289d103de462763db7c"
COLUMNS = [
    "flores_passage",
    "question",
    "mc_answer1",
    "mc_answer2",
    "mc_answer3",
    "mc_answer4",
    "correct_answer_num",
]


def load(code, language=None, **metadata):
    """BELEBELE of one language, by its FLORES code. With `language`, rows also have it and its script."""

    def from_hub():
        return datasets.load_dataset("facebook/belebele", code, split="test", revision=REVISION)

    rows = [{c: row[c] for c in COLUMNS} for row in read_rows(f"belebele/{code}.jsonl", COLUMNS, from_hub)]
    rows = [row | {"correct_answer_num": str(row["correct_answer_num"])} for row in rows]
    if language:
        rows = [row | {"language": language, "script": code.partition("_")[2]} for row in rows]
    return {"test": datasets.Dataset.from_list(rows)}


def process_results(doc, results):
    """Scores a generated answer: right, no choice named, wrong language."""
    chosen = choose(results[0], [doc[f"mc_answer{i}"] for i in range(1, 5)])
    return {
        "acc": float(chosen == int(doc["correct_answer_num"]) - 1),
        "invalid": float(chosen is None),
        "wrong_language": wrong_language(results[0], doc["language"], doc["script"]),
    }
