"""The translation families with tiny random models of the real classes, and tokenizers made on the spot."""

import io
import json

import pytest
import torch
from conftest import DEMO
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    M2M100Config,
    M2M100ForConditionalGeneration,
    M2M100Tokenizer,
    MarianConfig,
    MarianMTModel,
    MarianTokenizer,
    NllbTokenizer,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

from sdrrl_trl import SDRRLError
from sdrrl_trl.engines.seq2seq import Seq2SeqTranslator, licence_of


SENTENCES = [
    "The sky is blue.",
    "Please run the program again and tell me what you see.",
    "Yes.",
    "A long sentence with many words in it, so that the batch has to be padded for the others to fit beside it.",
]


def corpus():
    return (DEMO / "seeds.jsonl").read_text(encoding="utf-8").splitlines()[:200]


def sentencepiece_model() -> bytes:
    spm = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=model, vocab_size=300, model_type="bpe", minloglevel=2
    )
    return model.getvalue()


def sizes(config_class, n, **more):
    values = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    values |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "init_std": 0.5}
    values |= {"max_position_embeddings": 128, "pad_token_id": 1, "eos_token_id": 2}
    return config_class(vocab_size=n, **values | more)


def save(folder, model, tokenizer):
    with torch.no_grad():  # so that its translations come to an end
        model.get_output_embeddings().weight[tokenizer.eos_token_id] *= 6
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def nllb(tmp_path_factory):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    state = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in state["merges"]]
    tokenizer = NllbTokenizer(vocab=state["vocab"], merges=merges)
    torch.manual_seed(0)
    model = M2M100ForConditionalGeneration(sizes(M2M100Config, len(tokenizer), decoder_start_token_id=2))
    return save(tmp_path_factory.mktemp("nllb") / "nllb-tiny", model, tokenizer)


@pytest.fixture(scope="module")
def m2m100(tmp_path_factory):
    folder = tmp_path_factory.mktemp("m2m100")
    (folder / "spm").write_bytes(sentencepiece_model())
    spm = pytest.importorskip("sentencepiece").SentencePieceProcessor(model_file=str(folder / "spm"))
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    for i in range(spm.get_piece_size()):
        vocabulary.setdefault(spm.id_to_piece(i), len(vocabulary))
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    tokenizer = M2M100Tokenizer(str(folder / "vocab.json"), str(folder / "spm"))
    torch.manual_seed(0)
    model = M2M100ForConditionalGeneration(sizes(M2M100Config, len(vocabulary) + 110, decoder_start_token_id=2))
    return save(folder / "m2m-tiny", model, tokenizer)


@pytest.fixture(scope="module")
def madlad(tmp_path_factory):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<pad>", "</s>", "<2en>", "<2pt>", "<2no>", "<2zh>", "<2jv>"]
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    vocabulary = [tuple(entry) for entry in json.loads(tokenizer.to_str())["model"]["vocab"]]
    tokenizer = T5Tokenizer(vocab=vocabulary, extra_ids=0, additional_special_tokens=special[3:])
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=16,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        initializer_factor=5.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    return save(tmp_path_factory.mktemp("madlad") / "madlad-tiny", T5ForConditionalGeneration(config), tokenizer)


@pytest.fixture(scope="module")
def marian(tmp_path_factory):
    folder = tmp_path_factory.mktemp("marian")
    (folder / "spm").write_bytes(sentencepiece_model())
    spm = pytest.importorskip("sentencepiece").SentencePieceProcessor(model_file=str(folder / "spm"))
    vocabulary = {"</s>": 0, "<unk>": 1, ">>por<<": 2, ">>spa<<": 3}
    for i in range(spm.get_piece_size()):
        vocabulary.setdefault(spm.id_to_piece(i), len(vocabulary))
    vocabulary["<pad>"] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    tokenizer = MarianTokenizer(str(folder / "spm"), str(folder / "spm"), str(folder / "vocab.json"))
    torch.manual_seed(0)
    n, pad = len(vocabulary), vocabulary["<pad>"]
    config = sizes(MarianConfig, n, pad_token_id=pad, eos_token_id=0, decoder_start_token_id=pad)
    return save(folder / "opus-mt-tiny", MarianMTModel(config), tokenizer)


def tokens(translator, source, target):
    """What the encoder reads for a short text, and what the decoder is made to begin with."""
    ids = translator.codes.encode(["Yes."], source, target)[0]
    first = translator.codes.first_token(target)
    read = translator.tokenizer.convert_ids_to_tokens(ids)
    return read, None if first is None else translator.tokenizer.convert_ids_to_tokens(first)


def test_nllb_is_told_both_languages_by_their_flores_codes(nllb):
    translator = Seq2SeqTranslator(nllb)
    assert translator.describe()["family"] == "nllb"
    read, first = tokens(translator, "pt", "nb")
    assert read[0] == "por_Latn" and read[-1] == "</s>" and first == "nob_Latn"
    assert tokens(translator, "en", "zh")[1] == "zho_Hans"


def test_m2m100_is_told_both_languages_by_their_short_codes(m2m100):
    translator = Seq2SeqTranslator(m2m100)
    assert translator.describe()["family"] == "m2m100"
    read, first = tokens(translator, "pt", "nb")
    assert read[0] == "__pt__" and read[-1] == "</s>" and first == "__no__"
    with pytest.raises(SDRRLError, match="does not know Telugu"):
        translator.check("en", "te")


def test_madlad_is_told_the_target_by_a_token_before_the_text(madlad):
    translator = Seq2SeqTranslator(madlad)
    assert translator.describe()["family"] == "madlad"
    read, first = tokens(translator, "en", "nb")
    assert read[0] == "<2no>" and read[-1] == "</s>" and first is None
    with pytest.raises(SDRRLError, match="does not know Thai"):
        translator.check("en", "th")


def test_an_opus_model_of_several_targets_is_told_the_target(marian):
    translator = Seq2SeqTranslator(marian)
    assert translator.describe()["family"] == "marian"
    assert tokens(translator, "en", "pt")[0][0] == ">>por<<"
    with pytest.raises(SDRRLError, match="does not know Thai"):
        translator.check("en", "th")


@pytest.mark.parametrize("family", ["nllb", "m2m100", "madlad", "marian"])
def test_the_translation_of_a_text_does_not_depend_on_its_neighbours(family, request):
    name = request.getfixturevalue(family)
    translator = Seq2SeqTranslator(name)
    together = translator.translate(SENTENCES, "en", "pt")
    assert together == translator.translate(SENTENCES[::-1], "en", "pt")[::-1]
    assert together == [translator.translate([text], "en", "pt")[0] for text in SENTENCES]
    assert together == Seq2SeqTranslator(name, batch_tokens=30).translate(SENTENCES, "en", "pt")
    assert len(set(together)) > 1
    if family != "marian":
        other = translator.translate(SENTENCES, "en", "zh")
        assert other != together  # the language is heard


def test_batches_keep_to_their_tokens_and_shrink_when_memory_runs_out(nllb, monkeypatch):
    translator = Seq2SeqTranslator(nllb, batch_tokens=64)
    expected, shapes = translator.translate(SENTENCES, "en", "pt"), []
    original = translator.model.generate

    def generate(**inputs):
        shapes.append(tuple(inputs["input_ids"].shape))
        if len(inputs["input_ids"]) > 1:
            raise torch.OutOfMemoryError("no")
        return original(**inputs)

    monkeypatch.setattr(translator.model, "generate", generate)
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: None)
    assert translator.translate(SENTENCES, "en", "pt") == expected
    assert max(rows for rows, _ in shapes) > 1
    assert all(rows * columns <= 64 or rows == 1 for rows, columns in shapes)


def test_a_text_that_the_model_cannot_read_whole_is_not_cut_but_left_out(nllb):
    translator = Seq2SeqTranslator(nllb)
    assert translator.max_tokens == 128
    out = translator.translate(["Yes.", "many words " * 200], "en", "pt")
    assert out[0] and out[1] == ""


def test_other_models_are_refused(tiny_model):
    with pytest.raises(SDRRLError, match="is no NLLB, M2M100, MADLAD-400 or OPUS-MT model"):
        Seq2SeqTranslator(tiny_model)
    with pytest.raises(SDRRLError, match="Cannot load the translation model"):
        Seq2SeqTranslator("nowhere/at-all")


def test_licences_are_known_by_name():
    assert licence_of("facebook/nllb-200-distilled-600M") == "CC-BY-NC-4.0"
    assert licence_of("google/madlad400-3b-mt") == "Apache-2.0"
    assert licence_of("me/other") == "not stated"


def test_a_converted_model_translates_alike(nllb, tmp_path):
    converters = pytest.importorskip("ctranslate2.converters")
    from transformers import AutoConfig, AutoTokenizer

    from sdrrl_trl.engines.ctranslate2 import CTranslate2Translator

    converters.TransformersConverter(nllb).convert(str(tmp_path / "ct2"))
    with pytest.raises(SDRRLError, match="with its tokenizer"):
        CTranslate2Translator(str(tmp_path / "ct2"))
    for part in (AutoTokenizer, AutoConfig):
        part.from_pretrained(nllb).save_pretrained(tmp_path / "ct2" / "tokenizer")
    converted = CTranslate2Translator(str(tmp_path / "ct2"))
    for target in ("pt", "zh"):
        assert converted.translate(SENTENCES, "en", target) == Seq2SeqTranslator(nllb).translate(
            SENTENCES, "en", target
        )
    assert converted.describe()["family"] == "nllb"
