import datasets


# >>> rows
# <<< rows


# >>> in_language
# <<< in_language


# >>> choose
# <<< choose


REVISION = "main"
ENDINGS = ["sentence_quiz1", "sentence_quiz2", "answer_right_ending"]


def load(language, script=None, **metadata):
    """XStoryCloze's evaluation split in one language, the four sentences joined into `context`."""

    def from_hub():
        rows = datasets.load_dataset("juletxara/xstory_cloze", language, split="eval", revision=REVISION)
        return [row | {"context": " ".join(row[f"input_sentence_{i}"] for i in range(1, 5))} for row in rows]

    columns = ["context", *ENDINGS]
    rows = [{c: row[c] for c in columns} for row in read_rows(f"xstorycloze/{language}.jsonl", columns, from_hub)]
    if script:
        rows = [row | {"language": language, "script": script} for row in rows]
    data = datasets.Dataset.from_list(rows)
    return {"train": data, "eval": data}


def process_results(doc, results):
    """Scores a generated answer: right, no choice named, wrong language."""
    chosen = choose(results[0], [doc["sentence_quiz1"], doc["sentence_quiz2"]])
    return {
        "acc": float(chosen == int(doc["answer_right_ending"]) - 1),
        "invalid": float(chosen is None),
        "wrong_language": wrong_language(results[0], doc["language"], doc["script"]),
    }
