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


def read_rows(name, columns, from_hub, optional=()):
    """
    Rows of a local file, or what `from_hub` gives, which is called without arguments.

    No row may lack one of the `columns`, or have nothing there; `optional` ones may be absent. Texts are not quoted in
    errors: some are harmful.
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
    return [{column: row[column] for column in (*columns, *optional) if column in row} for _, row in found]


def with_choices(rows, benchmark, columns, gold, values):
    """
    Rows with `choices`, the texts in `columns`, and with `gold`, the index of the right one: the place of what the
    column `gold` holds among the single characters `values`.
    """
    for row in rows:
        value = str(row[gold])
        if value not in list(values):
            raise ValueError(
                f"{benchmark}: {gold} is {value!r:.20}, none of {', '.join(values)}. Correct or remove it."
            )
        row |= {"choices": [row[column] for column in columns], "gold": values.index(value)}
    return rows


def refuse_blanks(rows, columns, benchmark):
    """Harmful questions are named by their number, not shown."""
    for number, row in enumerate(rows, 1):
        blank = [column for column in columns if not row[column].strip()]
        if blank:
            raise ValueError(f"{benchmark}, row {number} has no {', '.join(blank)}. Correct or remove it.")


def as_dataset(rows, *splits, **facts):
    """The same rows under all `splits`, with `facts` in each of them."""
    data = datasets.Dataset.from_list([row | facts for row in rows])
    return dict.fromkeys(splits, data)


# ---- Multiple choice

XNLI = {"path": "facebook/xnli", "revision": "b8dd5d7af51114dbda02c0e3f6133f332186418e"}


def load_xnli(code, split="validation", choices=None, language=None, script=None, **metadata):
    """XNLI in one language; with `choices`, their texts in that language, for generated answers."""

    def from_hub():
        return datasets.load_dataset(**XNLI, name=code, split=split)

    rows = read_rows(f"xnli/{code}.jsonl", ["premise", "hypothesis", "label"], from_hub)
    rows = with_choices(rows, f"XNLI in {code}", [], "label", "012")
    return as_dataset(rows, "train", split, choices=choices, language=language, script=script)


XSTORYCLOZE = {"path": "juletxara/xstory_cloze", "revision": "c4c2d88a1ec8b37fe22166d2a610f272726724b6"}


def load_xstorycloze(code, language=None, script=None, **metadata):
    """XStoryCloze's evaluation split in one language, the four sentences joined into `context`."""

    def from_hub():
        rows = datasets.load_dataset(**XSTORYCLOZE, name=code, split="eval")
        return [row | {"context": " ".join(row[f"input_sentence_{i}"] for i in range(1, 5))} for row in rows]

    endings = ["sentence_quiz1", "sentence_quiz2"]
    rows = read_rows(f"xstorycloze/{code}.jsonl", ["context", *endings, "answer_right_ending"], from_hub)
    for row in rows:
        # As in lm-eval's own tasks; some copies of the data have no space between the sentences
        row["context"] = re.sub(r"(?<=[.!?।。！？؟])(?=[^\W\d_])", " ", row["context"])
    rows = with_choices(rows, f"XStoryCloze in {code}", endings, "answer_right_ending", "12")
    return as_dataset(rows, "train", "eval", language=language, script=script)


BELEBELE = {"path": "facebook/belebele", "revision": "7899cdfa4e1e0d733fd77c848e2c273cb1d32be2"}


def load_belebele(code, language=None, script=None, **metadata):
    """BELEBELE in one language, `code` being that of FLORES."""

    def from_hub():
        return datasets.load_dataset(**BELEBELE, name=code, split="test")

    answers = [f"mc_answer{i}" for i in range(1, 5)]
    columns = ["flores_passage", "question", *answers, "correct_answer_num"]
    rows = read_rows(f"belebele/{code}.jsonl", columns, from_hub)
    for row in rows:
        row["correct_answer_num"] = str(row["correct_answer_num"])  # a number in some copies of the data
    rows = with_choices(rows, f"BELEBELE in {code}", answers, "correct_answer_num", "1234")
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

    rows = read_rows(f"mmmlu/{language}.jsonl", columns, from_hub)
    rows = [{column: str(text).strip() for column, text in row.items()} for row in rows]
    rows = with_choices(rows, f"MMMLU in {code}", "ABCD", "Answer", "ABCD")
    return as_dataset(rows, "test", language=language, script=script)


# ---- Safety

PKU_SAFERLHF = {"path": "PKU-Alignment/PKU-SafeRLHF", "revision": "9421ffafec3fa40a1f1a7d567b4d525079477ecb"}


def pku_saferlhf_rows():
    """All pairs of the test split, `gold` being the safer answer."""

    def from_hub():
        return datasets.load_dataset(**PKU_SAFERLHF, split="test")

    texts = ["prompt", "response_0", "response_1"]
    optional = ("is_response_0_safe", "is_response_1_safe")
    rows = read_rows("pku_saferlhf/pairs.jsonl", [*texts, "safer_response_id"], from_hub, optional)
    refuse_blanks(rows, texts, "PKU-SafeRLHF")
    return with_choices(rows, "PKU-SafeRLHF", texts[1:], "safer_response_id", "01")


def load_pku_pairs(**metadata):
    """
    Pairs of answers to a prompt. Where the data say which answers are safe, as those of the hub do, only pairs with
    exactly one safe answer are kept.
    """
    rows = [
        {column: row[column] for column in ("prompt", "choices", "gold")}
        for row in pku_saferlhf_rows()
        if "is_response_0_safe" not in row or row["is_response_0_safe"] != row["is_response_1_safe"]
    ]
    return as_dataset(rows, "test")


def load_pku_prompts(**metadata):
    """The prompts, each once, in the order of the data."""
    prompts = dict.fromkeys(row["prompt"] for row in pku_saferlhf_rows())
    return as_dataset([{"prompt": prompt} for prompt in prompts], "test", language="en", script="Latn")


MULTIJAIL = {"path": "DAMO-NLP-SG/MultiJail", "revision": "189375ca64f5c09f8db2b22f833c57c4418c55ab"}


def load_multijail(language, script, **metadata):
    """MultiJail's prompts in one language."""

    def from_hub():
        return datasets.load_dataset(**MULTIJAIL, split="train")

    rows = read_rows("multijail/MultiJail.csv", ["id", "tags", language], from_hub)
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

    def from_hub():
        return datasets.load_dataset(**XLSUM, data_files={"test": f"{code}/test/0000.parquet"}, split="test")

    rows = read_rows(f"xlsum/{language}.jsonl", ["text", "summary"], from_hub)
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
            raise ValueError(f"{name}, row {number}: `answers` must be a list with a text in it. Correct the row.")
        rows.append({"question": row["question"], "answers": answers})
    return as_dataset(rows, "test", language=language, script=script)
