"""The hub when it fails: it is asked once and briefly, and what went wrong is told with the way out."""

import re
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import cache
from pathlib import Path
from threading import Thread
from typing import Any

import httpx

from sdrrl_trl.utils import SDRRLError, on_hub


TIMEOUT = 5.0  # seconds for the first answer, however short
LOG_IN = "log in (`hf auth login`, or the environment variable HF_TOKEN) as someone who may read it"
WAYS_OUT = {
    401: f"it does not exist, or is private. Correct the name, or {LOG_IN}.",
    403: f"this account or network may not read it. To go on, {LOG_IN}.",
    404: "it, or its revision, does not exist. Correct the name.",
    429: "too many requests come from here. Wait some minutes, or log in with `hf auth login`.",
}
LATER = "the hub is out of order. Try again later, or name a folder with a copy."


def within(seconds: float, function: Callable[[], Any]) -> Any:
    """
    What a function returns or raises, or `TimeoutError`. The time-outs of HTTP libraries are for each piece of a
    reply, so that a server can send bytes for ever; and looking up a name has none.
    """
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except Exception as error:  # raised below, or too late
            future.set_exception(error)

    Thread(target=run, daemon=True).start()  # the pools of the standard library are waited for at the end
    return future.result(seconds)


def probe(address: str, client: Any = None) -> int | str:
    """Asks a server once: the status of its answer, or why there is none. Takes 6 seconds at most."""
    client = client or httpx.Client(verify=False)  # noqa: S501 (nothing is sent; it may be a server's own certificate)
    try:
        return within(TIMEOUT + 1, lambda: client.head(address, timeout=TIMEOUT).status_code)
    except TimeoutError:
        return f"no answer within {TIMEOUT:g} s"
    except Exception as error:  # of any HTTP library
        return f"{type(error).__name__}: {error}"


def check_server(url: str) -> None:
    """Raises [`SDRRLError`] if no server is there. One that is busy, or knows no such request, is."""
    why = probe(url)
    if isinstance(why, str) and not why.startswith(("ReadTimeout", "RemoteProtocolError")):
        raise SDRRLError(f"No server answers at {url}: {why}. Start it, or correct the address.")


def fails(status: int) -> bool:
    """Whether a server says that it cannot answer at the moment."""
    return status == 429 or status >= 500


@cache
def unreachable() -> str | None:
    """
    Why the hub cannot be asked, or `None`. It is asked once.

    Its libraries would ask six times for each file, with half a minute of pauses. They are told to be offline then,
    and use what was downloaded before.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    answer = probe(constants.ENDPOINT, get_session())  # with the certificates and proxies that the libraries use
    if isinstance(answer, int) and not fails(answer):
        _give_up_early(get_session())
        return None
    _go_offline()
    return f"{constants.ENDPOINT}: {answer if isinstance(answer, str) else f'error {answer}'}"


def _go_offline() -> None:
    import datasets
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True


def _give_up_early(session: Any) -> None:
    """Ends requests of the libraries that they would repeat, some without any time-out."""
    from huggingface_hub.errors import OfflineModeIsEnabled
    from huggingface_hub.utils import hf_raise_for_status

    asked: dict[str, float] = {}

    def before(request: Any) -> None:
        limits = request.extensions["timeout"]
        # Not the download of a file, which has a limit that can be set, and may be tried again
        if request.method != "HEAD" and not (request.method == "GET" and None in limits.values()):
            return
        request.extensions["timeout"] = dict.fromkeys(limits, 2 * TIMEOUT)
        if time.monotonic() - asked.setdefault(str(request.url), time.monotonic()) >= 2 * TIMEOUT:
            _go_offline()
            raise OfflineModeIsEnabled(f"no answer to {request.url} within {2 * TIMEOUT:g} s")

    def after(response: Any) -> None:
        asked.pop(str(response.request.url), None)
        # What is asked first is the head of a file; while that is downloaded, they may try again
        if response.request.method == "HEAD" and fails(response.status_code):
            hf_raise_for_status(response)

    hooks = session.event_hooks
    session.event_hooks = {"request": [*hooks["request"], before], "response": [*hooks["response"], after]}


def explain(error: BaseException) -> str | None:
    """What an error of the libraries says about the hub, with the way out. `None` if it is of another kind."""
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    if "trust_remote_code" in str(chain[0]):
        return "it brings code of its own, which is never run. Use one that the libraries know without."
    if isinstance(chain[0], DatasetNotFoundError):  # whose own cause is cut off
        return f"{chain[0]} Correct the name, or accept its terms on its page, if it has any, and {LOG_IN}."
    for one in chain:
        if isinstance(one, HfHubHTTPError):
            status, url = one.response.status_code, str(one.response.url)
            found = re.match(r"(https?://[^/]+/)(?:api/models/|api/)?(.+?)/(?:resolve|revision|tree)/", url)
            page = "".join(found.groups()) if found else url
            if isinstance(one, GatedRepoError):
                return f"{page} wants its terms accepted. Accept them there, and {LOG_IN}."
            return f"{page} answers with the error {status}: {WAYS_OUT.get(status, LATER)}"
    if re.search("OfflineMode|[Oo]ffline mode|LocalEntryNotFound", " ".join(map(repr, chain))):
        return (
            "there is no copy in the cache of downloads, and the hub cannot be asked "
            f"({unreachable() or 'no answer in time'}). Connect, correct the name, or name a folder with a copy."
        )
    return None


# Of a model with parts that its base model's licence does not cover
NON_COMMERCIAL = {"license": "other", "license_name": "non-commercial-parts"}


@cache  # asked at each checkpoint
def metadata_of(model: str) -> dict[str, Any]:
    """Metadata of a model's card, in its folder, or on the hub if that can be asked. Empty if they cannot be read."""
    import yaml
    from huggingface_hub import hf_hub_download, metadata_load

    try:
        if (folder := Path(model)).is_dir():
            return metadata_load(folder / "README.md") or {}
        unreachable()  # before it is asked
        return metadata_load(hf_hub_download(model, "README.md")) or {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def licence_of(model: str) -> str | None:
    """Licence that the card of a model names."""
    licence = metadata_of(model).get("license")
    return licence if isinstance(licence, str) else None


def base_of(folder: str) -> str | None:
    """The model on the hub that the card of a model in a folder names as its base."""
    base = metadata_of(folder).get("base_model")
    return base if isinstance(base, str) and on_hub(base) else None


def licence_fields(base: str) -> dict[str, str]:
    """Metadata of a model that is made of another: the same licence, whether that can be read or not."""
    if not (licence := licence_of(base)):
        return {"license": "other", "license_name": "that-of-the-base-model"}
    fields, card = {"license": licence}, metadata_of(base)
    if name := card.get("license_name"):  # what `other` stands for
        fields["license_name"] = str(name)
    if "://" in (link := str(card.get("license_link"))):  # that to a file beside the card would lead nowhere
        fields["license_link"] = link
    return fields
