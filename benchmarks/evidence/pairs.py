"""Minimal pairs of Portuguese sentences by rule: of each kind, where a sentence is changed so that it is wrong."""

_NUMBER = {"é": "são", "são": "é"}
_PAST = {"foi": "foram", "foram": "foi"}
_MASCULINE = {"do": "da", "no": "na", "ao": "à", "um": "uma", "dos": "das", "nos": "nas", "aos": "às", "os": "as"}
_GENDER = _MASCULINE | {feminine: masculine for masculine, feminine in _MASCULINE.items()}
# What comes before a noun phrase, so that it cannot stand behind the noun
_BEFORE = {*_GENDER, "de", "em", "com", "por", "para", "o", "a", "uns", "umas"}


def _replace(table: dict[str, str], words: list[str], i: int) -> list[str] | None:
    return [table[words[i]]] if words[i] in table else None


def _agreement(words: list[str], i: int) -> list[str] | None:
    """The other gender, where the ending of the next word shows that it is wrong (`do carro`, `das casas`)."""
    word, following = words[i], words[i + 1]
    ending = ("o" if word in _MASCULINE else "a") + ("s" if word.endswith("s") else "")
    return [_GENDER[word]] if word in _GENDER and following.isalpha() and following.endswith(ending) else None


def _swap(words: list[str], i: int) -> list[str] | None:
    word, following = words[i], words[i + 1]
    # A word that can itself stand before a noun may make sense in the other order
    good = word in _BEFORE and following not in _BEFORE and following.isalpha() and following.islower()
    return [following, word] if good else None


KINDS = {
    "agreement": _agreement,
    "é/são": lambda words, i: _replace(_NUMBER, words, i),
    "foi/foram": lambda words, i: _replace(_PAST, words, i),
    "swap": _swap,
}


def minimal_pair(sentence: str, kind: str) -> tuple[str, str, str] | None:
    """What both sentences begin with, and how the right and the wrong one go on; `None` if the kind does not apply."""
    words = sentence.split()
    for i in range(1, len(words) - 1):  # not the first word, whose beginning would have no context
        wrong = KINDS[kind](words, i)
        if wrong:
            rest = words[i + len(wrong) :]
            return " ".join(words[:i]), " " + " ".join(words[i:]), " " + " ".join([*wrong, *rest])
    return None
