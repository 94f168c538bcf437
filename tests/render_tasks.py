"""
Prompts and scores of every leaf on the data of a hub, as JSON: `python render_tasks.py OUTPUT [FOLDER OF TASKS]`.

Run in a process of its own, with HF_ENDPOINT and HF_HOME in the environment. The model is a script: it generates a
fixed answer of each kind, and its log-likelihoods are hashes of the texts.
"""

import functools
import hashlib
import json
import os
import sys
import zlib
from pathlib import Path

import datasets
import jinja2
from lm_eval.tasks import TaskManager
from scripted import Scripted, load, prepared, right, run


LIMIT = 4
ANSWERS = {
    "right": lambda doc: right(doc),
    "next choice": lambda doc: chr(ord(right(doc)[0]) + 1) + ")",
    "empty": lambda doc: "",
    "English": lambda doc: "This is a long answer in English, and it names no choice or fact that was asked for.",
    "thinking": lambda doc: f"<think>(A) or (B)?</think>\n\n**{right(doc)}**, because the other one is wrong.",
    "a sentence": lambda doc: f"The answer is {right(doc)}.\nA second line follows, 25.0 of them.",
    "many": lambda doc: "A) one\nB) two\nC) three",
    "Thai": lambda doc: "ฉันไม่สามารถช่วยคุณในเรื่องนี้ได้ กรุณาถามเรื่องอื่น",
    "refusal": lambda doc: "I'm sorry, but I can't help with that.",
}


def digest(value):
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, sort_keys=True).encode()).hexdigest()[:16]


def likelihood(arguments):
    return -(zlib.crc32(f"{zlib.crc32(arguments[0].encode())} {arguments[1].strip()}".encode()) % 1000) / 100


def load_folder(folder):
    """Tasks of a folder that stands alone, by name: of each benchmark every fifth, for only the languages differ."""
    manager = TaskManager(include_path=folder, include_defaults=False)
    names = [name for sub in sorted(Path(folder).iterdir()) for name in sorted(leaf_names(sub))[::5]]
    return prepared(manager.load(names)["tasks"])


def leaf_names(folder):
    return TaskManager(include_path=str(folder), include_defaults=False).all_subtasks


def assert_sound(name, task):
    """What lm-eval's own tests ask of a new task, and what it would not say: prompts all alike, no end, no target."""
    docs = list(task.eval_docs)[:10]
    assert len(docs) == 10, name
    prompts = [task.doc_to_text(doc) for doc in docs]
    assert all(prompt == prompt.rstrip() and "{{" not in prompt for prompt in prompts), name
    task.build_all_requests(limit=10, rank=0, world_size=1)
    asked = [instance.args for instance in task.instances]
    assert len({args[:2] if is_choice(args) else args[0] for args in asked}) >= 10
    if task.OUTPUT_TYPE == "generate_until":
        assert all(prompts) and {"until", "max_gen_toks"} <= set(task.config.generation_kwargs), name
    for doc in docs:
        target = task.doc_to_target(doc)
        if task.OUTPUT_TYPE == "multiple_choice":
            choices = task.doc_to_choice(doc)
            assert target in choices or int(target) in range(len(choices)), name
        else:
            assert isinstance(target, str) and (target or not task.config.doc_to_target), name


def render(tasks):
    found = {}
    for name, task in tasks.items():
        assert_sound(name, task)
    generating = {name: task for name, task in tasks.items() if task.OUTPUT_TYPE == "generate_until"}
    for number, (kind, answer) in enumerate(ANSWERS.items()):
        model = Scripted(lambda doc, args, answer=answer: likelihood(args) if is_choice(args) else answer(doc))
        # Log-likelihoods do not depend on the kind of answer
        scores, _ = run(model, generating if number else tasks, LIMIT)
        for name, values in scores.items():
            leaf = found.setdefault(name, {})
            # lm-eval 0.4 puts a space before a choice even where no question stands before it, 0.5 does not
            asked = [[part.strip() if isinstance(part, str) else part for part in args] for args in model.asked[name]]
            leaf.setdefault("requests", digest(asked))
            leaf[kind] = {metric: round(value, 6) for metric, value in values.items()}
    return found


def is_choice(arguments):
    return isinstance(arguments[1], str)  # else the options of a generation


def from_the_hub(download):
    """`DownloadManager.download` for what lies elsewhere: the hub has it under its last name."""

    def download_here(manager, url):
        if isinstance(url, str) and url.startswith("https://"):
            url = f"{os.environ['HF_ENDPOINT']}/raw/{url.rpartition('/')[2]}"
        return download(manager, url)

    return download_here


if __name__ == "__main__":
    # lm-eval 0.4 compiles a template for every document
    jinja2.Environment.from_string = functools.cache(jinja2.Environment.from_string)
    datasets.DownloadManager.download = from_the_hub(datasets.DownloadManager.download)
    tasks = load_folder(sys.argv[2]) if len(sys.argv) > 2 else load()
    Path(sys.argv[1]).write_text(json.dumps(render(tasks)))
