"""Published scores of SDRRL, each with the reason why it must not be compared with ours."""

from typing import Any

from sdrrl_trl.evaluation.views import benchmark_of, mean_of


_CC = "CC-Tuning (arXiv 2506.00875)"
_MLC = "MLC (arXiv 2602.16660)"
_SDRRL = "SDRRL (arXiv 2402.12204)"
_OTHER_PROMPTS = "7-8B base models tuned on other data, 1,000 of the items, prompts of their own"
_LIKELIHOOD = "ours compares log-likelihoods, theirs generates; " + _OTHER_PROMPTS
_UNKNOWN = "prompt, shots and base model of the row are not known"
_JUDGE = "judge, decoding and base model of the row are not known"
# (benchmark, metric, languages, published score, origin, why it is not comparable)
PUBLISHED = [
    ("sdrrl_xnli_gen_*", "acc", "en ar el hi ru sw th tr ur zh", 52.36, _CC, _OTHER_PROMPTS),
    ("xnli_*", "acc", "en ar el hi ru sw th tr ur zh", 52.36, _CC, _LIKELIHOOD),
    (
        "sdrrl_xstorycloze_gen_*",
        "acc",
        "ar en es eu hi id ru sw te zh",
        80.67,
        _CC,
        "7-8B base models tuned on other data, prompts of their own",
    ),
    ("xstorycloze_*", "acc", "ar en es eu hi id ru sw te zh", 80.67, _CC, _LIKELIHOOD),
    ("sdrrl_mmmlu_gen_*", "acc", "en ar bn es hi id ko pt sw yo", 47.28, _CC, _OTHER_PROMPTS),
    ("sdrrl_mmmlu_*", "acc", "en ar bn es hi id ko pt sw yo", 47.28, _CC, _LIKELIHOOD),
    (
        "sdrrl_pku_saferlhf_gen",
        "safe_rate",
        "en",
        57.22,
        _MLC,
        "theirs are 180 prompts that are not known; " + _JUDGE,
    ),
    (
        "sdrrl_multijail_*",
        "attack_success_rate",
        "en",
        33.65,
        _MLC,
        "whether 33.65 counts safe or unsafe answers is not clear; " + _JUDGE,
    ),
    ("sdrrl_multijail_*", "attack_success_rate", "ko", 7.3, _MLC, _JUDGE),
    ("sdrrl_belebele_gen_*", "acc", "cs", 52.11, _SDRRL, _UNKNOWN),
    ("belebele_*", "acc", "cs", 52.11, _SDRRL, _UNKNOWN),
    ("sdrrl_flores_*-eng_Latn", "bleu_13a", "cs", 36.38, _SDRRL, "BLEU's tokenizer, " + _UNKNOWN),
    ("sdrrl_flores_eng_Latn-*", "bleu_13a", "cs", 27.91, _SDRRL, "BLEU's tokenizer, " + _UNKNOWN),
]


def published(results: dict[str, Any], languages: dict[str, str | None]) -> list[dict[str, Any]]:
    """Published rows of SDRRL beside ours (0 to 100, mean over the languages in common), where the task was run."""
    found = []
    for benchmark, metric, tags, score, origin, why in PUBLISHED:
        wanted = tags.split()
        tasks = [
            task
            for task, tag in languages.items()
            if benchmark_of(task, tag) == benchmark and (tag in wanted or "*" not in benchmark)
        ]
        values = {model: mean_of(results, model, tasks, metric) for model in results} if tasks else {None: None}
        if None in values.values():
            continue
        if len(tasks) < len(wanted):
            why = f"only {len(tasks)} of {len(wanted)} languages were run; {why}"
        scale = 1 if metric.startswith("bleu") else 100
        values = {model: scale * value for model, value in values.items()}
        found.append(
            {
                "benchmark": benchmark,
                "metric": metric,
                "languages": wanted if len(wanted) == len(tasks) else sorted({languages[task] for task in tasks}),
                "published": score,
                "origin": origin,
                "ours": values,
                "not_comparable_because": why,
            }
        )
    return found
