import unicodedata

import datasets
import evaluate
import regex
from rouge_score.rouge_scorer import RougeScorer


# Also in ../utils.py
class UnicodeTokenizer:
    """
    Words of letters, digits and their marks, in lower case; in scripts without spaces, each character with its marks.

    rouge_score's own tokenizer keeps a-z and 0-9 only, so that identical texts in Thai score 0.
    """

    UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Khmer}\p{Lao}\p{Myanmar}"
    TOKEN = rf"[[\p{{L}}\p{{N}}]&&[{UNSPACED}]]\p{{M}}*|[[\p{{L}}\p{{N}}\p{{M}}]--[{UNSPACED}]]+"

    def tokenize(self, text):
        visible = regex.sub(r"\p{Cf}", "", unicodedata.normalize("NFKC", text))
        return regex.findall(self.TOKEN, visible.casefold(), regex.V1)


class UnicodeRouge(evaluate.Metric):
    """`rouge1`, `rouge2` and `rougeL`: means of the F-measures, from 0 to 1, for texts in any script."""

    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation="@inproceedings{lin-2004-rouge, title={ROUGE}, author={Lin, Chin-Yew}, year={2004}}",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions, references):
        names = ["rouge1", "rouge2", "rougeL"]
        scorer = RougeScorer(names, tokenizer=UnicodeTokenizer())
        scores = [scorer.score(*pair) for pair in zip(references, predictions, strict=True)]
        return {name: sum(score[name].fmeasure for score in scores) / len(scores) for name in names}
