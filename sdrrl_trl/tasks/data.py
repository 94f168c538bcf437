"""
Data of the benchmarks, as `custom_dataset` of lm-eval: `{split: Dataset}`.

They come from the hub, or from the folder `SDRRL_DATA_DIR`. What does not have the shape that the tasks need is
refused here, with its file and row. Loaders take `**metadata`: lm-eval hands them what it knows of task and model.
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
        raise FileNotFoundError(f"There is no {path}. Put the data there, or unset SDRRL_DATA_DIR to have the hub's.")
    return path


def local_rows(path):
    """Rows of a file with JSON Lines or comma-separated values."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        if path.suffix == ".csv":
            yield from csv.DictReader(file)
            return
        # Not splitlines(), which also splits at characters that stand inside texts, as U+2028
        for number, line in enumerate(filter(str.strip, file), 1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, row {number} is no JSON: {error}. Correct or remove it.") from error


def read_rows(file, columns, optional=(), load=datasets.load_dataset, **arguments):
    """
    Rows of a local file, or what `load(**arguments)` gives.

    No row may lack one of the `columns`, or have nothing there; `optional` ones may be absent. Texts are not quoted in
    errors: some are harmful.
    """
    path = local_file(file)
    rows = list(local_rows(path) if path else load(**arguments))
    if not rows:
        raise ValueError(f"There is no row in {file}.")
    for number, row in enumerate(rows, 1):
        missing = [column for column in columns if row.get(column) is None or not str(row[column]).strip()]
        if missing:
            raise ValueError(f"{file}, row {number} has no {', '.join(missing)}. Correct or remove it.")
    return [{column: row[column] for column in (*columns, *optional) if column in row} for row in rows]


def with_choices(rows, benchmark, columns, gold, values):
    """
    Rows with `choices`, the texts in `columns`, and with `gold`, the index of the right one: the place of what the
    column `gold` holds among the single characters `values`.
    """
    for row in rows:
        value = str(row[gold])
        if value not in list(values):
            raise ValueError(f"{benchmark}: {gold} is {value!r:.20}, none of {', '.join(values)}. Correct the row.")
        row |= {"choices": [row[column] for column in columns], "gold": values.index(value)}
    return rows


def as_dataset(rows, *splits, **facts):
    """The same rows under all `splits`, with `facts` in each of them."""
    data = datasets.Dataset.from_list([row | facts for row in rows])
    return dict.fromkeys(splits, data)


# ---- Multiple choice

XNLI = {"path": "facebook/xnli", "revision": "b8dd5d7af51114dbda02c0e3f6133f332186418e"}


def load_xnli(code, split="validation", choices=None, language=None, script=None, **metadata):
    """XNLI in one language; with `choices`, their texts in that language, for generated answers."""
    columns = ["premise", "hypothesis", "label"]
    rows = read_rows(f"xnli/{code}.jsonl", columns, **XNLI, name=code, split=split)
    rows = with_choices(rows, f"XNLI in {code}", [], "label", "012")
    return as_dataset(rows, "train", split, choices=choices, language=language, script=script)


# Else "NA" and "None" would be missing cells; a choice of MMLU is "None"
TEXT_CELLS = {"keep_default_na": False}

XSTORYCLOZE = {"path": "juletxara/xstory_cloze", "revision": "c4c2d88a1ec8b37fe22166d2a610f272726724b6"}


def joined_stories(code):
    """Stories of the hub, the four sentences joined into `context`, as they are in local files."""
    rows = datasets.load_dataset(**XSTORYCLOZE, **TEXT_CELLS, name=code, split="eval")
    return [row | {"context": " ".join(row[f"input_sentence_{i}"] for i in range(1, 5))} for row in rows]


def load_xstorycloze(code, language=None, script=None, **metadata):
    """XStoryCloze's evaluation split in one language."""
    endings = ["sentence_quiz1", "sentence_quiz2"]
    columns = ["context", *endings, "answer_right_ending"]
    rows = read_rows(f"xstorycloze/{code}.jsonl", columns, load=joined_stories, code=code)
    for row in rows:
        # As in lm-eval's own tasks; some copies of the data have no space between the sentences
        row["context"] = re.sub(r"(?<=[.!?।。！？؟])(?=[^\W\d_])", " ", row["context"])
    rows = with_choices(rows, f"XStoryCloze in {code}", endings, "answer_right_ending", "12")
    return as_dataset(rows, "train", "eval", language=language, script=script)


BELEBELE = {"path": "facebook/belebele", "revision": "7899cdfa4e1e0d733fd77c848e2c273cb1d32be2"}


def load_belebele(code, language=None, script=None, **metadata):
    """BELEBELE in one language, `code` being that of FLORES."""
    answers = [f"mc_answer{i}" for i in range(1, 5)]
    columns = ["flores_passage", "question", *answers, "correct_answer_num"]
    rows = read_rows(f"belebele/{code}.jsonl", columns, **BELEBELE, name=code, split="test")
    for row in rows:
        row["correct_answer_num"] = str(row["correct_answer_num"])  # a number in some copies of the data
    rows = with_choices(rows, f"BELEBELE in {code}", answers, "correct_answer_num", "1234")
    return as_dataset(rows, "test", language=language, script=script)


MMMLU = {"path": "openai/MMMLU", "revision": "325a01dc3e173cac1578df94120499aaca2e2504"}
MMLU = {"path": "cais/mmlu", "revision": "c30699e8356da336a370243923dbaf21066bb9fe"}


def english_mmlu():
    """MMLU with the columns of MMMLU."""
    for row in datasets.load_dataset(**MMLU, name="all", split="test"):
        choices = dict(zip("ABCD", row["choices"], strict=True))
        yield {"Question": row["question"], **choices, "Answer": "ABCD"[row["answer"]]}


def load_mmmlu(code, language, script, **metadata):
    """MMMLU in one locale, such as PT_BR; EN_US is the English MMLU that it was translated from."""
    hub = {"load": english_mmlu} if code == "EN_US" else {**MMMLU, **TEXT_CELLS, "name": code, "split": "test"}
    rows = read_rows(f"mmmlu/{language}.jsonl", ["Question", *"ABCD", "Answer"], **hub)
    rows = [{column: str(text).strip() for column, text in row.items()} for row in rows]
    rows = with_choices(rows, f"MMMLU in {code}", "ABCD", "Answer", "ABCD")
    return as_dataset(rows, "test", language=language, script=script)


def load_published(folder, ending, letters, language, **metadata):
    """Prompts and right choices of CC-Tuning, from the checkout of its repository in `SDRRL_CC_TUNING`."""
    checkout = os.environ.get("SDRRL_CC_TUNING")
    if not checkout:
        raise ValueError("Set SDRRL_CC_TUNING to a checkout of https://github.com/YYF-Tommy/CC-Tuning (its prompts).")
    data = Path(checkout) / "Inference" / "data" / folder
    prompts, gold = (list(local_rows(data / f"{kind}{ending}" / f"{language}.json")) for kind in ("split", "ans"))
    if len(prompts) != len(gold) or not set(gold) <= set(letters):
        raise ValueError(f"{data}: not each prompt in {language} has an answer of {', '.join(letters)}. Get it again.")
    rows = [{"prompt": row["instruction"], "gold": letter} for row, letter in zip(prompts, gold, strict=True)]
    return as_dataset(rows, "test", letters=letters)


# ---- Safety

PKU_SAFERLHF = {"path": "PKU-Alignment/PKU-SafeRLHF", "revision": "9421ffafec3fa40a1f1a7d567b4d525079477ecb"}


def pku_saferlhf_rows():
    """All pairs of the test split, `gold` being the safer answer."""
    responses = ["response_0", "response_1"]
    columns = ["prompt", *responses, "safer_response_id"]
    optional = ("is_response_0_safe", "is_response_1_safe")
    rows = read_rows("pku_saferlhf/pairs.jsonl", columns, optional, **PKU_SAFERLHF, split="test")
    return with_choices(rows, "PKU-SafeRLHF", responses, "safer_response_id", "01")


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
    rows = read_rows("multijail/MultiJail.csv", ["id", "tags", language], **MULTIJAIL, **TEXT_CELLS, split="train")
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
    hub = {**XLSUM, "data_files": {"test": f"{code}/test/0000.parquet"}, "split": "test"}
    rows = read_rows(f"xlsum/{language}.jsonl", ["text", "summary"], **hub)
    limit = int(max_article_chars) if max_article_chars else None
    rows = [{"text": row["text"][:limit], "summary": row["summary"]} for row in rows]
    return as_dataset(rows, "test", language=language, script=script)


MKQA_URL = "https://github.com/apple/ml-mkqa/raw/651b8cc85c407270b024157aff06ee6ab8c4fc6d/dataset/mkqa.jsonl.gz"


def mkqa_questions(code):
    """Questions in one language that a closed-book answer can be scored on, with all their right answers."""
    with gzip.open(datasets.DownloadManager().download(MKQA_URL), "rt", encoding="utf-8") as file:
        for item in map(json.loads, file):
            answers = item["answers"][code]
            if not any(answer["type"] in ("unanswerable", "long_answer") for answer in answers):
                texts = [text for answer in answers for text in (answer["text"], *answer.get("aliases", []))]
                yield {"question": item["queries"][code], "answers": texts}


def load_mkqa(code, language, script, **metadata):
    """Questions in one language, `code` being that of MKQA."""
    file = f"mkqa/{language}.jsonl"
    rows = read_rows(file, ["question", "answers"], load=mkqa_questions, code=code)
    for number, row in enumerate(rows, 1):
        row["answers"] = [text for text in row["answers"] if text] if isinstance(row["answers"], list) else []
        if not row["answers"]:
            raise ValueError(f"{file}, row {number}: `answers` must be a list with a text in it. Correct the row.")
    return as_dataset(rows, "test", language=language, script=script)
