import asyncio
import functools
import itertools
import logging
import ssl
import time

import pytest
from conftest import cases
from server import Server, completion

from sdrrl_trl import SDRRLError
from sdrrl_trl.engines import Generation, Sampling, endpoint
from sdrrl_trl.engines.endpoint import EndpointGenerator
from sdrrl_trl.engines.prompted import PromptedTranslator
from sdrrl_trl.transfer.select_engines import check_engine


KEY = "sk-secret"
CONTEXT = functools.cache(ssl.create_default_context)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Short waits, and certificates read once: each httpx client reads all of them."""
    monkeypatch.setattr(ssl, "create_default_context", CONTEXT)
    for name, value in {"_RETRIES": 3, "_BACKOFF": 0.01, "_TIMEOUT": 5.0}.items():
        monkeypatch.setattr(endpoint, name, value)


def echo(number, body):
    return completion("> " + body["messages"][-1]["content"])


def bodies(server):
    return [body for _, _, body, _ in server.requests]


def questions(n):
    return [[{"role": "user", "content": f"q{i}"}] for i in range(n)]


def engine(url, **options):
    return EndpointGenerator(url, "m", Sampling(**options))


def ask(server, n=1, **options):
    return engine(server.url, **options).generate(questions(n))


def test_answers_come_in_the_order_of_the_questions_with_so_many_requests_at_a_time(monkeypatch):
    monkeypatch.setattr(endpoint, "_AT_A_TIME", 3)
    active, seen, finished = [], [], []

    def reply(number, body):
        question = body["messages"][-1]["content"]
        active.append(question)
        seen.append(len(active))
        time.sleep(0.2 if question == "q0" else 0.02)
        active.remove(question)
        finished.append(question)
        return echo(number, body)

    with Server(reply) as server:
        assert ask(server, 30) == [Generation(f"> q{i}", "stop") for i in range(30)]
        assert {path for path, *_ in server.requests} == {"/v1/chat/completions"}
    assert finished[0] != "q0" and max(seen) == 3


def test_a_request_carries_the_options_and_a_seed_that_follows_from_the_question():
    with Server(echo) as server:
        arguments = {"chat_template_kwargs": {"enable_thinking": False}}
        options = {"max_new_tokens": 7, "temperature": 0.5, "top_p": 0.9} | arguments
        ask(server, 2, **options)
        first, server.requests[:] = bodies(server), []
        expected = {"model": "m", "max_tokens": 7, "temperature": 0.5, "top_p": 0.9} | arguments
        assert all(
            body.keys() == {*expected, "messages", "seed"} and expected.items() <= body.items() for body in first
        )
        seeds = {body["seed"] for body in first}
        assert len(seeds) == 2
        ask(server, 2, **options)
        assert {body["seed"] for body in bodies(server)} == seeds
        server.requests.clear()
        ask(server, 2, **options, seed=1)
        assert seeds.isdisjoint(body["seed"] for body in bodies(server))
        described = engine(server.url, **options).describe()  # for the manifest
    assert described == {"engine": "endpoint", "host": "127.0.0.1", "model": "m", "seed": 42, **options}


def test_it_works_where_an_event_loop_runs_already_as_in_a_notebook_and_without_a_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    async def cell(server):
        return ask(server)

    with Server(echo) as server:
        assert asyncio.run(cell(server))[0].text == "> q0"
        assert "Authorization" not in server.requests[0][1]


@pytest.mark.parametrize("fault", [*cases("faults"), (200, {}, "[" * 100_000), (200, {}, "9" * 10_000)])
def test_a_fault_of_the_server_is_tried_again(fault):
    with Server(lambda number, body: fault if number <= 2 else echo(number, body)) as server:
        assert ask(server)[0].text == "> q0"
        assert len(server.requests) == 3


@pytest.mark.parametrize(
    "fault, pauses_in, named",
    [
        ((502, {}, "Bad\x1b[31m\n gateway"), None, r"502: Bad \[31m gateway\)"),
        ((200, {}, "Log in"), None, "no answer in the reply: Log in"),
        ((200, {}, "x" * 5000), None, "a reply of more than 1000 bytes"),
        (completion("trickles"), "head", "nothing whole within 0.3 s"),
        (completion("trickles"), "body", "nothing whole within 0.3 s"),
    ],
)
def test_a_server_that_stays_broken_is_asked_ever_more_rarely_and_then_an_error_says_how_to_go_on(
    monkeypatch, fault, pauses_in, named
):
    for name, value in {"_BACKOFF": 0.1, "_MOST_BYTES": 1000, "_TIMEOUT": 0.3}.items():
        monkeypatch.setattr(endpoint, name, value)
    with Server(lambda *_: fault, pause=0.2 if pauses_in else 0.0) as server:
        server.pause_head = pauses_in == "head"
        with pytest.raises(SDRRLError, match=f"127.0.0.1 after 4 attempts .{named}.*kept.*the same command goes on"):
            ask(server)
        times = [request[3] for request in server.requests]
        waits = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert len(waits) == 3 and all(wait >= least for wait, least in zip(waits, (0.05, 0.1, 0.2), strict=True))


def test_a_server_that_is_not_there_is_told_at_once_but_one_that_was_there_is_waited_for():
    with Server(echo) as server:
        generator = engine(server.url)
    with pytest.raises(SDRRLError, match=f"No server answers at {server.url}: ConnectError.*Start it"):
        check_engine(server.url)
    with pytest.raises(SDRRLError, match="after 4 attempts .ConnectError"):
        generator.generate(questions(1))


@pytest.mark.parametrize("status, content, words", [*cases("refusals"), (404, "x" * 1000, "x{300}\\)")])
def test_a_mistake_of_ours_and_a_redirection_stop_at_once_with_the_servers_words(status, content, words):
    with Server(lambda *_: (status, {"Location": "/v2"}, content)) as server:
        with pytest.raises(SDRRLError, match=f"refuses the request .{status}: {words}.*Correct"):
            ask(server)
        assert len(server.requests) == 1


def test_after_a_refusal_no_further_request_is_sent(monkeypatch):
    monkeypatch.setattr(endpoint, "_AT_A_TIME", 1)

    def reply(number, body):
        time.sleep(0.05)
        return 401, {}, {"error": "wrong key"}

    with Server(reply) as server:
        with pytest.raises(SDRRLError, match="wrong key"):
            ask(server, 50)
        time.sleep(0.1)
        assert len(server.requests) == 1


@pytest.mark.parametrize("status, header", [(401, "a"), (500, "a"), (200, "a"), (200, f"Incorrect key Bearer {KEY}.")])
def test_the_key_is_sent_but_never_shown(monkeypatch, capsys, caplog, status, header):
    """Not even when the server repeats it, in its words or in a header that is none."""
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("OPENAI_API_KEY", KEY + "\n")
    reply = status, {header: "b"}, {"error": {"message": f"Incorrect key Bearer {KEY}."}}
    with Server(lambda *_: reply) as server:
        with pytest.raises(SDRRLError, match=r"Incorrect key Bearer \*\*\*") as error:
            ask(server)
        assert server.requests[0][1]["Authorization"] == f"Bearer {KEY}"
        shown = f"{error.value} {engine(server.url).describe()} {engine(server.url)!r}"
    output = capsys.readouterr()
    assert header != "a" or "HTTP Request" in caplog.text  # the logs of httpx were on
    assert KEY not in shown + output.out + output.err + caplog.text


def test_a_key_that_cannot_be_sent_is_an_error_that_does_not_show_it(monkeypatch):
    for key in ("sk-sé", "sk-s\ne"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(SDRRLError, match="OPENAI_API_KEY has characters") as error:
            engine("http://localhost/v1")
        assert "sk-s" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [f"http://me:{KEY}@host/v1", f"http://host/v1?key={KEY}", f"me:{KEY}@host", "host:80/v1", "http://", "ftp://a"],
)
def test_addresses_with_secrets_and_wrong_ones_are_refused_unseen(url):
    with pytest.raises(SDRRLError, match="must look like") as error:
        engine(url)
    assert KEY not in str(error.value)


@pytest.mark.parametrize("message, reason, expected", cases("replies"))
def test_finish_reasons_and_contents(message, reason, expected):
    reply = {"choices": [{"message": message, "finish_reason": reason}]}
    with Server(lambda *_: (200, {}, reply)) as server:
        assert ask(server) == [Generation(*expected)]


def translate(original, reply, reason="stop", source="en", target="pt"):
    with Server(lambda *_: completion(reply, reason)) as server:
        (translation,) = PromptedTranslator(engine(server.url)).translate([original], source, target)
        return translation, bodies(server)[0]["messages"]


def test_the_prompt_of_a_translation_names_the_languages_and_ends_with_the_text():
    _, (message,) = translate("See {a} ZX1Q.", "x", target="th")
    for words in ("from English into Thai.", "ZX1Q unchanged", "\n\nSee {a} ZX1Q."):
        assert words in message["content"]
    with Server(echo) as server:
        described = PromptedTranslator(engine(server.url)).describe()
    assert (described["model"], described["licence"]) == ("m", "depends on the model")
    assert "{target}" in described["prompt"]


@pytest.mark.parametrize("original, reply, expected", cases("replies_of_translators"))
def test_replies_are_freed_of_what_is_not_translation(original, reply, expected):
    assert translate(original, reply)[0] == expected


def test_a_translation_that_is_cut_off_or_refused_is_empty_and_a_sentence_is_no_label():
    for reason in ("length", "content_filter"):
        assert translate("Good day.", "Bom", reason)[0] == ""
    reply = "In his translation of the book he says: hello"
    assert translate("Na tradução do livro ele diz olá", reply, source="pt", target="en")[0] == reply


@pytest.mark.parametrize("status, message, reason", cases("refused_questions"))
def test_a_question_that_a_server_refuses_is_marked_and_the_others_are_answered(status, message, reason):
    def reply(number, body):
        if body["messages"][-1]["content"] == "q1":
            return status, {}, {"error": {"message": message}}
        return completion("x")

    with Server(reply) as server:
        assert [answer.finish_reason for answer in ask(server, 3)] == ["stop", reason, "stop"]
