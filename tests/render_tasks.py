"""
Prompts and scores of every leaf on the data of a hub, as JSON: `python render_tasks.py OUTPUT`.

Run in a process of its own, with HF_ENDPOINT and HF_HOME in the environment. The model is a script: it generates a
fixed answer of each kind, and its log-likelihoods are hashes of the texts.
"""

import hashlib
import json
import os
import sys
import zlib
from pathlib import Path

import datasets
import lm_eval
from lm_eval.api.model import LM

from sdrrl_trl.evaluation.suite import leaves, task_manager
from sdrrl_trl.evaluation.tasks import tasks_dir


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


def right(doc):
    """What a model should answer."""
    for key in ("tgt", "summary", "Answer"):
        if key in doc:
            return doc[key]
    if "answers" in doc:
        return doc["answers"][0]
    if "label" in doc:
        return "ABC"[doc["label"]]
    if "answer_right_ending" in doc:
        return "AB"[int(doc["answer_right_ending"]) - 1]
    return "ABCD"[int(doc["correct_answer_num"]) - 1] if "correct_answer_num" in doc else "B"


class Script(LM):
    def __init__(self):
        super().__init__()
        self.answer, self.seen = None, {}

    def generate_until(self, requests):
        self.note(requests)
        return [self.answer(request.doc) for request in requests]

    def loglikelihood(self, requests):
        self.note(requests)
        texts = [f"{zlib.crc32(request.args[0].encode())} {request.args[1]}" for request in requests]
        return [(-(zlib.crc32(text.encode()) % 1000) / 100, False) for text in texts]

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError

    def note(self, requests):
        for request in requests:
            self.seen.setdefault(request.task_name.rpartition(":")[2], []).append(request.args)


def digest(value):
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, sort_keys=True).encode()).hexdigest()[:16]


def render():
    manager, model, found = task_manager(), Script(), {}
    tasks = [task for spec in leaves(tasks_dir()).values() for task in manager.load([spec])["tasks"].values()]
    generating = [task for task in tasks if task.OUTPUT_TYPE == "generate_until"]
    for number, (kind, model.answer) in enumerate(ANSWERS.items()):
        model.seen = {}
        results = lm_eval.simple_evaluate(
            model,
            tasks=generating if number else tasks,  # log-likelihoods do not depend on the answer
            task_manager=manager,
            limit=LIMIT,
            bootstrap_iters=0,
            log_samples=False,
        )["results"]
        for name, scores in results.items():
            leaf = found.setdefault(name.rpartition(":")[2], {})
            leaf.setdefault("requests", digest(model.seen[name.rpartition(":")[2]]))
            leaf[kind] = {
                key.partition(",")[0]: round(value, 6)
                for key, value in sorted(scores.items())
                if "," in key and "stderr" not in key and isinstance(value, int | float)
            }
    return found


def from_the_hub(download):
    """`DownloadManager.download` for what lies elsewhere: the hub has it under its last name."""

    def download_here(manager, url):
        if isinstance(url, str) and url.startswith("https://"):
            url = f"{os.environ['HF_ENDPOINT']}/raw/{url.rpartition('/')[2]}"
        return download(manager, url)

    return download_here


if __name__ == "__main__":
    datasets.DownloadManager.download = from_the_hub(datasets.DownloadManager.download)
    Path(sys.argv[1]).write_text(json.dumps(render()))
