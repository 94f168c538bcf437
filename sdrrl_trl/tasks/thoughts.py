"""What a reasoning model thinks before it answers is no part of its answer."""

import re


def without_thoughts(text):
    """An answer without the `<think>` block before it; one that is not closed leaves nothing."""
    # Some chat templates put the opening tag into the prompt. An answer about such tags has one in its middle
    return re.sub(r"^\s*(<think>)?((?!<think>).)*?</think>|^\s*<think>.*", "", text, flags=re.DOTALL).strip()
