"""
What is measured of a model, item by item. Texts are not kept; what is kept of each item are numbers: log-likelihoods
in nats, bytes, 0 or 1. `PLAN.md` says what each measure is for.
"""

import re

import numpy as np
import torch
from data import ITEMS, chats, initial_answers, json_lines, lines, model_path, read_pool
from likelihood import Rows, divergence, log_likelihoods
from pairs import minimal_pair
from peft import PeftModel

from sdrrl_trl.engines import Sampling
from sdrrl_trl.engines.transformers import TransformersGenerator
from sdrrl_trl.languages import LANGUAGES, in_language
from sdrrl_trl.transfer.filters import is_repetitive


DOCUMENT_START = "<|endoftext|>"  # stands between documents in the pre-training of SmolLM2 and of Qwen2.5
TEMPERATURES = (0.8, 1.0, 1.2, 1.4)


def load(model: str, adapter: str | None, strength: float = 1.0) -> TransformersGenerator:
    generator = TransformersGenerator(model_path(model), Sampling(128, temperature=0.0), dtype="float32")
    if adapter is not None:
        adapted = PeftModel.from_pretrained(generator.model, adapter)
        for name, weights in adapted.named_parameters():
            if "lora_B" in name:
                weights.data *= strength
        adapted.merge_adapter()  # into the generator's weights
    return generator


class Measures:
    """
    Measures of one model.

    Args:
        name (`str`): The initial model, in `config.yaml`.
        adapter (`str`, *optional*): Folder of the adapter that was trained; without it, the initial model is measured.
        strength (`float`, *optional*, defaults to `1.0`): How much of its change is added to the weights.
    """

    def __init__(self, name: str, adapter: str | None, strength: float = 1.0):
        self.name, self.generator = name, load(name, adapter, strength)
        self.model, self.tokenizer = self.generator.model, self.generator.tokenizer

    def dev(self) -> dict:
        """Bits per byte of held-out answers and FLORES at all temperatures, and drift."""
        texts = {}
        for answers in ("sampled", "reference"):
            rows = {(row["kind"], row["source_id"]): row for row in read_pool(self.name, answers, self.tokenizer)}
            for kind, language in (("target", "pt"), ("source", "en")):
                found = [rows[kind, id] for id in ITEMS["dev_questions"] if (kind, id) in rows]
                texts[f"{answers}/{language}"] = [self._answer(row) for row in found]
        for language in ("pt", "en"):
            texts[f"flores/{language}"] = _documents(language, "dev_flores")
        likelihoods = {name: self._likelihoods(rows, TEMPERATURES) for name, rows in texts.items()}
        return {"likelihoods": likelihoods, "drift": self._drift("dev_drift")}

    def test(self, dev: dict) -> dict:
        """All that `PLAN.md` lists, at temperature 1 and at those that fit the dev texts of a language best."""
        temperatures = {language: fitted_temperature(dev, language) for language in ("pt", "en")}
        found = {"temperatures": temperatures, **self._texts({tag: (1.0, t) for tag, t in temperatures.items()})}
        found["translation"] = {f"{a}-{b}": self._translation(a, b) for a, b in (("en", "pt"), ("pt", "en"))}
        return found | self.gate() | {"texts": self.texts()}

    def bits(self) -> dict:
        """T1, T2 and S3 at temperature 1, and S1: what is measured of the runs on clean texts."""
        return {**self._texts({"pt": (1.0,), "en": (1.0,)}), "drift": self._drift("drift")}

    def gate(self) -> dict:
        """Drift and choices. The model is in bfloat16 afterwards."""
        drift = self._drift("drift")
        # Four times as fast; which choices and words the rounding changes is noise, the same for all models
        self.model.to(torch.bfloat16)
        return {"drift": drift, "choices": self.choices()}

    def choices(self) -> dict[str, list]:
        """Of each item of T4, T5 and S2 whether the right one of several texts was chosen."""
        pairs = {
            kind: [_pair(corpus, number, kind) for corpus, numbers in those.items() for number in numbers]
            for kind, those in ITEMS["pairs"].items()
        }
        stories, inferences = _stories(), _inferences()
        return {
            **{f"pairs/{kind}": self._choose(rows, [0] * len(rows)) for kind, rows in pairs.items()},
            "questions": self._questions(),
            "stories": self._choose(*stories),
            "inferences": self._choose(*inferences),
        }

    def texts(self) -> dict[str, list]:
        """What the model writes as an answer to held-out Portuguese questions, greedily."""
        rows = {
            row["source_id"]: row
            for row in read_pool(self.name, "reference", self.tokenizer)
            if row["kind"] == "target"
        }
        answers = self.generator.generate([rows[id]["prompt"] for id in ITEMS["open_questions"]])
        texts = [answer.text for answer in answers]
        return {
            "wrong_language": [int(not in_language(text, "pt")) for text in texts],
            "repetitive": [int(is_repetitive(text, LANGUAGES["pt"].spaces)) for text in texts],
            "characters": [len(text) for text in texts],
        }

    def _texts(self, temperatures: dict[str, tuple[float, ...]]) -> dict[str, list]:
        found, human = {}, read_pool(self.name, "human", self.tokenizer)
        wanted = {f"row-{number}" for number in ITEMS["human"]}
        for language, kind in (("pt", "target"), ("en", "source")):
            rows = [self._answer(row) for row in human if row["kind"] == kind and row["source_id"] in wanted]
            found[f"human/{language}"] = self._likelihoods(rows, temperatures[language])
            found[f"flores/{language}"] = self._likelihoods(_documents(language, "flores"), temperatures[language])
        return found

    def _answer(self, row: dict) -> tuple[str, list[str]]:
        return self._chat(row["prompt"]), [row["completion"][0]["content"]]

    def _chat(self, messages: list[dict[str, str]]) -> str:
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def _likelihoods(self, rows: Rows, temperatures: tuple[float, ...]) -> list[list[float]]:
        """Of each text its bytes, and the log-likelihood at each temperature."""
        found = log_likelihoods(self.model, self.tokenizer, rows, temperatures)
        return [[len(texts[0].encode()), *nats] for (_, texts), nats in zip(rows, found, strict=True)]

    def _drift(self, items: str) -> list[list[float]]:
        """Of each sampled answer of the initial model its bytes, and KL(initial || model) in nats."""
        initial = load(self.name, None).model
        answers, questions = initial_answers(self.name), chats("instructions/alpaca_1000.jsonl", ITEMS[items])
        rows = [(self._chat(messages), [answers[row]]) for row, messages in questions.items() if answers[row]]
        found = divergence(initial, self.model, self.tokenizer, rows)
        return [[len(texts[0].encode()), nats] for (_, texts), nats in zip(rows, found, strict=True)]

    def _translation(self, source: str, target: str) -> list[list[float]]:
        """Of each sentence its log-likelihood as a translation, and as any sentence, in a chat both times."""
        name = LANGUAGES[target].name
        ask = f"Translate this sentence from {LANGUAGES[source].name} into {name}. Write only the translation.\n\n"
        originals, translations = lines("flores", source), lines("flores", target)
        chosen = [(originals[number - 1], translations[number - 1]) for number in ITEMS["translations"]]
        given = [(self._chat([{"role": "user", "content": ask + original}]), [text]) for original, text in chosen]
        alone = self._chat([{"role": "user", "content": f"Write a sentence in {name}."}])
        pairs = (
            log_likelihoods(self.model, self.tokenizer, rows) for rows in (given, [(alone, [t]) for _, t in chosen])
        )
        return [[a, b] for (a,), (b,) in zip(*pairs, strict=True)]

    def _choose(self, rows: Rows, right: list[int]) -> list[int]:
        """Whether the likeliest text of each row, all of which have as many, is the right one."""
        found = np.array(log_likelihoods(self.model, self.tokenizer, rows)).reshape(len(rows), -1)
        return [int(chosen == wanted) for chosen, wanted in zip(found.argmax(1).tolist(), right, strict=True)]

    def _questions(self) -> list[int]:
        """Whether the question makes the right answer likelier by more than the wrong ones."""
        content = json_lines("mkqa/pt.jsonl")
        given, alone = [], []
        for numbers in ITEMS["choices"]:
            answers = [f" {content[number - 1]['answers'][0]}" for number in numbers]
            given.append((f"{DOCUMENT_START}Pergunta: {content[numbers[0] - 1]['question']}?\nResposta:", answers))
            alone.append((f"{DOCUMENT_START}Resposta:", answers))
        shape = (len(given), -1)
        with_question, without = (
            np.array(log_likelihoods(self.model, self.tokenizer, rows)).reshape(shape) for rows in (given, alone)
        )
        return [int(chosen == 0) for chosen in (with_question - without).argmax(1).tolist()]


def _documents(language: str, items: str) -> Rows:
    sentences = lines("flores", language)
    return [(DOCUMENT_START, [sentences[number - 1]]) for number in ITEMS[items]]


def _pair(corpus: str, number: int, kind: str) -> tuple[str, list[str]]:
    beginning, right, wrong = minimal_pair(lines(corpus, "pt")[number - 1], kind)
    return DOCUMENT_START + beginning, [right, wrong]


def _stories() -> tuple[Rows, list[int]]:
    """XStoryCloze as lm-eval's `xstorycloze_en`: the story, and its two endings."""
    content = json_lines("xstorycloze/en.jsonl")
    rows, right = [], []
    for number in ITEMS["stories"]:
        story = content[number - 1]
        context = re.sub(r"([.!?])(?=\S)", r"\1 ", story["context"])  # the file has no spaces between sentences
        rows.append((DOCUMENT_START + context, [f" {story[f'sentence_quiz{i}']}" for i in (1, 2)]))
        right.append(story["answer_right_ending"] - 1)
    return rows, right


def _inferences() -> tuple[Rows, list[int]]:
    """XNLI as lm-eval's `xnli_en`: the premise, and the hypothesis after each of three words."""
    content = json_lines("xnli/en.jsonl")
    rows = []
    for number in ITEMS["inferences"]:
        item = content[number - 1]
        texts = [f", right? {word}, {item['hypothesis']}" for word in ("Yes", "Also", "No")]
        rows.append((DOCUMENT_START + item["premise"], texts))
    return rows, [content[number - 1]["label"] for number in ITEMS["inferences"]]


def fitted_temperature(dev: dict, language: str) -> float:
    """
    Temperature with the fewest bits on the dev texts of a language: the minimum of the parabola through the best of
    `TEMPERATURES` and its neighbours.
    """
    rows = [row[1:] for name, rows in dev["likelihoods"].items() if name.endswith(f"/{language}") for row in rows]
    nats = -np.sum(rows, axis=0)
    best = int(np.clip(nats.argmin(), 1, len(nats) - 2))
    around = slice(best - 1, best + 2)
    a, b, _ = np.polyfit(TEMPERATURES[around], nats[around], 2)
    return round(-b / (2 * a), 3)
