"""
Estimate of what SDRRL takes for a 7B model, 16 languages and 52,000 instructions: tokens, GPU hours and cost by stage.

    python benchmarks/evidence/scaling.py [--work evidence]

Measured here: lengths of questions and reference answers (a 7B model writes longer ones than the small model of the
evidence), and how much longer each language is than English, in tokens of SmolLM2's tokenizer, which knows little but
English: one made for many languages gives fewer. Assumed, not measured: the rates and the price below.
"""

import argparse
from pathlib import Path

import data
from run import DATA
from tables import table
from transformers import AutoTokenizer

from sdrrl_trl.engines.fast_translate import smollm2


N, TEMPLATE = 52_000, 30  # instructions; tokens of chat template and system prompt in a record
TARGETS = "bg cs da fi hu id ja km ko nb pl pt sl th uk vi".split()  # the paper's
PARAMETERS = 7e9
GENERATED_PER_SECOND = 3_000  # new tokens a second of a 7B model in bfloat16 on one 80 GB GPU, many requests at once
TRANSLATED_PER_SECOND = 1_500  # the same of MADLAD-400-3B, whose own tokens are longer: the hours are an upper bound
PEAK_FLOPS, UTILISATION = 989e12, 0.4  # dense bfloat16 of an H100, and the share of it that training reaches
PRICE = 2.5  # US dollars for a GPU hour


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("evidence"), help="folder of `run.py`")
    work = parser.parse_args().work
    tokenizer = AutoTokenizer.from_pretrained(smollm2()[0])
    train, _ = data.load(work, "pt", tokenizer)
    rows = train["reference"]["source"]
    answer = sum(row["n_supervised"] for row in rows) / len(rows)
    questions = [row["prompt"][-1]["content"] for row in rows]
    question = sum(map(len, tokenizer(questions)["input_ids"])) / len(rows)

    def tokens_of(tag: str) -> int:
        return sum(map(len, tokenizer(data.sentences(DATA, tag, 200))["input_ids"]))

    longer = {tag: tokens_of(tag) / tokens_of("en") for tag in TARGETS}
    mean = sum(longer.values()) / len(longer)
    print(f"A question has {question:.0f} tokens, an answer {answer:.0f} (n = {len(rows)}).")
    print("Tokens against English: " + ", ".join(f"{tag} {ratio:.1f}" for tag, ratio in longer.items()))

    generated = N * answer
    translated = N * (question + answer) * mean * len(TARGETS)
    # `size` as many records as there are translated pairs, in the default proportions without parallel data: source 2,
    # target 3, the two mixed kinds 1.5 each; of kind `source` there are no more than questions
    size = N * len(TARGETS)
    lengths = {"source": question + answer, "target": (question + answer) * mean}
    lengths["mixed"] = (lengths["source"] + lengths["target"]) / 2
    counts = {"source": min(N, size * 2 / 8), "target": size * 3 / 8, "mixed": size * 3 / 8}
    n_records = sum(counts.values())
    trained = sum(n * (lengths[kind] + TEMPLATE) for kind, n in counts.items())
    train_rate = PEAK_FLOPS * UTILISATION / (6 * PARAMETERS)
    stages = [
        ("generate", f"{N:,} x {answer:.0f}", generated, GENERATED_PER_SECOND),
        ("translate", f"{N:,} x {question + answer:.0f} x {mean:.1f} x 16", translated, TRANSLATED_PER_SECOND),
        ("train, one epoch", f"{n_records:,.0f} x {trained / n_records:.0f}", trained, train_rate),
    ]
    lines, total = [], 0.0
    for stage, arithmetic, tokens, rate in stages:
        hours = tokens / rate / 3600
        total += hours
        cells = [stage, arithmetic, f"{tokens / 1e6:,.0f} M", f"{rate:,.0f}", f"{hours:,.0f}", f"{hours * PRICE:,.0f}"]
        lines.append([*cells, f"{hours / 8:,.1f}"])
    lines.append(["all", "", "", "", f"{total:,.0f}", f"{total * PRICE:,.0f}", f"{total / 8:,.1f}"])
    head = ["stage", "arithmetic", "tokens", "tokens/s and GPU", "GPU hours", "US $", "hours on 8 GPUs"]
    print("\n" + table(head, lines))


if __name__ == "__main__":
    main()
