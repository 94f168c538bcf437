"""Scores of generated texts: translations (FLORES-200), summaries (XL-Sum) and short answers (MKQA)."""

import re
import unicodedata
from collections import Counter
from functools import cache
from pathlib import Path

import regex
import sacrebleu
import yaml
from lm_eval.api import metrics
from rouge_score.rouge_scorer import RougeScorer

from sdrrl_trl.languages import UNSPACED, rates_of_language
from sdrrl_trl.tasks.thoughts import without_thoughts


# ---- FLORES-200


def score_translation(doc, results):
    """Pairs for the corpus metrics, and whether the answer is in a wrong language."""
    answer = translation(results[0])
    # Khmer references mark words with zero-width spaces, which nobody sees and few type
    pair = tuple(text.replace("\u200b", "") for text in (doc["tgt"], answer))
    scores = {"chrf++": pair, **rates_of_language(answer, doc["language"], doc["script"])}
    # sacrebleu's default tokenizer, 13a, takes a sentence without spaces for one word
    scores["bleu_char" if doc["script"] in UNSPACED else "bleu_13a"] = pair
    return scores


def translation(text):
    """
    The translation in an answer, a sentence: its first line that is not empty, behind the thoughts of the model. If
    that line ends with a colon and another one follows, it is taken for an announcement, and the next one counts.
    """
    first, second, *_ = [line.strip() for line in without_thoughts(text).split("\n") if line.strip()] + ["", ""]
    return second if first.endswith((":", "：")) and second else first


def chrf(items):
    """chrF++ of `(reference, answer)` pairs, 0 to 100."""
    references, answers = zip(*items, strict=True)
    return sacrebleu.corpus_chrf(answers, [references], word_order=2).score


# lm-eval 0.4 gives standard errors to its own functions only; 0.5 has no chrF++
chrf_plus_plus = getattr(metrics, "chrfpp", chrf)


def corpus_bleu(items, tokenizer):
    references, answers = zip(*items, strict=True)
    return sacrebleu.corpus_bleu(answers, [references], tokenize=tokenizer).score


def bleu_13a(items):
    return corpus_bleu(items, "13a")


def bleu_char(items):
    return corpus_bleu(items, "char")


# ---- XL-Sum


class UnicodeTokenizer:
    """
    Words of letters, digits and their marks, in lower case; in scripts without spaces, each character with its marks.

    rouge_score's own tokenizer keeps a-z and 0-9 only, so that identical texts in Thai score 0.
    """

    SINGLE = r"\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Khmer}\p{Lao}\p{Myanmar}"
    TOKEN = rf"[[\p{{L}}\p{{N}}]&&[{SINGLE}]]\p{{M}}*|[[\p{{L}}\p{{N}}\p{{M}}]--[{SINGLE}]]+"

    def tokenize(self, text):
        visible = regex.sub(r"\p{Cf}", "", unicodedata.normalize("NFKC", text))
        return regex.findall(self.TOKEN, visible.casefold(), regex.V1)


ROUGE = RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=UnicodeTokenizer())


def score_summary(doc, results):
    """F-measures of ROUGE, and whether the answer is in a wrong language."""
    answer = without_thoughts(results[0])
    scores = {name: value.fmeasure for name, value in ROUGE.score(doc["summary"], answer).items()}
    return scores | rates_of_language(answer, doc["language"], doc["script"])


# ---- MKQA


@cache
def words_of(language, kind):
    """What words.yml has of a kind in a language, or nothing."""
    content = yaml.safe_load(Path(__file__).with_name("words.yml").read_text(encoding="utf-8"))
    return content.get(language, {}).get(kind, "")


def right_answers(answers, language):
    """All right answers: also "yes" and "no" in the language, and whole numbers without their decimal."""
    said = {"yes": "affirmative", "no": "negative"}  # MKQA has these in English only, and writes "25.0"
    known = [word for text in answers if text in said for word in words_of(language, said[text]).split()]
    return [*answers, *known, *(re.sub(r"(?<=\d)\.0\b", "", text) for text in answers)]


def score_short_answer(doc, results):
    """Scores the first line of an answer: the best F1 and exact match over the right answers, wrong language."""
    answer = next((line for line in without_thoughts(results[0]).splitlines() if line.strip()), "")
    language, unspaced = doc["language"], doc["script"] in UNSPACED
    said = answer_tokens(answer, language, unspaced)
    right = [answer_tokens(text, language, unspaced) for text in right_answers(doc["answers"], language)]
    em = float(bool(said) and said in right)
    rates = rates_of_language(answer, language, doc["script"])
    return {
        "token_f1": max(token_f1(said, text) for text in right),  # lm-eval 0.5 keeps "f1" for choices
        "em": em,
        # A right answer is in the language, whatever its script: "BBC" and "1999" are answers in Thai, too
        **(dict.fromkeys(rates, 0.0) if em else rates),
    }


def answer_tokens(text, language, unspaced):
    """
    What counts of an answer: in lower case, without punctuation, symbols and articles; characters if words have no
    spaces between them. If nothing else is in it, articles and punctuation count: only an empty answer has no tokens.
    Numbers are the same in all digits, and with or without separators of their groups.
    """
    whole = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    whole = re.sub(r"\d", lambda match: str(unicodedata.decimal(match[0])), whole)
    # Other separators are punctuation, which goes
    whole = re.sub(r"(?<!\d)\d{1,3}(?: \d{3})+(?!\d)", lambda match: match[0].replace(" ", ""), whole)
    # Before the punctuation goes, for that in l'Italia
    short = re.sub(words_of(language, "articles") or "(?!)", " ", whole)
    for kept in (without_punctuation(short), without_punctuation(whole), whole):
        found = [char for char in kept if not char.isspace()] if unspaced else kept.split()
        if found:
            return found
    return []


def without_punctuation(text):
    return "".join(char for char in text if unicodedata.category(char)[0] not in "PSC" or char.isspace())


def token_f1(said, right):
    """F1 of two lists of tokens."""
    common = sum((Counter(said) & Counter(right)).values())
    return 2 * common / (len(said) + len(right)) if common else 0.0
