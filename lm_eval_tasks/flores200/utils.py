import hashlib
import os
import re
import tarfile
import unicodedata
from functools import cache
from pathlib import Path

import datasets
import sacrebleu


# >>> in_language
# By the first word of a character's Unicode name
SCRIPTS = {
    "Latn": ("LATIN",),
    "Cyrl": ("CYRILLIC",),
    "Grek": ("GREEK",),
    "Arab": ("ARABIC",),
    "Beng": ("BENGALI",),
    "Deva": ("DEVANAGARI",),
    "Telu": ("TELUGU",),
    "Thai": ("THAI",),
    "Khmr": ("KHMER",),
    "Mymr": ("MYANMAR",),
    "Hang": ("HANGUL",),
    "Jpan": ("HIRAGANA", "KATAKANA", "CJK"),
    "Hans": ("CJK",),
}


CODES = (
    "ar bg bn ca cs da de el en es eu fi fr gl hi hu id it ja jv km ko my nl no pl pt ru sl sv sw te th tr uk ur "
    "vi yo zh"
)


@cache
def _identifier():
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise ImportError("The rate of answers in a wrong language needs `pip install py3langid`.") from error
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    # Those of the benchmarks: against all that it knows, Indonesian is taken for Malay, Chinese for Wu
    identifier.set_languages([code for code in identifier.nb_classes if code in CODES.split()])
    return identifier


def wrong_language(text, language, script, min_letters=20):
    """
    1.0 if a text is not in a language (ISO 639-1 code and ISO 15924 script), else 0.0.

    At least half of its letters must be of the script. From `min_letters` letters on, py3langid must also find the
    language most likely, or less likely by at most 3 nats; it is unreliable on less. The letter of a choice, as in
    "(B)", is not counted. The empty text is in no language.
    """
    if not text.strip():
        return 1.0
    text = re.sub(r"```.*?(```|$)|`[^`\n]*`|https?://\S+|(?<![^\W_])[A-H](?![^\W_])", " ", text, flags=re.DOTALL)
    letters = [unicodedata.name(char, "").split(" ")[0].split("-")[0] for char in text if char.isalpha()]
    if letters and sum(name in SCRIPTS[script] for name in letters) < len(letters) / 2:
        return 1.0
    ranked = dict(_identifier().rank(text)) if len(letters) >= min_letters else {}
    code = {"nb": "no"}.get(language, language)
    if code not in ranked:  # too short, or a language that py3langid does not know
        return 0.0
    return float(ranked[code] < max(ranked.values()) - 3)


# <<< in_language


# >>> thoughts
def without_thoughts(text):
    """An answer without its `<think>` block; one that is not closed leaves nothing."""
    text = re.sub(r"<think>.*?(</think>|$)", "", text, flags=re.DOTALL)
    return text.rpartition("</think>")[2].strip()  # chat templates may open the block in the prompt


# <<< thoughts


# Both want an account and their terms accepted. FLORES+ is a later text of the sentences
REVISIONS = {
    "facebook/flores": "71abf77d8b7beb5cfef59898d6b24d92ab7654fc",
    "openlanguagedata/flores_plus": "5fec6c13f9e5a4db2f745d4ec0d7c9721ddc4f06",
}
# The same sentences as facebook/flores, for everybody
ARCHIVE = "https://dl.fbaipublicfiles.com/nllb/flores200_dataset.tar.gz"
ARCHIVE_SHA256 = "b8b0b76783024b85797e5cc75064eb83fc5288b41e9654dabc7be6ae944011f6"
# Scripts without spaces between words. sacrebleu's default tokenizer 13a takes a sentence in them for one word.
UNSPACED = ("Jpan", "Thai", "Khmr", "Laoo", "Mymr", "Hans", "Hant")


def load_pair(src, tgt, src_name, tgt_name, language, **metadata):
    """Devtest sentences of two languages, `src` and `tgt` being FLORES codes; `language` is that of `tgt`."""
    if os.environ.get("SDRRL_SPBLEU") == "1":
        check_spbleu()
    sources, targets = sentences(src), sentences(tgt)
    if len(sources) != len(targets):
        raise ValueError(
            f"FLORES-200: {len(sources)} sentences in {src}, but {len(targets)} in {tgt}. They belong together line "
            "by line, so translations would be compared with other sentences. Take both from the same release."
        )
    same = {"src_name": src_name, "tgt_name": tgt_name, "language": language, "script": tgt.partition("_")[2]}
    rows = [
        {"src": source.strip(), "tgt": target.strip(), **same} for source, target in zip(sources, targets, strict=True)
    ]
    return {"devtest": datasets.Dataset.from_list(rows)}


def sentences(code):
    """Of a language, from the folder `SDRRL_DATA_DIR`, or from the hub if that is not set."""
    folder = os.environ.get("SDRRL_DATA_DIR")
    if folder:
        file = Path(folder) / "flores200" / "devtest" / f"{code}.devtest"
        if not file.exists():
            raise FileNotFoundError(
                f"There is no {file}. Put the sentences there, or unset SDRRL_DATA_DIR to load them from the hub."
            )
        # Not splitlines(), which also splits at characters that stand inside sentences, as U+2028
        return file.read_text(encoding="utf-8").rstrip("\n").split("\n")
    repository = os.environ.get("SDRRL_FLORES_REPO", "facebook/flores")
    try:
        data = datasets.load_dataset(repository, code, split="devtest", revision=REVISIONS.get(repository, "main"))
    except Exception as error:  # no account, no network, no such language: `datasets` has many kinds
        problem = f"{repository} refuses {code}: {error}"
        if repository == "facebook/flores":
            try:
                return archived(code)
            except (OSError, ValueError, KeyError) as failure:
                problem += f"\nThe archive {ARCHIVE} does not help either: {failure}"
        raise RuntimeError(
            f"FLORES-200: {problem}\nEither accept the terms of https://huggingface.co/datasets/{repository} and run "
            f"`hf auth login`, or set SDRRL_DATA_DIR to a folder with flores200/devtest/{code}.devtest."
        ) from error
    columns = [name for name in ("sentence", "text") if name in data.column_names]
    if not columns or "id" not in data.column_names:
        raise ValueError(
            f"FLORES-200: {repository} has the columns {', '.join(data.column_names)}, but `id` and `sentence` or "
            "`text` are needed: its schema has changed. Set SDRRL_FLORES_REPO to another repository."
        )
    return list(data.sort("id")[columns[0]])


def archived(code):
    """Sentences of a language from Meta's archive, of which only that one file is read."""
    path = datasets.DownloadManager().download(ARCHIVE)
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != ARCHIVE_SHA256:
        raise ValueError(f"its SHA-256 is {found}, not {ARCHIVE_SHA256}. Remove {path} and try again.")
    with tarfile.open(path) as archive:
        text = archive.extractfile(f"flores200_dataset/devtest/{code}.devtest").read().decode("utf-8")
    return text.rstrip("\n").split("\n")


def translation(text):
    """
    The translation in an answer, a sentence: its first line that is not empty, behind the thoughts of the model. If
    that line ends with a colon and another one follows, it is taken for an announcement, and the next one counts.
    """
    first, second, *_ = [line.strip() for line in without_thoughts(text).split("\n") if line.strip()] + ["", ""]
    return second if first.endswith((":", "：")) and second else first


def process_results(doc, results):
    """Pairs for the corpus metrics, and whether the answer is in a wrong language."""
    answer = translation(results[0])
    # Khmer references mark words with zero-width spaces, which nobody sees and few type
    pair = tuple(text.replace("\u200b", "") for text in (doc["tgt"], answer))
    scores = {"chrf++": pair, "wrong_language": wrong_language(answer, doc["language"], doc["script"])}
    scores["bleu_char" if doc["script"] in UNSPACED else "bleu_13a"] = pair
    if os.environ.get("SDRRL_SPBLEU") == "1":
        scores["spbleu"] = pair
    return scores


def bleu(items, tokenizer):
    references, answers = zip(*items, strict=True)
    return sacrebleu.corpus_bleu(answers, [references], tokenize=tokenizer).score


def bleu_13a(items):
    return bleu(items, "13a")


def bleu_char(items):
    return bleu(items, "char")


def spbleu(items):
    return bleu(items, "flores200")


def check_spbleu():
    """Fails now, rather than after all has been generated."""
    try:
        from sacrebleu.tokenizers.tokenizer_spm import Flores200Tokenizer

        Flores200Tokenizer()
    except Exception as error:
        raise RuntimeError(
            f"SDRRL_SPBLEU=1, but the tokenizer of spBLEU cannot be loaded: {error}\nIt needs `pip install "
            "sentencepiece` and a model that sacrebleu downloads once, to models/flores200sacrebleuspm in the folder "
            "$SACREBLEU (default ~/.sacrebleu). Put it there by hand, or unset SDRRL_SPBLEU: chrF++ needs neither."
        ) from error
