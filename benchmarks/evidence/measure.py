"""
What is measured of a model, item by item: bits per byte of texts, and answers and translations that it writes. Texts
are not kept; what is kept of each item are numbers that add up (chrF++ statistics, likelihoods, bytes, 0 or 1).
"""

import torch
from peft import PeftModel
from sacrebleu.metrics import CHRF

from sdrrl_trl.engines import Sampling
from sdrrl_trl.engines.transformers import TransformersGenerator
from sdrrl_trl.languages import LANGUAGES, in_language
from sdrrl_trl.transfer.filters import is_repetitive


DOCUMENT_START = "<|endoftext|>"  # what stands between the documents of SmolLM2's pre-training
N_GENERATED, N_FLORES_BPB, N_FLORES = 40, 100, 40


def load(model: str, adapter: str | None) -> TransformersGenerator:
    generator = TransformersGenerator(model, Sampling(max_new_tokens=128), dtype="float32")
    if adapter is not None:
        PeftModel.from_pretrained(generator.model, adapter).merge_adapter()  # into the generator's weights
    return generator


def measure_likelihoods(generator, held: dict, target: str, sentences: dict[str, list[str]]) -> dict[str, list]:
    """`[log-likelihood in nats, bytes]` of each held-out answer, and of FLORES sentences without a question."""
    tokenizer, model = generator.tokenizer, generator.model
    sets = {}
    for split, answers, kind, language in (
        ("test", "own", "target", target),
        ("test", "reference", "target", target),
        ("test", "own", "source", "en"),
        ("test", "reference", "source", "en"),
        ("dev", "own", "target", target),
        ("dev", "reference", "target", target),
    ):
        sets[f"{split}/{language}/{answers}"] = [
            (
                tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True),
                row["completion"][0]["content"],
            )
            for row in held[split][answers][kind]
        ]
    for language, lines in sentences.items():
        sets[f"test/{language}/flores"] = [(DOCUMENT_START, line) for line in lines[:N_FLORES_BPB]]
    return {name: log_likelihoods(model, tokenizer, pairs) for name, pairs in sets.items()}


@torch.inference_mode()
def log_likelihoods(model, tokenizer, pairs: list[tuple[str, str]], batch_size: int = 16) -> list[list[float]]:
    rows = []
    for before, text in pairs:
        ids = tokenizer(before + text, add_special_tokens=False)["input_ids"]
        rows.append((ids, len(tokenizer(before, add_special_tokens=False)["input_ids"])))
    results = [[0.0, len(text.encode())] for _, text in pairs]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        longest = len(rows[batch[-1]][0])
        ids = torch.tensor([rows[i][0] + [0] * (longest - len(rows[i][0])) for i in batch])
        hidden = model.model(ids).last_hidden_state  # padding is behind the text, which does not see it
        for place, i in enumerate(batch):
            tokens, n = rows[i]
            logits = model.lm_head(hidden[place, n - 1 : len(tokens) - 1]).float()
            chosen = logits.log_softmax(-1).gather(-1, torch.tensor(tokens[n:])[:, None])
            results[i][0] = round(chosen.sum().item(), 3)
    return results


def measure_texts(generator, held: dict, target: str, sentences: dict[str, list[str]]) -> dict[str, dict[str, list]]:
    """Answers to held-out questions in both languages, and FLORES translations in both directions."""
    questions, jobs = held["test"]["own"], []
    for kind, language in (("target", target), ("source", "en")):
        prompts = [row["prompt"] for row in questions[kind][:N_GENERATED]]
        references = {
            answers: [row["completion"][0]["content"] for row in held["test"][answers][kind][:N_GENERATED]]
            for answers in ("own", "reference")
        }
        jobs.append((f"answers/{language}", language, prompts, references))
    for a, b in (("en", target), (target, "en")):
        wording = (  # that of the task sdrrl_flores
            f"Translate this sentence from {LANGUAGES[a].name} into {LANGUAGES[b].name}. Write only the translation."
        )
        prompts = [[{"role": "user", "content": f"{wording}\n\n{line}"}] for line in sentences[a][:N_FLORES]]
        jobs.append((f"flores/{a}-{b}", b, prompts, {"reference": sentences[b][:N_FLORES]}))
    return {name: _score(generator, *job) for name, *job in jobs}


def _score(generator, language: str, prompts: list, references: dict[str, list[str]]) -> dict[str, list]:
    texts = [generation.text for generation in generator.generate(prompts)]
    chrf, spaces = CHRF(word_order=2), LANGUAGES[language].spaces
    scores = {
        f"chrf++/{name}": [
            chrf._extract_corpus_statistics([text], [[reference]])[0]
            for text, reference in zip(texts, those, strict=True)
        ]
        for name, those in references.items()
    }
    scores["wrong_language"] = [int(not in_language(text, language)) for text in texts]
    scores["repetitive"] = [int(is_repetitive(text, spaces)) for text in texts]
    scores["empty"] = [int(not text) for text in texts]
    return scores
