"""lm-eval asks one model some tasks: for `sdrrl evaluate`, and for `LMEvalCallback` in the training."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from sdrrl_trl.utils import SDRRLError


def prepare_tasks(
    tasks: dict[str, Any], limit: int | None, n_processes: int, gen_kwargs: dict[str, Any] | None = None
) -> None:
    """
    What `lm_eval.simple_evaluate` does before it evaluates; that would also reset the random state and call git.

    Raises:
        `SDRRLError`: for a task with fewer items than there are processes.
    """
    for name, task in tasks.items():
        if task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
        if gen_kwargs and task.get_config("output_type") == "generate_until":
            task.set_config("generation_kwargs", gen_kwargs, update=True)
        if (n := n_items(task, limit)) < n_processes:
            raise SDRRLError(
                f"{name} has {n} items for {n_processes} processes, and lm-eval cannot leave one without any: "
                "it would wait for ever. Use fewer processes, raise `limit`, or leave the task out."
            )


def n_items(task: Any, limit: int | None) -> int:
    """How many items of a task are asked."""
    return len(task.eval_docs) if limit is None else min(limit, len(task.eval_docs))


def ask(
    lm: Any, tasks: dict[str, Any], limit: int | None, apply_chat_template: bool, system_prompt: str | None = None
) -> tuple[dict[str, Any] | None, bool]:
    """
    Asks a model tasks, in all processes together.

    Args:
        lm (`lm_eval.api.model.LM`):
            The model.
        tasks (`dict[str, Any]`):
            lm-eval task objects by name, from [`prepare_tasks`].
        limit (`int`, *optional*):
            Use only the first so many items of each task.
        apply_chat_template (`bool`):
            Ask through the model's chat template.
        system_prompt (`str`, *optional*):
            Asked before every question.

    Returns:
        `tuple`: what lm-eval's `evaluate` returns, in the first process, else `None`; and, in all of them, whether the
        logits were NaN in any, of which lm-eval makes scores like any others.
    """
    from accelerate.utils import gather_object
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    for task in tasks.values():
        task.set_fewshot_seed(seed=1234)  # that of the lm_eval command
    with watch_for_nan(lm.model) if isinstance(lm, HFLM) else nullcontext(False) as found_nan:
        results = evaluate(
            lm,
            {"tasks": tasks},
            limit=limit,
            bootstrap_iters=0,  # the report has paired intervals; and in a training, lm-eval would start processes
            apply_chat_template=apply_chat_template,
            system_instruction=system_prompt,
        )
    return results, any(gather_object([bool(found_nan)]))


@contextmanager
def watch_for_nan(model: Any) -> Iterator[Any]:
    """Gives a tensor that turns true once the model's logits hold a NaN, which lm-eval takes for an answer."""
    import torch

    found = torch.zeros((), dtype=torch.bool, device=model.device)

    def look(module, args, logits):
        found.logical_or_(logits.isnan().any())

    handle = model.get_output_embeddings().register_forward_hook(look)
    try:
        yield found
    finally:
        handle.remove()
