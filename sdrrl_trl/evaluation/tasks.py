"""Where the lm-eval tasks are, and tasks made from the held-out questions of a transfer set."""

from pathlib import Path
from typing import Any

from sdrrl_trl.languages import in_language
from sdrrl_trl.transfer.publish import load_manifest


def tasks_dir() -> Path:
    """Folder of the task definitions, for `lm_eval --include_path`: of the checkout, or of the installed wheel."""
    root = Path(__file__).parents[2]
    checkout = root / "lm_eval_tasks"
    return checkout if checkout.exists() else root / "lm_eval" / "tasks" / "sdrrl"


def include_paths() -> list[str]:
    """
    Folders for `TaskManager(include_path=..., include_defaults=False)`: ours, and those of lm-eval's own tasks that
    our groups take.
    """
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    return [str(tasks_dir()), *(str(root / name) for name in ("belebele", "xnli", "xstorycloze"))]


def held_out_tasks(transfer_set: Path, max_gen_toks: int) -> dict[str, dict[str, Any]]:
    """
    Two lm-eval tasks for each language of a transfer set, on its held-out questions.

    `sdrrl_heldout_gen_<language>` generates an answer and compares it with the held-out one (chrF++), and counts how
    many are in the language asked for. `sdrrl_heldout_bpb_<language>` is the log-likelihood of the held-out answer
    given its question, in bits per byte. The held-out answers are the initial model's own, translated for targets.

    Args:
        transfer_set (`Path`):
            Folder made by `sdrrl build`.
        max_gen_toks (`int`):
            Longest generated answer in tokens.

    Returns:
        `dict[str, dict[str, Any]]`: lm-eval task configurations by task name.
    """
    options = load_manifest(transfer_set)["options"]
    tasks = {}
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
        tasks[f"sdrrl_heldout_gen_{language}"] = {
            "task": f"sdrrl_heldout_gen_{language}",
            "output_type": "generate_until",
            "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": max_gen_toks},
            "process_results": process_generation,
            "metric_list": [
                {"metric": "chrf++", "aggregation": "chrf++", "higher_is_better": True},
                {"metric": "in_language", "aggregation": "mean", "higher_is_better": True},
            ],
            **common,
        }
        tasks[f"sdrrl_heldout_bpb_{language}"] = {
            "task": f"sdrrl_heldout_bpb_{language}",
            "output_type": "loglikelihood",
            "process_results": process_likelihood,
            "metric_list": [
                {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
            ],
            **common,
        }
    return tasks


def load_held_out(file: str, kind: str, language: str, **metadata: Any) -> dict[str, Any]:
    """Held-out rows of one kind and language, as `custom_dataset` of lm-eval."""
    from datasets import Dataset

    rows = Dataset.from_parquet(file)
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


def ask_whole_conversation(task: Any) -> Any:
    """
    Has a held-out task ask with all messages of a row. lm-eval itself knows one question for each item, and one system
    message for all, so earlier turns and a row's own system message would be lost.
    """

    def context(doc: dict[str, Any], apply_chat_template: bool = False, chat_template: Any = None, **_: Any) -> str:
        # The system message of the transfer set, which lm-eval would put before, is in the rows already
        if apply_chat_template:
            return chat_template(doc["messages"], add_generation_prompt=True)
        return "\n\n".join(message["content"] for message in doc["messages"])

    task.fewshot_context = context
    return task


def process_generation(doc: dict[str, str], results: list[str]) -> dict[str, Any]:
    return {"chrf++": (doc["answer"], results[0]), "in_language": float(in_language(results[0], doc["language"]))}


def process_likelihood(doc: dict[str, str], results: list[tuple[float, bool]]) -> dict[str, Any]:
    return {"bits_per_byte": (results[0][0], len(doc["answer"].encode()))}
