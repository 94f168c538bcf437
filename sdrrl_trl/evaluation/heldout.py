"""Tasks made from the held-out questions of a transfer set."""

from glob import escape
from pathlib import Path
from typing import Any

from sdrrl_trl.evaluation.significance import corpus_score
from sdrrl_trl.languages import in_language
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

    options = load_manifest(transfer_set)["options"]
    configs = []
    for language in [*options["target_languages"], options["source_language"]]:
        kind = "source" if language == options["source_language"] else "target"
        common = {
            "custom_dataset": load_held_out,
            "dataset_kwargs": {"file": str(transfer_set / "test.parquet"), "kind": kind, "language": language},
            "test_split": "test",
            "doc_to_text": "question",
            "doc_to_target": "answer",
            "metadata": {"version": 0.0},
        }
        # As long at most as the answers that they are compared with
        limit = options["max_new_tokens"]
        generation = common | {
            "task": f"sdrrl_heldout_gen_{language}",
            "output_type": "generate_until",
            "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": limit},
            "process_results": process_generation,
            "metric_list": [
                {"metric": "chrf++", "aggregation": chrf, "higher_is_better": True},
                {"metric": "in_language", "aggregation": "mean", "higher_is_better": True},
            ],
        }
        likelihood = common | {
            "task": f"sdrrl_heldout_bpb_{language}",
            "output_type": "loglikelihood",
            "process_results": process_likelihood,
            "metric_list": [
                {"metric": "answer_bits_per_byte", "aggregation": bits_per_byte, "higher_is_better": False},
            ],
        }
        configs += [generation, likelihood]
    tasks = TaskManager(include_defaults=False).load(configs)["tasks"]
    # On the object, as lm-eval's classes of tasks are others in 0.4 and 0.5
    for task in tasks.values():
        task.fewshot_context = whole_conversation
    return tasks


def load_held_out(file: str, kind: str, language: str, **metadata: Any) -> dict[str, Any]:
    """Held-out rows of one kind and language, as `custom_dataset` of lm-eval."""
    from datasets import Dataset

    rows = Dataset.from_parquet(escape(file))  # it takes paths as patterns
    rows = rows.filter(lambda row: row["kind"] == kind and row["answer_language"] == language)
    return {
        "test": rows.map(
            lambda row: {
                "messages": row["prompt"],
                "question": row["prompt"][-1]["content"],
                "answer": row["completion"][0]["content"],
                "language": language,
            },
            remove_columns=rows.column_names,
        )
    }


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
    answer = _only(results)
    return {"chrf++": (doc["answer"], answer), "in_language": float(in_language(answer, doc["language"]))}


def process_likelihood(doc: dict[str, Any], results: list[Any]) -> dict[str, Any]:
    """`(log-likelihood in nats, bytes)` of the answer."""
    return {"answer_bits_per_byte": (_only(results)[0], len(doc["answer"].encode()))}


def _only(results: list[Any]) -> Any:
    """The one answer; lm-eval 0.5 gives a list of answers for each request, as it may repeat them."""
    return results[0][0] if isinstance(results[0], list) else results[0]


# Functions, and metrics of our own names: lm-eval 0.4 and 0.5 register different ones, for other kinds of tasks
def chrf(items: list[tuple[str, str]]) -> float:
    return corpus_score("chrf++", items)


def bits_per_byte(items: list[tuple[float, int]]) -> float:
    return corpus_score("answer_bits_per_byte", items)
