"""Generation by any server that speaks OpenAI's chat-completions protocol (vLLM, SGLang, llama.cpp, hosted ones)."""

import asyncio
import json
import os
import random
import re
from typing import Any

import httpx
from anyio.from_thread import start_blocking_portal

from sdrrl_trl.engines import Generation, Sampling
from sdrrl_trl.utils import SDRRLError


_AT_A_TIME = 64  # requests
_TIMEOUT = 600.0  # seconds for a whole answer
_RETRIES = 8  # further attempts for each request
_BACKOFF = 1.0  # seconds before the second attempt, doubled for each further one up to a minute
_MOST_BYTES = 10_000_000  # of a reply; an answer of 100,000 tokens has half a million
# How servers refuse a question, by the reason: vLLM, SGLang, llama.cpp, TGI, TensorRT-LLM; Azure
_REFUSALS = {
    "prompt_too_long": r"context (length|window|size)|maximum context|"
    r"(prompt|input)s?\b.{0,80}(too long|longer|exceeds|must (be|have) (<|less))",
    "content_filter": "content_filter|content management policy",
}


def server_key() -> str:
    """
    The key for servers in the environment variable `OPENAI_API_KEY`; empty if there is none.

    Raises:
        `SDRRLError`: if it has characters that cannot be sent. It is not shown.
    """
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):
        raise SDRRLError("The key in OPENAI_API_KEY has characters that cannot be sent. Copy it again.")
    return key


def hide_keys(text: str) -> str:
    """A text of a server or library, which may repeat a key, without those in the environment."""
    named = re.compile("(^|_)(KEY|TOKEN|SECRET|PASSWORD)$", re.IGNORECASE)
    keys = {value.strip() for name, value in os.environ.items() if named.search(name)} - {""}
    for key in sorted(keys, key=len, reverse=True):  # one may be the beginning of another
        text = text.replace(key, "***")
    return text


class EndpointGenerator:
    """
    Answers through an OpenAI-compatible server.

    What the requests do not set (top-k, penalties) is up to the server: vLLM samples plainly with
    `--generation-config vllm`. The key in the environment variable `OPENAI_API_KEY`, if it is set, is sent to `url`.

    Args:
        url (`str`):
            Address up to the version, such as `http://localhost:8000/v1`.
        model (`str`):
            Name of the model on the server.
        sampling ([`Sampling`]):
            How to answer.

    Raises:
        `SDRRLError`: for an address or key that cannot be used; while generating, if the server refuses a request, or
            stays broken.
    """

    def __init__(self, url: str, model: str, sampling: Sampling):
        if not re.fullmatch(r"(?a)https?://([\w.-]+|\[[\w:]+\])(:\d+)?(/[^\s@?#]*)?", url):
            raise SDRRLError(
                "The address of the server must look like `http://localhost:8000/v1`, without user name, password or "
                "query: it goes into the manifest. Put the key into the environment variable OPENAI_API_KEY."
            )
        self._url = httpx.URL(url.rstrip("/") + "/chat/completions")
        self._key = server_key()
        self.model, self.sampling = model, sampling

    def describe(self) -> dict[str, Any]:
        return {"engine": "endpoint", "host": self._url.host, "model": self.model, **vars(self.sampling)}

    def generate(self, conversations: list[list[dict[str, str]]]) -> list[Generation]:
        with start_blocking_portal() as portal:  # in a thread, for in a notebook this one has an event loop already
            return portal.call(self._generate, conversations)

    async def _generate(self, conversations: list[list[dict[str, str]]]) -> list[Generation]:
        # Without compression, which could make a huge reply of a small one
        headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        turns, timeout = asyncio.Semaphore(_AT_A_TIME), httpx.Timeout(None, connect=5.0)
        async with httpx.AsyncClient(headers=headers, timeout=timeout, limits=httpx.Limits()) as client:
            try:
                async with asyncio.TaskGroup() as group:  # the first error stops all
                    tasks = [group.create_task(self._request(client, turns, messages)) for messages in conversations]
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _request(self, client: httpx.AsyncClient, turns: asyncio.Semaphore, messages: list) -> Generation:
        body = {"model": self.model, "messages": messages, "max_tokens": self.sampling.max_new_tokens}
        body |= {"temperature": self.sampling.temperature, "top_p": self.sampling.top_p}
        body["seed"] = self.sampling.seed_of(messages)
        if self.sampling.chat_template_kwargs:  # no part of OpenAI's protocol
            body["chat_template_kwargs"] = self.sampling.chat_template_kwargs
        for attempt in range(_RETRIES + 1):
            if attempt:
                await asyncio.sleep(_BACKOFF * min(2 ** (attempt - 1), 60) * random.uniform(0.5, 1.0))
            try:
                async with turns, asyncio.timeout(_TIMEOUT):  # which begins with its turn
                    return await self._post(client, body)
            except _Fault as fault:
                problem = str(fault)
            except TimeoutError:  # of a whole reply; httpx's own limit is for each piece
                problem = f"nothing whole within {_TIMEOUT:g} s"
            except httpx.RequestError as error:
                problem = f"{type(error).__name__}: {self._shown(str(error))}"  # it can quote what the server sent
        raise SDRRLError(
            f"No answer from {self._url.host} after {_RETRIES + 1} attempts ({problem}). What was finished before is "
            "kept: when the server is well again, the same command goes on."
        )

    async def _post(self, client: httpx.AsyncClient, body: dict[str, Any]) -> Generation:
        content = b""
        async with client.stream("POST", self._url, json=body) as response:
            async for piece in response.aiter_bytes():
                content += piece
                if len(content) > _MOST_BYTES:
                    raise _Fault(f"a reply of more than {_MOST_BYTES} bytes")
        status, text = response.status_code, content.decode(errors="replace")
        message = self._shown(text)
        if response.is_success:
            return _parse(text, message)
        if status in (408, 429) or status >= 500:
            raise _Fault(f"{status}: {message}")
        for reason, words in _REFUSALS.items() if status in (400, 413, 422) else ():
            if re.search(words, message, re.IGNORECASE):  # one such row must not stop the others
                return Generation("", reason)
        raise SDRRLError(  # redirections, too: they are not followed, for the questions and the key are for this host
            f"{self._url.host} refuses the request ({status}: {message}). Correct the address, the model's name, the "
            "key or the options. What was finished before is kept."
        )

    def _shown(self, text: str) -> str:
        """The server's own words, shortened, without control characters, and without the key, which some repeat."""
        text = hide_keys(text)
        text = "".join(char if char.isprintable() else " " for char in text[:1000])
        return " ".join(text.split())[:300] or "no message"


class _Fault(Exception):
    """What went wrong in an attempt after which another makes sense."""


def _parse(text: str, shown: str) -> Generation:
    """The answer in a reply, all of whose parts are checked: it goes into files."""
    try:
        content = json.loads(text)
        choice = content["choices"][0]
        answer, reason = choice["message"].get("content") or "", choice.get("finish_reason") or "stop"
        if isinstance(answer, list):  # of parts, among them the thoughts, as Mistral's
            answer = "".join(part["text"] for part in answer if part["type"] == "text")
        whole = isinstance(answer, str) and re.fullmatch(r"\w{1,40}", reason) is not None
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):  # nested too deep
        whole = False
    if not whole:
        raise _Fault(f"no answer in the reply: {shown}")
    # JSON can hold halves of characters, which no file can
    return Generation(answer.encode(errors="replace").decode().strip(), reason)
