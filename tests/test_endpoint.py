import json
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sdrrl_trl import SDRRLError
from sdrrl_trl.engines.endpoint import EndpointGenerator
from sdrrl_trl.engines.prompted import PromptedTranslator


class Server:
    """A real HTTP server that answers as the test says, and notes what it was asked."""

    def __init__(self, reply):
        self.requests, self.active, self.most_active, lock = [], 0, 0, threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.active += 1
                    outer.most_active = max(outer.most_active, outer.active)
                    outer.requests.append((self.path, dict(self.headers), body, time.monotonic()))
                    number = len(outer.requests)
                status, headers, content = reply(number, body)
                with lock:
                    outer.active -= 1
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


def completion(text, reason="stop", logprob=None):
    choice = {"message": {"content": text}, "finish_reason": reason}
    if logprob is not None:
        choice["logprobs"] = {"content": [{"logprob": logprob}, {"logprob": logprob}]}
    return 200, {}, {"choices": [choice], "usage": {"completion_tokens": 2}}


def echo(body):
    return completion("> " + body["messages"][-1]["content"])


def ask(server, n=1, **options):
    options = {"backoff": 0.01, "max_retries": 3, "timeout": 5.0, **options}
    generator = EndpointGenerator(server.url, "m", **options)
    return generator.generate([[{"role": "user", "content": f"q{i}"}] for i in range(n)])


def test_answers_come_in_the_order_of_the_questions_however_long_each_takes():
    def reply(number, body):
        time.sleep(0.05 if body["messages"][-1]["content"].endswith("0") else 0)
        return echo(body)

    with Server(reply) as server:
        assert [answer.text for answer in ask(server, 30)] == [f"> q{i}" for i in range(30)]
        assert {path for path, *_ in server.requests} == {"/v1/chat/completions"}


@pytest.mark.parametrize(
    "fault",
    [
        (500, {}, "oops"),
        (503, {}, {"error": {"message": "overloaded"}}),
        (429, {"Retry-After": "0.01"}, {}),
        (200, {"Content-Type": "text/html"}, "<html>Please log in</html>"),
        (200, {}, {"choices": []}),
        (200, {}, "[1]"),
    ],
)
def test_a_fault_of_the_server_is_tried_again(fault):
    with Server(lambda number, body: fault if number <= 2 else echo(body)) as server:
        assert ask(server)[0].text == "> q0"
        assert len(server.requests) == 3


def test_the_server_may_ask_to_wait_in_seconds_or_until_a_date():
    for value, least in (("0.3", 0.29), (formatdate(time.time() + 2, usegmt=True), 0.5)):
        reply = lambda number, body, v=value: (429, {"Retry-After": v}, {}) if number == 1 else echo(body)  # noqa: E731
        with Server(reply) as server:
            ask(server)
            assert server.requests[1][3] - server.requests[0][3] >= least


@pytest.mark.parametrize(
    "fault, named",
    [((500, {}, "<b>Bad</b> gateway"), "500: Bad gateway"), ((200, {}, "<html>Log in</html>"), "Log in")],
)
def test_a_server_that_stays_broken_is_an_error_that_says_how_to_go_on(fault, named):
    with Server(lambda *_: fault) as server:
        with pytest.raises(SDRRLError, match=f"failed 4 times .*{named}.*the same command goes on"):
            ask(server)
        assert len(server.requests) == 4


def test_time_outs_and_refused_connections_are_tried_again_and_then_an_error():
    def slow(number, body):
        time.sleep(0.5 if number == 1 else 0)
        return echo(body)

    with Server(slow) as server:
        assert ask(server, timeout=0.2)[0].text == "> q0"
    with pytest.raises(SDRRLError, match="ConnectError"):
        ask(server)  # gone by now


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_mistake_of_ours_stops_at_once_with_the_servers_words(status):
    with Server(lambda *_: (status, {}, {"error": {"message": "no model 'm' here"}})) as server:
        with pytest.raises(SDRRLError, match=f"{status}.*no model 'm' here"):
            ask(server)
        assert len(server.requests) == 1


def test_the_key_is_sent_but_never_shown(monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with Server(lambda *_: (401, {}, {"error": "wrong key"})) as server:
        with pytest.raises(SDRRLError) as error:
            ask(server)
        url = server.url.replace("//", "//me:sk-secret@")
        with pytest.raises(SDRRLError) as error_with_url:
            EndpointGenerator(url, "m").generate([[{"role": "user", "content": "q"}]])
        assert server.requests[0][1]["Authorization"] == "Bearer sk-secret"
        described = EndpointGenerator(url, "m").describe()
    output = capsys.readouterr()
    for text in (str(error.value), str(error_with_url.value), repr(described), output.out, output.err):
        assert "sk-secret" not in text
    monkeypatch.delenv("OPENAI_API_KEY")
    with Server(lambda number, body: echo(body)) as server:
        ask(server)
        assert "Authorization" not in server.requests[0][1]


def test_requests_at_a_time_stay_below_the_limit_and_fall_when_the_server_is_overloaded():
    def reply(number, body):
        time.sleep(0.02)
        return echo(body)

    with Server(reply) as server:
        ask(server, 60, max_concurrency=3)
        assert server.most_active == 3
    with Server(lambda number, body: (429, {}, {}) if number <= 6 else reply(number, body)) as server:
        generator = EndpointGenerator(server.url, "m", backoff=0.01)
        generator.generate([[{"role": "user", "content": str(i)}] for i in range(8)])
        assert generator._limit.limit < 8


def test_the_likeliest_of_several_answers_is_kept():
    def reply(number, body):
        return completion(f"answer {number}", logprob=-0.1 if number == 2 else -1.0)

    with Server(reply) as server:
        assert ask(server, num_samples=3, temperature=1.0)[0].text == "answer 2"
        assert len({request[2]["seed"] for request in server.requests}) == 3
    with Server(lambda *_: completion("a")) as server, pytest.raises(SDRRLError, match="Set `num_samples` to 1"):
        ask(server, num_samples=2, temperature=1.0)


def test_cut_off_and_empty_answers_are_marked():
    with Server(lambda *_: completion("half an", "length")) as server:
        assert ask(server)[0].finish_reason == "length"
    with Server(lambda *_: completion(None, "content_filter")) as server:
        answer = ask(server)[0]
        assert (answer.text, answer.finish_reason) == ("", "content_filter")


def test_a_prompted_model_translates():
    replies = {"Good day.": '"Bom dia."', "See ZX1Q.": "<think>Hm</think>Veja ZX1Q.", '"Yes"': '"Sim"', "Cut.": "Cor"}

    def reply(number, body):
        prompt, text = body["messages"][0]["content"].rsplit("\n\n", 1)
        assert "from English into Portuguese" in prompt
        return completion(replies[text], "length" if text == "Cut." else "stop")

    with Server(reply) as server:
        translator = PromptedTranslator(EndpointGenerator(server.url, "m"))
        assert translator.translate(list(replies), "en", "pt") == ["Bom dia.", "Veja ZX1Q.", '"Sim"', ""]


def test_without_vllm_the_extra_is_named():
    from sdrrl_trl.engines.vllm import VLLMGenerator

    with pytest.raises(SDRRLError, match=r'pip install "sdrrl-trl\[vllm\]"'):
        VLLMGenerator("model")
