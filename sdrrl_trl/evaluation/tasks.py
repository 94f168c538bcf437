"""Where the lm-eval tasks are."""

from pathlib import Path


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
