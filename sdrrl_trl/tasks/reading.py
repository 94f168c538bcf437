"""
Which choice an answer names, in any language: by where a letter or the text of a choice stands, and by the words
beside it, which are in words.yml.
"""

import unicodedata
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import regex
import yaml


LETTERS = "ABCDEFGH"
MENTION = "\ue000"  # no letter, and in no text
# Letters of words that are written together with others, or with their particles: where they end is not seen
TOGETHER = r"[\p{Han}\p{Hira}\p{Kana}\p{Hang}\p{Thai}\p{Khmr}\p{Mymr}]"


def choose(text, choices):
    """
    Index of the choice that an answer names, `None` if it names none or several.

    A choice is mentioned by its letter or its text. Lists of the choices, and mentions that are denied ("not A") or
    joined ("A or B") do not count. Of the others the most deliberate ones do, if they are of one choice: [`weight`].
    """
    text, plain = tidy(text, choices), plain_texts(choices)
    whole = text.strip(" .!?。").casefold()
    if whole and plain.count(whole) == 1:
        return plain.index(whole)
    text, found = without_lists(text, plain), []
    for mention in mentions(text, plain):
        denied = says("denied", mention.context)
        joined = found and are_joined(found[-1], mention, text)
        if joined and not (denied and found[-1].weight > 1):  # "it is B and A is wrong" names B
            found[-1].weight = -1
        mention.weight = -1 if denied or joined else weight(mention)
        found.append(mention)
    most = max((mention.weight for mention in found), default=0)
    named = {mention.choice for mention in found if mention.weight == most >= 0}
    return named.pop() if len(named) == 1 else None


def contradicts(text, choices, chosen):
    """Whether the letter of the choice that an answer names stands directly before the text of another one."""
    text, plain = tidy(text, choices), plain_texts(choices)
    letter = regex.search(rf"(?<!\w){LETTERS[chosen]}(?!\w)\W*", text)
    rest = text[letter.end() :].casefold() if letter else ""
    found = [choice for choice in plain if choice and regex.match(regex.escape(choice) + r"(?!\w)", rest)]
    return bool(found) and plain[chosen] not in found


# ---- What is in an answer


@cache
def words(*kinds):
    """Pattern of all words of some kinds, of all languages: answers come in others than was asked for."""
    content = yaml.safe_load(Path(__file__).with_name("words.yml").read_text(encoding="utf-8"))
    found = {word for language in content.values() for kind in kinds for word in language.get(kind, "").split()}
    apart, together = [], ["(?!)"]
    for word in sorted(found, key=len, reverse=True):
        pattern = regex.escape(word.rstrip("*")).replace("_", r"\s+") + (r"\w*" if word.endswith("*") else "")
        (together if regex.match(rf"{TOGETHER}|.*'$", word) else apart).append(pattern)
    # A letter may follow without a space ("هيB")
    return rf"(?:(?<!\w)(?i:{'|'.join(apart)})(?![^\WA-H])|(?i:{'|'.join(together)}))"


@cache
def native_letters():
    """Latin capitals by small letters and those of other scripts that stand for them."""
    lines = Path(__file__).with_name("letters.txt").read_text(encoding="utf-8").splitlines()
    rows = [line.split() for line in lines if not line.startswith("#")]
    found = {name: letter for row in rows for letter, name in zip(LETTERS, row, strict=False) if name != "-"}
    return found | {name.lower(): letter for name, letter in found.items()} | {x.lower(): x for x in LETTERS}


def tidy(text, choices=()):
    """A text without Markdown and quotation marks; with Latin capitals for all letters that stand for `choices`."""
    text = regex.sub("[①-⑧]", lambda match: f"({LETTERS[ord(match[0]) - ord('①')]})", text)
    text = unicodedata.normalize("NFKC", text).replace("’", "'")
    text = regex.sub(r"[*_`\"“”«»「」]+|\\boxed|</?answer>|(?<!\w)'(?=\w')|(?<=(?<!\w)'\w)'", "", text).strip()
    if not choices:
        return text
    # Most are words or parts of words as well: they count behind "is" and the like, if something ends with them
    beside = words("is", "option", "answer", "or", "not", "but")
    before = rf"(?<=(?:^|\n|[(\[{{:：=–—]|{beside})\s*(?:{words('the')}\s*)?[(\[]?)"
    behind = rf"[)\]}}:.]|\s*[.,;،。]?\s*(?:$|\n)|(?<=\P{{Latin}})(?:,|\s*(?:[–—-]\s*)?{words('is', 'or', 'answer')})"
    names = "|".join(map(regex.escape, sorted(native_letters(), key=len, reverse=True)))
    text = regex.sub(rf"{before}(?<!\w)(?:{names})(?={behind})", lambda match: native_letters()[match[0]], text)
    if len(text) < 80 and not any(char.isdigit() for choice in choices for char in choice):
        # A digit may count anything: it must be all of the answer
        answer = rf"^\W*(?:[^.\n]*{words('answer')}\W*)?(?:{words('is', 'option')}\W*)*"
        digit = regex.fullmatch(rf"({answer})(\d)(\W*(?:{words('is', 'option')}\W*)*)", text)
        number = unicodedata.digit(digit[2]) if digit else 0
        if 0 < number <= len(choices):
            text = f"{digit[1]}{LETTERS[number - 1]}{digit[3]}"
    return text


def plain_texts(choices):
    return [tidy(choice).strip(" .!?。").casefold() for choice in choices]


def without_lists(text, plain):
    """A text without a list of the choices: all in a row, or a line for each, whatever is said of them."""
    items = [rf"[(\[]?{x}[).:\]]+\s*{regex.escape(y)}[\s.,;|!?。।]*" for x, y in zip(LETTERS, plain, strict=False)]
    # A later one may be cut off
    later = [rf"(?:{item}|[(\[]?{x}[).:\]][^\n]*$)?" for x, item in zip(LETTERS, items, strict=False)][2:]
    text = regex.sub(f"(?if:{''.join(items[:2] + later)})", "\n", text)
    lines = regex.findall(rf"(?m)^\W*([{LETTERS[: len(plain)]}])[).:]", text)
    return regex.sub(rf"(?m)^\W*[{LETTERS}][).:].*$", "", text) if lines[:2] == ["A", "B"] else text


@dataclass
class Mention:
    """
    The mention of a choice in a text.

    Args:
        choice (`int`): Number of the choice.
        by_letter (`bool`): Whether it is mentioned by its letter.
        start (`int`), end (`int`): Where it stands.
        context (`str`): What stands around it, `MENTION` in its place.
        weight (`int`): How deliberate it is, below 0 if it does not count.
    """

    choice: int
    by_letter: bool
    start: int
    end: int
    context: str
    weight: int = -1


def mentions(text, plain):
    """Mentions of the choices, in the order of the text."""
    long = [choice for choice in plain if len(choice.encode()) > 3 and plain.count(choice) == 1]
    ordered = sorted(long, key=len, reverse=True)
    texts = "|".join(rf"(?:(?<!\w)|(?={TOGETHER})){regex.escape(choice)}" for choice in ordered) or "(?!)"
    # Not in U.S.A., B-cell, C++, d'A, A's; but the Turkish "B'dir" is "it is B"
    letter = rf"(?<![A-Za-zÀ-ɏ0-9']|[A-Z]\.)[{LETTERS[: len(plain)]}]"
    letter += r"(?![A-Za-zÀ-ɏ0-9+#]|-\w|\.[A-Z]\.|'(?!(?i:[dt][ıiuü]r\b))\w)"
    for match in regex.finditer(rf"(?if:{texts})|{letter}", text):
        start, end = match.span()
        by_letter = match[0].casefold() not in long
        number = LETTERS.index(match[0]) if by_letter else plain.index(match[0].casefold())
        context = f"{text[max(start - 80, 0) : start]}{MENTION}{text[end : end + 80]}"
        # "A" may be a word of the language, as in "A resposta é B", but not before the text of choice A
        is_word = by_letter and match[0] in "AE" and says("word", context)
        if not is_word or plain[number] and text[end:].strip().casefold().startswith(plain[number]):
            yield Mention(number, by_letter, start, end, context)


@lru_cache(10_000)  # some models repeat themselves without end
def says(what, context):
    """Whether something is said of the choice that is mentioned."""
    return bool(sayings()[what].search(context))


@cache
def sayings():
    """Patterns of what may be said of a choice, `MENTION` being its mention."""
    being, answer, the, wrong = words("is"), words("answer"), words("the"), words("wrong")
    beside = rf"(?:{words('is', 'option')}\s*)"
    cue = rf"(?<=(?:{words('is', 'option', 'answer', 'but')}|[:：=–—])\s*(?:{the}\s*)?[(\[{{'\s]*)"
    bracket = r"(?<=[(\[{]\s*)"
    clause = r"(?:^|[.,:;!?、。，：；\n])\W*"
    close = rf"{MENTION}[)\]}}']*\s*"
    denial = rf"(?:{wrong}|{words('not')}(?!\s*[(\[]*[A-H](?!\w)))"  # in "B not A", it is not of B
    denied = rf"{close}[:–—-]?\s*(?:{words('is', 'option', 'the')}\s*)*(?:\w+\s+)??{denial}"
    joined = rf"{close}(?:(?:[/&]|[,、]?\s*{words('or')})\s*)+(?:\w+\s+)?[(\[{{'\s]*"
    patterns = {
        # "A correct." has no article, and in "A või B" the word is an unknown "or"
        "word": rf"(?!(?:{cue}|{bracket}){MENTION}|{close}{being}|{joined}|{denied}){MENTION}"
        rf"\s+(?:{words('answer', 'option')}\s+\w|\p{{Latin}}++(?!\W*$|\s+[(\[]?[A-H](?!\w)))",
        "name": rf"{words('name')}\s*{MENTION}",
        "denied": rf"{words('not')}\s*(?:{words('is', 'option', 'the')}\s*)*[(\[{{'\s]*{MENTION}|{denied}",
        "or": joined,
        "comma": rf"{close}[,、]\s*[(\[]*",
        "no more": rf"{close}(?:$|[,.;、。\n]|{words('or')})",
        # The answer is B. B is right. Or it stands alone on a line, or the text begins with it
        "right": rf"{cue}(?<={answer}[^.!?。！？।]*){MENTION}|{close}[:–—-]?\s*{beside}?(?:{the}\s*)?{answer}"
        rf"|(?:^|\n)\W*{MENTION}[)\]}}'.:,;。\s]*(?:$|\n)|^\W*{MENTION}\s*(?:$|[)\]}}.:,;!?、。，：；\n])",
        "meant": rf"(?:{cue}|{bracket}){MENTION}|{clause}{close}{beside}",
        "apart": rf"(?:{clause}|(?!\p{{Latin}})\p{{L}}\s*){MENTION}"
        rf"|{MENTION}\s*(?:$|[)\]}}.:,;!?、。，：；\n]|(?!\p{{Latin}})\p{{L}})",
    }
    return {what: regex.compile(pattern) for what, pattern in patterns.items()}


def are_joined(one, other, text):
    """Whether two mentions stand beside each other, so that neither is chosen: "A or B", "A, B"."""
    between = MENTION + text[one.end : other.start]
    if one.choice == other.choice:
        return False
    listed = sayings()["comma"].fullmatch(between) and says("no more", other.context)
    return bool(listed or sayings()["or"].fullmatch(between))


def weight(mention):
    """
    How deliberate a mention is, the denied ones apart.

    3: it is called the answer ("the answer is B", "B is right"), stands alone on a line, or the text begins with it.
    2: "is", "option", a colon or a bracket stands beside it. 1: the text of a choice. 0: a letter where a clause
    begins or ends, or among letters of another script. -1: any other, as in "vitamin C" or "the B side".
    """
    if mention.by_letter and says("name", mention.context):
        return -1
    for number, what in ((3, "right"), (2, "meant")):
        if says(what, mention.context):
            return number
    if not mention.by_letter:
        return 1
    return 0 if says("apart", mention.context) else -1
