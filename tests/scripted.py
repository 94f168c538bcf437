"""Runs tasks of lm-eval, 0.4 or 0.5, on a model that answers with a function."""

from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate

from sdrrl_trl.evaluation.suite import leaves, task_manager, tasks_dir


class Scripted(LM):
    """Answers with what `answer` makes of a document and the arguments of the request, which are noted by task."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.asked = answer, {}

    def generate_until(self, requests):
        return [self.reply(request) for request in requests]

    def loglikelihood(self, requests):
        return [(self.reply(request), False) for request in requests]

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError

    def reply(self, request):
        self.asked.setdefault(plain(request.task_name), []).append(request.args)
        return self.answer(request.doc, request.args)


def plain(name):
    """Name of a task without the groups that lm-eval 0.5 puts before it."""
    return name.rpartition(":")[2]


def load(names=None):
    """Task objects by name, with their data; by default all of ours."""
    manager, found = task_manager(), leaves(tasks_dir())
    return prepared({name: next(iter(manager.load([found[name]])["tasks"].values())) for name in names or found})


def prepared(tasks):
    """As `simple_evaluate` prepares tasks, which lm-eval 0.5 does not let take objects."""
    for task in tasks.values():
        task.set_fewshot_seed(seed=1234)
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
    return tasks


def run(answer, tasks, limit=20, log_samples=False):
    """`(scores, samples)` of loaded tasks or names, by task: `{metric: value}` and what lm-eval logs."""
    tasks = tasks if isinstance(tasks, dict) else load(tasks)
    model = answer if isinstance(answer, LM) else Scripted(answer)
    results = evaluate(model, {"tasks": tasks, "groups": {}}, limit=limit, bootstrap_iters=0, log_samples=log_samples)
    scores = {
        plain(name): {key.partition(",")[0]: value for key, value in found.items() if is_score(key, value)}
        for name, found in results["results"].items()
    }
    return scores, {plain(name): samples for name, samples in results.get("samples", {}).items()}


def is_score(key, value):
    return "," in key and "_stderr" not in key and isinstance(value, int | float)


def right(doc):
    """What a model should answer; where any answer will do, "B"."""
    if "gold" in doc:
        return doc["gold"] if "letters" in doc else "ABCD"[doc["gold"]]
    return doc.get("tgt") or doc.get("summary") or doc.get("answers", ["B"])[0]
