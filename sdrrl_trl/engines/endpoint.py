"""Generation by any server that speaks OpenAI's chat-completions protocol (vLLM, SGLang, llama.cpp, hosted ones)."""

import asyncio
import email.utils
import json
import os
import random
import re
import time
from typing import Any

import anyio
import httpx
from anyio.from_thread import start_blocking_portal

from sdrrl_trl.engines import Generation
from sdrrl_trl.utils import SDRRLError, sha256


_LONGEST_WAIT = 600.0  # seconds; a server that asks for more (a daily quota) ends the run


def likeliest(answers: list[tuple[Generation, float, int]]) -> Generation:
    """Of answers with their log-likelihood and number of tokens, that with the highest log-likelihood per token."""
    return max(answers, key=lambda answer: answer[1] / answer[2] if answer[2] else float("-inf"))[0]


class EndpointGenerator:
    """
    Answers through an OpenAI-compatible server.

    The number of requests at a time grows with the successes, and is halved when the server is overloaded. What the
    requests do not set (top-k, penalties) is up to the server: vLLM samples plainly with `--generation-config vllm`.

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
            Environment variable with the key, which is sent to `url`. If it is not set, none is sent.
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
        if not re.fullmatch(r"(?a)https?://([\w.-]+|\[[\w:]+\])(:\d+)?(/[^\s@?#]*)?", url):
            raise SDRRLError(
                "The address of the server must look like `http://localhost:8000/v1`, without user name, password or "
                f"query: it goes into the manifest. Put the key into the environment variable {api_key_env}."
            )
        self._url = httpx.URL(url.rstrip("/") + "/chat/completions")
        self._key = os.environ.get(api_key_env, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise SDRRLError(f"The key in {api_key_env} has characters that cannot be sent. Copy it again.")
        self.model, self.max_new_tokens, self.num_samples, self.seed = model, max_new_tokens, num_samples, seed
        self.sampling = {"temperature": temperature, "top_p": top_p}
        self.timeout, self.max_retries, self.backoff = timeout, max_retries, backoff
        self._concurrency = _Concurrency(max_concurrency)

    def describe(self) -> dict[str, Any]:
        return {
            "engine": "endpoint",
            "host": self._url.host,
            "model": self.model,
            "max_new_tokens": self.max_new_tokens,
            "num_samples": self.num_samples,
            "seed": self.seed,
            **self.sampling,
        }

    def generate(self, conversations: list[list[dict[str, str]]]) -> list[Generation]:
        with start_blocking_portal() as portal:  # in a thread, for in a notebook this one has an event loop already
            return portal.call(self._generate, conversations)

    async def _generate(self, conversations: list[list[dict[str, str]]]) -> list[Generation]:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        samples = [(conversation, sample) for conversation in conversations for sample in range(self.num_samples)]
        async with httpx.AsyncClient(headers=headers, timeout=None, limits=httpx.Limits()) as client:  # ours hold
            try:
                async with asyncio.TaskGroup() as group:  # the first error stops all
                    tasks = [group.create_task(self._request(client, *sample)) for sample in samples]
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
        answers = [task.result() for task in tasks]
        return [likeliest(answers[i : i + self.num_samples]) for i in range(0, len(answers), self.num_samples)]

    async def _request(
        self, client: httpx.AsyncClient, conversation: list[dict[str, str]], sample: int
    ) -> tuple[Generation, float, int]:
        seed = int(sha256(f"{self.seed}:{sample}:{json.dumps(conversation)}")[:8], 16) % 2**31
        body = {"model": self.model, "messages": conversation, "max_tokens": self.max_new_tokens, "seed": seed}
        body |= self.sampling | ({"logprobs": True} if self.num_samples > 1 else {})
        for attempt in range(self.max_retries + 1):
            async with self._concurrency.limiter:
                cuts = self._concurrency.cuts
                try:
                    answer = await self._post(client, body)
                    self._concurrency.succeeded(cuts)
                    return answer
                except _Fault as fault:
                    problem, is_overload, wait = fault.args
                    if is_overload:
                        self._concurrency.overloaded(cuts)
            if attempt == self.max_retries or wait > _LONGEST_WAIT:
                break
            await anyio.sleep(max(wait, self.backoff * min(2**attempt, 60) * random.uniform(0.5, 1.0)))
        raise SDRRLError(
            f"No answer from {self._url.host} after {attempt + 1} attempts ({problem}). What was finished before is "
            "kept: when the server is well again, the same command goes on."
        )

    async def _post(self, client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[Generation, float, int]:
        try:
            with anyio.fail_after(self.timeout):  # httpx's own limit is for each piece of a reply
                response = await client.post(self._url, json=body)
        except TimeoutError:
            raise _Fault(f"nothing within {self.timeout:g} s", True, 0.0) from None
        except httpx.RequestError as error:
            raise _Fault(f"{type(error).__name__}: {error}", False, 0.0) from None
        if response.is_success:
            return self._parse(response)
        status, message = response.status_code, self._message(response)
        if status in (408, 429) or status >= 500:
            wait = _retry_after(response)
            asked = f"; it asks to wait {wait:.0f} s" if wait else ""
            raise _Fault(f"{status}: {message}{asked}", status in (408, 429, 503), wait)
        if status in (400, 413, 422) and _TOO_LONG.search(message):  # one such row must not stop the others
            return Generation("", "prompt_too_long", 0), 0.0, 1
        raise SDRRLError(
            f"{self._url.host} refuses the request ({status}: {message}). Correct the address, the model's name, the "
            "key or the options. What was finished before is kept."
        )

    def _parse(self, response: httpx.Response) -> tuple[Generation, float, int]:
        """The answer, its log-likelihood and, if the server gave one, the number of tokens in it."""
        try:
            content = response.json()
            choice = content["choices"][0]
            text = (choice["message"].get("content") or "").strip()
            n_tokens = (content.get("usage") or {}).get("completion_tokens") or 0
            answer = Generation(text, choice.get("finish_reason") or "stop", n_tokens)
            tokens = (choice.get("logprobs") or {}).get("content") or []
            log_likelihood = sum(token["logprob"] for token in tokens)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise _Fault(f"no answer in the reply: {self._message(response)}", False, 0.0) from None
        if self.num_samples > 1 and text and not tokens:
            raise SDRRLError(
                f"{self._url.host} returns no log-probabilities, so that the best of several answers cannot be told. "
                "Set `num_samples` to 1."
            )
        return answer, log_likelihood, len(tokens)

    def _message(self, response: httpx.Response) -> str:
        """The server's own words, from JSON or from a page. Some servers repeat the key in them."""
        try:
            error = response.json()["error"]
            message = str(error["message"] if isinstance(error, dict) else error)
        except (ValueError, KeyError, IndexError, TypeError):
            message = re.sub(r"(?s)<(script|style).*?</\1>|<[^>]*>", " ", response.text)
        if self._key:
            message = message.replace(self._key, "***")
        return " ".join(message.split())[:300] or "no message"


_TOO_LONG = re.compile("context (length|window|size)|maximum context|prompt is too long", re.IGNORECASE)


class _Fault(Exception):
    """What went wrong in an attempt after which another makes sense, whether it is overload, and seconds to wait."""


class _Concurrency:
    """
    How many requests at a time. Each success adds one until the server is overloaded for the first time, then each
    round of successes; overload halves. Requests sent before the last cut say nothing about the number there is now.
    """

    def __init__(self, most: int):
        self.most, self.cuts, self.successes = most, 0, 0
        self.limiter = anyio.CapacityLimiter(min(8, most))

    def succeeded(self, cuts: int) -> None:
        if cuts == self.cuts:
            self.successes += 1
            if self.cuts == 0 or self.successes >= self.limiter.total_tokens:
                self.limiter.total_tokens = min(self.limiter.total_tokens + 1, self.most)
                self.successes = 0

    def overloaded(self, cuts: int) -> None:
        if cuts == self.cuts:
            self.limiter.total_tokens = max(self.limiter.total_tokens // 2, 1)
            self.cuts, self.successes = self.cuts + 1, 0


def _retry_after(response: httpx.Response) -> float:
    """Seconds that the server asks to wait, given as a number or as a date."""
    value = response.headers.get("Retry-After", "")
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except ValueError:
        return 0.0
