"""Tasks made from the held-out questions of a transfer set."""

import logging
from pathlib import Path
from typing import Any

from sdrrl_trl.evaluation.significance import corpus_score
from sdrrl_trl.languages import in_language
from sdrrl_trl.tasks.judge import first
from sdrrl_trl.tasks.thoughts import without_thoughts
from sdrrl_trl.transfer.files import read_parquet
from sdrrl_trl.transfer.publish import load_manifest


logger = logging.getLogger(__name__)
HELD_OUT = "sdrrl_heldout"


def held_out_tasks(transfer_set: Path) -> dict[str, Any]:
    """
    lm-eval tasks for each language of a transfer set, on its held-out questions and parallel sentences.

    `sdrrl_heldout_gen_<language>` generates an answer, as long at most as those of the transfer set, compares it with
    the held-out one (chrF++), and counts how many are in the language asked for. `sdrrl_heldout_bpb_<language>` is the
    log-likelihood of the held-out answer with the end of the turn, given its question, in bits per byte of the answer.
    The held-out answers are the initial model's own, translated for targets. `sdrrl_heldout_text_<language>`, for
    languages with held-out parallel sentences, is bits per byte of those alone: text that no model here has written.

    In the source language, if they are samples at temperature 1, the mean of `log p_initial - log p_model` over them
    is an unbiased estimate of KL(initial || model): the drift, which only the initial model has at zero.

    Args:
        transfer_set (`Path`):
            Folder made by `sdrrl build`.

    Returns:
        `dict[str, Any]`: lm-eval task objects by task name, of those that have items.
    """
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    options = load_manifest(transfer_set)["options"]
    # Tells the report whether the answers are such samples
    answers = f"{options['answer_source']}, temperature {options['temperature']:g}, top_p {options['top_p']:g}"
    configs = []
    for language in [*options["target_languages"], options["source_language"]]:
        kind = "source" if language == options["source_language"] else "target"
        for form in ("gen", "bpb", "text"):
            config, task = load_yaml(Path(__file__).with_name(f"heldout_{form}.yaml")), f"{HELD_OUT}_{form}_{language}"
            data = {"file": str(transfer_set / "test.parquet"), "kind": kind, "language": language}
            data |= config.get("dataset_kwargs", {})
            if not len(load_held_out(**data)["test"]):  # which lm-eval cannot load
                if form != "text":
                    logger.warning(f"{task} has no items: all held-out answers were cut off or not translated.")
                continue
            config |= {"task": task, "dataset_kwargs": data}
            if form != "text":
                config["metadata"]["answers"] = answers
            if form == "gen":  # as long at most as the answers that they are compared with
                config["generation_kwargs"]["max_gen_toks"] = options["max_new_tokens"]
            configs.append(config)
    tasks = TaskManager(include_defaults=False).load(configs)["tasks"]
    # On the object, as lm-eval's classes of tasks are others in 0.4 and 0.5
    for task in tasks.values():
        task.fewshot_context = whole_conversation
    return tasks


def load_held_out(file: str, kind: str, language: str, whole: bool = False, **metadata: Any) -> dict[str, Any]:
    """
    Held-out rows of one kind and language, as `custom_dataset` of lm-eval. An answer is not compared with one that was
    cut off, so those are left out where `whole` is set.
    """
    from datasets import Dataset

    rows = [
        {
            "messages": row["prompt"],
            "question": row["prompt"][-1]["content"],
            "answer": row["completion"][0]["content"],
            "said": row["completion"][0]["content"],  # with the end of the turn, once it is known
            "truncated": row.get("truncated", False),
            "language": language,
        }
        for row in read_parquet(Path(file))  # `datasets` might give what was there earlier, from its cache
        if (row["kind"], row["answer_language"]) == (kind, language) and not (whole and row.get("truncated"))
    ]
    if kind == "translation":  # a sentence may have translations into several languages
        rows = list({row["answer"]: row for row in rows}.values())
    return {"test": Dataset.from_list(rows)}


def is_held_out(name: str) -> bool:
    """Whether a name stands for tasks of this file: for all, those of a form, or one of them."""
    return f"{name}_".startswith(f"{HELD_OUT}_")


def whole_conversation(doc: dict, apply_chat_template: bool = False, chat_template: Any = None, **_: Any) -> str:
    """
    Prompt of a held-out item, in the place of lm-eval's `fewshot_context`. That knows one question for each item and
    one system message for all, so earlier turns and a row's own system message would be lost.
    """
    # The system message of the transfer set, which lm-eval would put before, is in the rows already
    if not apply_chat_template:
        return "\n\n".join(message["content"] for message in doc["messages"])
    tokenizer = chat_template.__self__.tokenizer  # None for a chat server, which says nothing of likelihoods either
    if tokenizer is not None and not doc["truncated"]:  # an answer that was cut off is the beginning of one
        doc["said"] += end_of_turn(tokenizer)
    return chat_template(doc["messages"], add_generation_prompt=True)


def end_of_turn(tokenizer: Any) -> str:
    """What a chat template writes behind an answer, as `<|im_end|>`: that it ends there is part of what was said."""
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "¤"}]  # a sign that is in no template
    return tokenizer.apply_chat_template(turns, tokenize=False).rpartition("¤")[2].rstrip()


def process_generation(doc: dict[str, Any], results: list[Any]) -> dict[str, Any]:
    """Items of chrF++, `(reference, answer)`, and whether the answer is in its language."""
    answer = without_thoughts(first(results))  # as those that it is compared with
    return {"chrf++": (doc["answer"], answer), "in_language": float(in_language(answer, doc["language"]))}


def process_likelihood(doc: dict[str, Any], results: list[Any]) -> dict[str, Any]:
    """`(log-likelihood in nats, bytes)` of the answer."""
    return {"answer_bits_per_byte": (first(results), len(doc["answer"].encode()))}


# Our own, as lm-eval's is for other kinds of tasks, in 0.4 and 0.5 for different ones
def bits_per_byte(items: list[tuple[float, int]]) -> float:
    return corpus_score("answer_bits_per_byte", items)
