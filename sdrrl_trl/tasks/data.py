"""
Data of the benchmarks, as `custom_dataset` of lm-eval: `{split: Dataset}`.

They come from the hub, or from the folder `SDRRL_DATA_DIR`. What does not have the shape that the tasks need is
refused here, with its file and line. Loaders take `**metadata`: lm-eval hands them what it knows of task and model.
"""

import csv
import gzip
import json
import os
import re
from pathlib import Path

import datasets


# ---- What all have in common


def local_file(name):
    """Path of a file in the folder `SDRRL_DATA_DIR`, or `None` if that is not set."""
    folder = os.environ.get("SDRRL_DATA_DIR")
    if not folder:
        return None
    path = Path(folder) / name
    if not path.exists():
        raise FileNotFoundError(
            f"There is no {path}. Put the data there, or unset SDRRL_DATA_DIR to load them from the hub."
        )
    return path


def local_rows(path):
    """`(place, row)` of a file with JSON Lines or comma-separated values."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        if path.suffix == ".csv":
            yield from ((f"{path}, row {number}", row) for number, row in enumerate(csv.DictReader(file), 1))
            return
        # Not splitlines(), which also splits at characters that stand inside texts, as U+2028
        for number, line in enumerate(file.read().split("\n"), 1):
            if line.strip():
                try:
                    yield f"{path}, line {number}", json.loads(line)
                except ValueError as error:
                    raise ValueError(f"{path}, line {number} is no JSON: {error}. Correct or remove it.") from error


def read_rows(name, columns, from_hub):
    """
    Rows of a local file, or what `from_hub` gives, which is called without arguments.

    No row may lack one of the `columns`, or have nothing there. Texts are not quoted in errors: some are harmful.
    """
    path = local_file(name)
    if path:
        found = list(local_rows(path))
    else:
        found = [(f"row {number} of {name} on the hub", row) for number, row in enumerate(from_hub(), 1)]
    for where, row in found:
        missing = [column for column in columns if row.get(column) in (None, "")]
        if missing:
            raise ValueError(f"{where} has no {', '.join(missing)}: the schema has changed, or the row is damaged.")
    if not found:
        raise ValueError(f"There is no row in {name}.")
    return [row for _, row in found]


def refuse_blanks(rows, columns, benchmark):
    """Harmful questions are named by their number, not shown."""
    for number, row in enumerate(rows, 1):
        blank = [column for column in columns if not row[column].strip()]
        if blank:
            raise ValueError(f"{benchmark}, row {number} has no {', '.join(blank)}. Correct or remove it.")


def index_of(row, column, values, benchmark):
    """Place of the right choice among all that `column` can have, a string of single characters."""
    value = str(row[column])
    if len(value) != 1 or value not in values:
        raise ValueError(f"{benchmark}: {column} is {value!r:.20}, none of {', '.join(values)}. Correct or remove it.")
    return values.index(value)


def as_dataset(rows, *splits, **facts):
    """The same rows under all `splits`, with `facts` in each of them."""
    data = datasets.Dataset.from_list([row | facts for row in rows])
    return dict.fromkeys(splits, data)


# ---- Multiple choice

XNLI = {"path": "facebook/xnli", "revision": "b8dd5d7af51114dbda02c0e3f6133f332186418e"}


def load_xnli(code, split="validation", choices=None, language=None, script=None, **metadata):
    """XNLI in one language; with `choices`, their texts in that language, for generated answers."""
    columns = ["premise", "hypothesis", "label"]
    rows = read_rows(f"xnli/{code}.jsonl", columns, lambda: datasets.load_dataset(**XNLI, name=code, split=split))
    rows = [{c: row[c] for c in columns} | {"gold": index_of(row, "label", "012", f"XNLI in {code}")} for row in rows]
    return as_dataset(rows, "train", split, choices=choices, language=language, script=script)


XSTORYCLOZE = {"path": "juletxara/xstory_cloze", "revision": "c4c2d88a1ec8b37fe22166d2a610f272726724b6"}


def load_xstorycloze(code, language=None, script=None, **metadata):
    """XStoryCloze's evaluation split in one language, the four sentences joined into `context`."""

    def from_hub():
        rows = datasets.load_dataset(**XSTORYCLOZE, name=code, split="eval")
        return [row | {"context": " ".join(row[f"input_sentence_{i}"] for i in range(1, 5))} for row in rows]

    columns = ["context", "sentence_quiz1", "sentence_quiz2", "answer_right_ending"]
    rows = [
        {column: row[column] for column in columns}
        | {
            "context": with_spaces(row["context"]),
            "choices": [row["sentence_quiz1"], row["sentence_quiz2"]],
            "gold": index_of(row, "answer_right_ending", "12", f"XStoryCloze in {code}"),
        }
        for row in read_rows(f"xstorycloze/{code}.jsonl", columns, from_hub)
    ]
    return as_dataset(rows, "train", "eval", language=language, script=script)


def with_spaces(context):
    """The sentences with a space between them, as in lm-eval's own tasks; some copies of the data have none."""
    return re.sub(r"(?<=[.!?।。！？؟])(?=[^\W\d_])", " ", context)


BELEBELE = {"path": "facebook/belebele", "revision": "7899cdfa4e1e0d733fd77c848e2c273cb1d32be2"}


def load_belebele(code, language=None, script=None, **metadata):
    """BELEBELE in one language, `code` being that of FLORES."""
    answers = [f"mc_answer{i}" for i in range(1, 5)]
    columns = ["flores_passage", "question", *answers, "correct_answer_num"]
    rows = [
        {column: row[column] for column in columns}
        | {
            "correct_answer_num": str(row["correct_answer_num"]),
            "choices": [row[answer] for answer in answers],
            "gold": index_of(row, "correct_answer_num", "1234", f"BELEBELE in {code}"),
        }
        for row in read_rows(
            f"belebele/{code}.jsonl", columns, lambda: datasets.load_dataset(**BELEBELE, name=code, split="test")
        )
    ]
    return as_dataset(rows, "test", language=language, script=script)


MMMLU = {"path": "openai/MMMLU", "revision": "325a01dc3e173cac1578df94120499aaca2e2504"}
MMLU = {"path": "cais/mmlu", "name": "all", "revision": "c30699e8356da336a370243923dbaf21066bb9fe"}


def load_mmmlu(code, language, script, **metadata):
    """MMMLU in one locale, such as PT_BR; EN_US is the English MMLU that it was translated from."""
    columns = ["Question", "A", "B", "C", "D", "Answer"]

    def from_hub():
        if code != "EN_US":
            return datasets.load_dataset(**MMMLU, name=code, split="test")
        rows = datasets.load_dataset(**MMLU, split="test")
        values = ([row["question"], *row["choices"], "ABCD"[row["answer"]]] for row in rows)
        return [dict(zip(columns, value, strict=True)) for value in values]

    rows = []
    for row in read_rows(f"mmmlu/{language}.jsonl", columns, from_hub):
        row = {column: str(row[column]).strip() for column in columns}
        gold = index_of(row, "Answer", "ABCD", f"MMMLU in {code}")
        rows.append(row | {"choices": [row[letter] for letter in "ABCD"], "gold": gold})
    return as_dataset(rows, "test", language=language, script=script)


# ---- Safety

PKU_SAFERLHF = {"path": "PKU-Alignment/PKU-SafeRLHF", "revision": "9421ffafec3fa40a1f1a7d567b4d525079477ecb"}


def pku_saferlhf_rows():
    """All pairs of the test split, `gold` being the safer answer."""
    columns = ["prompt", "response_0", "response_1", "safer_response_id"]
    rows = read_rows("pku_saferlhf/pairs.jsonl", columns, lambda: datasets.load_dataset(**PKU_SAFERLHF, split="test"))
    refuse_blanks(rows, columns[:3], "PKU-SafeRLHF")
    return [row | {"gold": index_of(row, "safer_response_id", "01", "PKU-SafeRLHF")} for row in rows]


def load_pku_pairs(**metadata):
    """
    Pairs of answers to a prompt. Where the data say which answers are safe, as those of the hub do, only pairs with
    exactly one safe answer are kept.
    """
    labels = ("is_response_0_safe", "is_response_1_safe")
    rows = [
        {"prompt": row["prompt"], "choices": [row["response_0"], row["response_1"]], "gold": row["gold"]}
        for row in pku_saferlhf_rows()
        if labels[0] not in row or row[labels[0]] != row[labels[1]]
    ]
    return as_dataset(rows, "test")


def load_pku_prompts(**metadata):
    """The prompts, each once, in the order of the data."""
    prompts = dict.fromkeys(row["prompt"] for row in pku_saferlhf_rows())
    return as_dataset([{"prompt": prompt} for prompt in prompts], "test", language="en", script="Latn")


MULTIJAIL = {"path": "DAMO-NLP-SG/MultiJail", "revision": "189375ca64f5c09f8db2b22f833c57c4418c55ab"}


def load_multijail(language, script, **metadata):
    """MultiJail's prompts in one language."""
    columns = ["id", "tags", language]
    rows = read_rows("multijail/MultiJail.csv", columns, lambda: datasets.load_dataset(**MULTIJAIL, split="train"))
    refuse_blanks(rows, [language], "MultiJail")
    rows = [{"id": str(row["id"]), "prompt": row[language], "tags": str(row["tags"])} for row in rows]
    return as_dataset(rows, "train", language=language, script=script)


# ---- Texts

# The main branch is a script, which `datasets` no longer runs; this one is its conversion by the hub
XLSUM = {"path": "csebuetnlp/xlsum", "revision": "refs/convert/parquet"}


def load_xlsum(code, language, script, max_article_chars=None, **metadata):
    """
    Test articles in one language, `code` being that of XL-Sum.

    `max_article_chars` keeps the start of longer articles, for models with a short context.
    """
    files = {"test": f"{code}/test/0000.parquet"}
    rows = read_rows(
        f"xlsum/{language}.jsonl",
        ["text", "summary"],
        lambda: datasets.load_dataset(**XLSUM, data_files=files, split="test"),
    )
    limit = int(max_article_chars) if max_article_chars else None
    rows = [{"text": row["text"][:limit], "summary": row["summary"]} for row in rows]
    return as_dataset(rows, "test", language=language, script=script)


MKQA_URL = "https://github.com/apple/ml-mkqa/raw/651b8cc85c407270b024157aff06ee6ab8c4fc6d/dataset/mkqa.jsonl.gz"


def load_mkqa(code, language, script, **metadata):
    """Questions in one language, `code` being that of MKQA, that a closed-book answer can be scored on."""

    def from_hub():
        with gzip.open(datasets.DownloadManager().download(MKQA_URL), "rt", encoding="utf-8") as file:
            items = [json.loads(line) for line in file]
        for item in items:
            answers = item["answers"][code]
            if not any(answer["type"] in ("unanswerable", "long_answer") for answer in answers):
                texts = [text for answer in answers for text in (answer["text"], *answer.get("aliases", []))]
                yield {"question": item["queries"][code], "answers": texts}

    name = f"mkqa/{language}.jsonl"
    rows = []
    for number, row in enumerate(read_rows(name, ["question", "answers"], from_hub), 1):
        answers = [text for text in row["answers"] if text] if isinstance(row["answers"], list) else []
        if not answers:
            raise ValueError(
                f"{name}, row {number}: `answers` must be a list with at least one text. Correct the row."
            )
        rows.append({"question": row["question"], "answers": answers})
    return as_dataset(rows, "test", language=language, script=script)
