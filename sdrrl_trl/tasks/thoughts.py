"""What a reasoning model thinks before it answers is no part of its answer."""

import regex


NAME = r"(?i:(?:seed:)?(?:think|thinking|thoughts?|reasoning|reflection|(?:reasoning_)?scratchpad))"
OPENING = rf"(?:<{NAME}>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<\|channel>thought\b)"  # the last of Gemma 4
CLOSING = rf"(?:</{NAME}>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<channel\|>)"
# Some chat templates put the opening tag into the prompt. Then the closing one stands behind a sentence or before a
# line break, and not among the words of an answer about such tags
ENDS = rf"(?:(?<![\s`'\"“«(]){CLOSING}|(?<=[.!?…。！？\n]\s*){CLOSING}|{CLOSING}(?=\s*\n))(?![`'\"”»])"
BLOCK = rf"(?:{OPENING}(?:(?!{OPENING}).)*?{CLOSING}|(?:(?!{OPENING}).)*?{ENDS}|{OPENING}.*)"
# Of the channels of harmony the last one is the answer. Without the special tokens "analysis" begins the thoughts.
# Granite 3 announces thoughts and answer in words
CHANNELS = (
    r"(?:Here(?: is|'s) my thought process:.*?\bHere(?: is|'s) my response:|"
    r"(?=<\|(?:start|channel)\|>).*<\|channel\|>\s*final.*?<\|message\|>|analysis(?=\p{Lu}).*assistant\s*final"
    r"|(?:<\|start\|>assistant)?<\|channel\|>.*|analysis\p{Lu}.*)"
)
THOUGHTS = regex.compile(rf"^\s*(?:{CHANNELS})?\s*(?:{BLOCK}\s*)*", regex.DOTALL)


def without_thoughts(text):
    """An answer without the thoughts before it, in tags or channels; thoughts that are cut off leave nothing."""
    return regex.sub(r"<\|(?:return|end)\|>\s*$", "", THOUGHTS.sub("", text)).strip()
