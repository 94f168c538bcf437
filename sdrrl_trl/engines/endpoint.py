"""Generation by any server that speaks OpenAI's chat-completions protocol (vLLM, SGLang, llama.cpp, hosted ones)."""

import asyncio
import email.utils
import json
import os
import random
import re
import time
from typing import Any
from urllib.parse import urlsplit

import httpx

from sdrrl_trl.engines import Generation
from sdrrl_trl.utils import SDRRLError, sha256


_RETRIED = {408, 409, 425, 429, 500, 502, 503, 504, 529}


class EndpointGenerator:
    """
    Answers through an OpenAI-compatible server.

    The number of requests at a time adapts: it grows by one with each round of successes, and is halved when the
    server is overloaded (429, 503, time-out).

    Args:
        url (`str`):
            Address up to the version, such as `http://localhost:8000/v1`.
        model (`str`):
            Name of the model on the server.
        max_new_tokens (`int`, *optional*, defaults to `512`):
            Longest answer in tokens.
        temperature (`float`, *optional*, defaults to `0.0`):
            Temperature of sampling; 0 for greedy decoding.
        top_p (`float`, *optional*, defaults to `1.0`):
            Nucleus of sampling.
        num_samples (`int`, *optional*, defaults to `1`):
            Answers sampled per question, of which the one with the highest mean log-likelihood per token is kept.
        seed (`int`, *optional*, defaults to `42`):
            Seed of sampling; each request has one of its own.
        api_key_env (`str`, *optional*, defaults to `"OPENAI_API_KEY"`):
            Environment variable with the key. If it is not set, none is sent.
        max_concurrency (`int`, *optional*, defaults to `64`):
            Most requests at a time.
        timeout (`float`, *optional*, defaults to `600.0`):
            Seconds to wait for an answer.
        max_retries (`int`, *optional*, defaults to `8`):
            Further attempts for each request.
        backoff (`float`, *optional*, defaults to `1.0`):
            Seconds before the second attempt; doubled for each further one.
    """

    def __init__(
        self,
        url: str,
        model: str,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        num_samples: int = 1,
        seed: int = 42,
        api_key_env: str = "OPENAI_API_KEY",
        max_concurrency: int = 64,
        timeout: float = 600.0,
        max_retries: int = 8,
        backoff: float = 1.0,
    ):
        if urlsplit(url).scheme not in ("http", "https"):
            raise SDRRLError(f"The address of the server must begin with http:// or https://, got {url!r}.")
        self._shown = urlsplit(url).hostname  # in errors: the rest of the address may hold a password
        self.url, self.model, self.seed, self.num_samples = url.rstrip("/"), model, seed, num_samples
        self.options = {"max_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
        self.timeout, self.max_retries, self.backoff = timeout, max_retries, backoff
        key = os.environ.get(api_key_env)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._limit = _AdaptiveLimit(max_concurrency)

    def describe(self) -> dict[str, Any]:
        return {
            "engine": "endpoint",
            "host": urlsplit(self.url).hostname,
            "model": self.model,
            "num_samples": self.num_samples,
            "seed": self.seed,
            **self.options,
        }

    def generate(self, conversations: list[list[dict[str, str]]]) -> list[Generation]:
        return asyncio.run(self._generate(conversations))

    async def _generate(self, conversations: list[list[dict[str, str]]]) -> list[Generation]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(headers=self._headers, timeout=self.timeout, limits=limits) as client:
            try:
                async with asyncio.TaskGroup() as group:  # the first error stops all
                    tasks = [group.create_task(self._best(client, conversation)) for conversation in conversations]
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _best(self, client: httpx.AsyncClient, conversation: list[dict[str, str]]) -> Generation:
        samples = [await self._request(client, conversation, sample) for sample in range(self.num_samples)]
        return max(samples, key=lambda sample: sample[1])[0]

    async def _request(
        self, client: httpx.AsyncClient, conversation: list[dict[str, str]], sample: int
    ) -> tuple[Generation, float]:
        """Answer, and its mean log-likelihood per token if several are to be compared."""
        seed = int(sha256(f"{self.seed}:{sample}:{json.dumps(conversation)}")[:8], 16) % 2**31
        body = {"model": self.model, "messages": conversation, "seed": seed, **self.options}
        if self.num_samples > 1:
            body["logprobs"] = True
        problem = ""
        for attempt in range(self.max_retries + 1):
            wait = self.backoff * 2**attempt * random.uniform(0.5, 1.0)
            async with self._limit:
                try:
                    response = await client.post(f"{self.url}/chat/completions", json=body)
                    if response.status_code in _RETRIED:
                        problem = f"{response.status_code}: {_message(response)}"
                        wait = _retry_after(response) or wait
                        self._limit.shrink()
                    elif response.is_error:
                        raise SDRRLError(
                            f"{self._shown} refuses the request ({response.status_code}): {_message(response)}. "
                            "Correct the model's name, the key or the options; what was finished before is kept."
                        )
                    else:
                        answer = self._parse(response)
                        self._limit.grow()
                        return answer
                except httpx.TimeoutException:
                    problem = f"no answer within {self.timeout} s"
                    self._limit.shrink()
                except httpx.TransportError as error:
                    problem = f"{type(error).__name__}: {error}"
                except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
                    if isinstance(error, SDRRLError):
                        raise
                    problem = f"not an answer of the chat-completions protocol: {_message(response)}"
            if attempt < self.max_retries:
                await asyncio.sleep(wait)
        raise SDRRLError(
            f"{self._shown} failed {self.max_retries + 1} times ({problem}). What was finished before is kept: when "
            "the server is back, the same command goes on."
        )

    def _parse(self, response: httpx.Response) -> tuple[Generation, float]:
        content = response.json()
        choice = content["choices"][0]
        text = (choice["message"].get("content") or "").strip()
        reason = choice.get("finish_reason") or "stop"
        n_tokens = (content.get("usage") or {}).get("completion_tokens") or 0
        if self.num_samples == 1:
            return Generation(text, reason, n_tokens), 0.0
        tokens = (choice.get("logprobs") or {}).get("content")
        if tokens is None:
            raise SDRRLError(
                f"{self._shown} returns no log-probabilities, so that the best of several answers cannot be told. Set "
                "`num_samples` to 1."
            )
        return Generation(text, reason, n_tokens), sum(t["logprob"] for t in tokens) / max(len(tokens), 1)


class _AdaptiveLimit:
    """Bounds the requests at a time: additive increase, multiplicative decrease."""

    def __init__(self, most: int, start: int = 8):
        self.most, self.limit, self.active, self.successes = most, min(start, most), 0, 0

    async def __aenter__(self) -> None:
        while self.active >= self.limit:
            await asyncio.sleep(0.005)
        self.active += 1

    async def __aexit__(self, *exception: object) -> None:
        self.active -= 1

    def grow(self) -> None:
        self.successes += 1
        if self.successes >= self.limit:
            self.limit, self.successes = min(self.limit + 1, self.most), 0

    def shrink(self) -> None:
        self.limit, self.successes = max(self.limit // 2, 1), 0


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that the server asks to wait, given as a number or as a date."""
    value = response.headers.get("retry-after", "")
    try:
        return float(value)
    except ValueError:
        date = email.utils.parsedate_tz(value)
        return max(email.utils.mktime_tz(date) - time.time(), 0.0) if date else None


def _message(response: httpx.Response) -> str:
    """The server's own words, from JSON or from a page."""
    try:
        error = response.json()["error"]
        return error["message"] if isinstance(error, dict) else str(error)
    except (ValueError, KeyError, TypeError):
        return " ".join(re.sub(r"<[^>]*>", " ", response.text).split())[:300] or "empty reply"
