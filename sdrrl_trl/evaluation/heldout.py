"""Tasks made from the held-out questions of a transfer set."""

from glob import escape
from pathlib import Path
from typing import Any

from sdrrl_trl.evaluation.significance import corpus_score
from sdrrl_trl.languages import in_language
from sdrrl_trl.tasks.judge import first
from sdrrl_trl.tasks.thoughts import without_thoughts
from sdrrl_trl.transfer.publish import load_manifest


def held_out_tasks(transfer_set: Path) -> dict[str, Any]:
    """
    Two lm-eval tasks for each language of a transfer set, on its held-out questions.

    `sdrrl_heldout_gen_<language>` generates an answer, as long at most as those of the transfer set, compares it with
    the held-out one (chrF++), and counts how many are in the language asked for. `sdrrl_heldout_bpb_<language>` is the
    log-likelihood of the held-out answer given its question, in bits per byte. The held-out answers are the initial
    model's own, translated for targets.

    Args:
        transfer_set (`Path`):
            Folder made by `sdrrl build`.

    Returns:
        `dict[str, Any]`: lm-eval task objects by task name.
    """
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    options = load_manifest(transfer_set)["options"]
    configs = []
    for language in [*options["target_languages"], options["source_language"]]:
        kind = "source" if language == options["source_language"] else "target"
        data = {"file": str(transfer_set / "test.parquet"), "kind": kind, "language": language}
        for form in ("gen", "bpb"):
            config = load_yaml(Path(__file__).with_name(f"heldout_{form}.yaml"))
            config |= {"task": f"sdrrl_heldout_{form}_{language}", "dataset_kwargs": data}
            if form == "gen":  # as long at most as the answers that they are compared with
                config["generation_kwargs"]["max_gen_toks"] = options["max_new_tokens"]
            configs.append(config)
    tasks = TaskManager(include_defaults=False).load(configs)["tasks"]
    # On the object, as lm-eval's classes of tasks are others in 0.4 and 0.5
    for task in tasks.values():
        task.fewshot_context = whole_conversation
    return tasks


def load_held_out(file: str, kind: str, language: str, **metadata: Any) -> dict[str, Any]:
    """Held-out rows of one kind and language, as `custom_dataset` of lm-eval."""
    from datasets import Dataset

    rows = [
        {
            "messages": row["prompt"],
            "question": row["prompt"][-1]["content"],
            "answer": row["completion"][0]["content"],
            "language": language,
        }
        for row in Dataset.from_parquet(escape(file))  # it takes paths as patterns
        if (row["kind"], row["answer_language"]) == (kind, language)
    ]
    return {"test": Dataset.from_list(rows)}


def whole_conversation(doc: dict, apply_chat_template: bool = False, chat_template: Any = None, **_: Any) -> str:
    """
    Prompt of a held-out item, in the place of lm-eval's `fewshot_context`. That knows one question for each item and
    one system message for all, so earlier turns and a row's own system message would be lost.
    """
    # The system message of the transfer set, which lm-eval would put before, is in the rows already
    if apply_chat_template:
        return chat_template(doc["messages"], add_generation_prompt=True)
    return "\n\n".join(message["content"] for message in doc["messages"])


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
