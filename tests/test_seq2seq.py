"""The translation families with tiny random models of the real classes, and tokenizers made on the spot."""

import io
import json
import re
import shutil

import pytest
import torch
from conftest import DEMO, cases
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    M2M100Config,
    M2M100ForConditionalGeneration,
    M2M100Tokenizer,
    MarianConfig,
    MarianMTModel,
    MarianTokenizer,
    NllbTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from sdrrl_trl import SDRRLError
from sdrrl_trl.cli import main
from sdrrl_trl.engines import seq2seq
from sdrrl_trl.engines.seq2seq import Seq2SeqTranslator, licence_of


SENTENCES = [
    "The sky is blue.",
    "Please run the program again and tell me what you see.",
    "Yes.",
    "A long sentence with many words in it, so that the batch has to be padded for the others to fit beside it.",
]


def corpus():
    return (DEMO / "seeds.jsonl").read_text(encoding="utf-8").splitlines()[:200]


def sentencepiece_model(**options) -> bytes:
    spm = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    options = {"vocab_size": 300, "model_type": "bpe", "minloglevel": 2} | options
    spm.SentencePieceTrainer.train(sentence_iterator=iter(corpus()), model_writer=model, **options)
    return model.getvalue()


def make_vocabulary(folder, first, last=()) -> dict[str, int]:
    """Writes a SentencePiece model, and the ids of its pieces between other tokens."""
    (folder / "spm").write_bytes(sentencepiece_model())
    spm = pytest.importorskip("sentencepiece").SentencePieceProcessor(model_file=str(folder / "spm"))
    tokens = dict.fromkeys([*first, *map(spm.id_to_piece, range(spm.get_piece_size())), *last])
    vocabulary = {token: i for i, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    return vocabulary


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
    vocabulary = make_vocabulary(folder, ["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer = M2M100Tokenizer(str(folder / "vocab.json"), str(folder / "spm"))
    torch.manual_seed(0)
    model = M2M100ForConditionalGeneration(sizes(M2M100Config, len(vocabulary) + 108, decoder_start_token_id=2))
    return save(folder / "m2m-tiny", model, tokenizer)


MADLAD_CODES = ["<2en>", "<2pt>", "<2no>", "<2zh>", "<2jv>"]


@pytest.fixture(scope="module")
def madlad(tmp_path_factory):
    """With the ids and the tokenizer files of google/madlad400-3b-mt, which are not those of T5."""
    folder = tmp_path_factory.mktemp("madlad")
    options = {"model_type": "unigram", "byte_fallback": True, "vocab_size": 600, "user_defined_symbols": MADLAD_CODES}
    (folder / "spm").write_bytes(sentencepiece_model(unk_id=0, bos_id=1, eos_id=2, **options))
    spm = pytest.importorskip("sentencepiece").SentencePieceProcessor(model_file=str(folder / "spm"))
    pieces = [(spm.id_to_piece(i), spm.get_score(i)) for i in range(spm.get_piece_size())]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    special = {"unk_token": "<unk>", "pad_token": "<s>", "eos_token": "</s>"}
    torch.manual_seed(0)
    shape = {"d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2, "initializer_factor": 5.0}
    ends = {"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0}
    config = T5Config(vocab_size=len(pieces), **shape, **ends)
    name = save(
        folder / "madlad-tiny",
        T5ForConditionalGeneration(config),
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special),
    )
    stated = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "additional_special_tokens": [], **special}
    (folder / "madlad-tiny" / "tokenizer_config.json").write_text(json.dumps(stated))
    return name


@pytest.fixture(scope="module")
def marian(tmp_path_factory):
    codes = [">>por<<", ">>spa<<", ">>cmn_Hans<<", ">>ara<<", ">>nb<<"]
    return make_marian(tmp_path_factory.mktemp("marian"), codes, source_lang="en", target_lang="mul")


def make_marian(folder, codes, **stated):
    vocabulary = make_vocabulary(folder, ["</s>", "<unk>", *codes], ["<pad>"])
    tokenizer = MarianTokenizer(str(folder / "spm"), str(folder / "spm"), str(folder / "vocab.json"), **stated)
    torch.manual_seed(0)
    n, pad = len(vocabulary), vocabulary["<pad>"]
    config = sizes(MarianConfig, n, pad_token_id=pad, eos_token_id=0, decoder_start_token_id=pad)
    return save(folder / "opus-mt-tiny", MarianMTModel(config), tokenizer)


@pytest.mark.parametrize("family, target, read, first", cases("families"))
def test_each_family_is_told_the_languages_in_its_own_way(family, target, read, first, request):
    """NLLB and M2M100 hear the source in the encoder and the target in the decoder, the others the target alone."""
    translator = Seq2SeqTranslator(request.getfixturevalue(family))
    assert translator.describe()["family"] == family
    ids = translator.encode(["Yes."], "en" if family == "marian" else "pt", target)[0]
    tokens = translator.tokenizer.convert_ids_to_tokens(ids)
    assert tokens[: len(read)] == read and tokens[-1] == "</s>"
    start = translator.first_token(target)
    assert (None if start is None else translator.tokenizer.convert_ids_to_tokens(start)) == first


@pytest.mark.parametrize("family, target", [("m2m100", "te"), ("madlad", "th"), ("marian", "th")])
def test_languages_that_a_model_does_not_know_are_refused(family, target, request):
    translator = Seq2SeqTranslator(request.getfixturevalue(family))
    translator.check("en", "pt")
    with pytest.raises(SDRRLError, match="does not know T"):
        translator.check("en", target)


def test_madlad_reads_every_character_as_sentencepiece_does(madlad, tmp_path):
    translator = Seq2SeqTranslator(madlad)
    spm = pytest.importorskip("sentencepiece").SentencePieceProcessor(model_file=f"{madlad}/../spm")
    text = "Say 漢 and 😀, please."
    assert translator.encode([text], "en", "pt")[0] == [*spm.encode(f"<2pt> {text}"), spm.eos_id()]
    # what `T5Tokenizer` makes of the same files, as which it is saved by whoever loads and saves it
    damaged = shutil.copytree(madlad, tmp_path / "damaged")
    AutoTokenizer.from_pretrained(madlad).save_pretrained(damaged)
    with pytest.raises(SDRRLError, match="reads unknown characters as the end of the text"):
        Seq2SeqTranslator(str(damaged))


def test_an_opus_model_of_one_pair_is_used_for_no_other(tmp_path):
    translator = Seq2SeqTranslator(make_marian(tmp_path, [], source_lang="eng", target_lang="por"))
    translator.check("en", "pt")
    assert translator.language_token("pt") is None
    for source, target in (("en", "de"), ("pt", "en")):
        with pytest.raises(SDRRLError, match=f"from eng to por, not from {source} to {target}"):
            translator.translate(["Yes."], source, target)


@pytest.mark.parametrize("family", ["nllb", "m2m100", "madlad", "marian"])
def test_the_translation_of_a_text_does_not_depend_on_its_neighbours(family, request, monkeypatch):
    translator = Seq2SeqTranslator(request.getfixturevalue(family))
    together = translator.translate(SENTENCES, "en", "pt")
    assert together == translator.translate(SENTENCES[::-1], "en", "pt")[::-1]
    assert together == [translator.translate([text], "en", "pt")[0] for text in SENTENCES]
    assert len(set(together)) > 1
    assert translator.translate(SENTENCES, "en", "zh") != together  # the language is heard
    assert translator.translate([], "en", "pt") == []
    monkeypatch.setattr(seq2seq, "BATCH_TOKENS", 30)
    assert together == translator.translate(SENTENCES, "en", "pt")


def test_a_text_that_the_model_cannot_read_whole_is_not_cut_but_left_out(nllb, monkeypatch):
    translator, read = Seq2SeqTranslator(nllb), []

    def generate(rows, target):
        read.extend(map(len, rows))
        return [[50, 2] for _ in rows]

    monkeypatch.setattr(translator, "_generate", generate)
    texts = {len(translator.encode(["a" * n], "en", "pt")[0]): "a" * n for n in range(1, 300)}
    assert translator.max_tokens == 128
    whole, left_out = translator.translate([texts[128], texts[129]], "en", "pt")
    assert read == [128] and whole and not left_out


def test_a_translation_beyond_its_own_limit_is_left_out_although_its_batch_goes_on(nllb, monkeypatch):
    translator = Seq2SeqTranslator(nllb)
    short, long = SENTENCES[2], SENTENCES[3]
    whole = translator.translate([short, long], "en", "pt")
    assert all(whole)
    lengths = [len(ids) for ids in translator.encode([short, long], "en", "pt")]
    limits = dict(zip(lengths, (2, 100), strict=True))
    monkeypatch.setattr(translator, "limit", lambda ids: limits[len(ids)])
    assert translator.translate([short, long], "en", "pt") == ["", whole[1]]


def test_other_models_are_refused(tiny_model):
    with pytest.raises(SDRRLError, match="is no NLLB, M2M100, MADLAD-400 or OPUS-MT model"):
        Seq2SeqTranslator(tiny_model)
    with pytest.raises(SDRRLError, match="Cannot load the translation model"):
        Seq2SeqTranslator("nowhere/at-all")


def test_licences_are_known_by_name_and_that_of_nllb_by_any_name(nllb, madlad, tmp_path):
    assert licence_of("facebook/nllb-200-distilled-600M") == "CC-BY-NC-4.0"
    assert licence_of("google/madlad400-3b-mt") == "Apache-2.0"
    assert licence_of("facebook/m2m100_418M") == "MIT"
    assert licence_of("me/other") == "not stated"
    renamed = {family: shutil.copytree(family, tmp_path / str(i)) for i, family in enumerate((nllb, madlad))}
    assert Seq2SeqTranslator(str(renamed[nllb])).describe()["licence"] == "CC-BY-NC-4.0"
    assert Seq2SeqTranslator(str(renamed[madlad])).describe()["licence"] == "not stated"


@pytest.fixture
def converted(request, tmp_path):
    """A model's folder, and that of the model converted, with the original's files beside it."""
    converters = pytest.importorskip("ctranslate2.converters")
    original = request.getfixturevalue(request.param)
    converters.TransformersConverter(original).convert(str(tmp_path / "ct2"))
    shutil.copytree(original, tmp_path / "ct2" / "tokenizer", ignore=shutil.ignore_patterns("*.safetensors"))
    return original, tmp_path / "ct2"


# M2M100 cannot be converted under transformers 5: CTranslate2 4.8 does not find its language tokens
@pytest.mark.parametrize("converted", ["nllb", "madlad", "marian"], indirect=True)
def test_a_converted_model_translates_alike(converted):
    from sdrrl_trl.engines.ctranslate2 import CTranslate2Translator

    original, folder = converted
    one, other = Seq2SeqTranslator(original), CTranslate2Translator(str(folder))
    texts = [*SENTENCES, *corpus()[:8], *("Please run it. " * n for n in range(5, 20, 2))]
    lengths = [len(ids) for ids in one.encode(texts, "en", "pt")]
    # the longest translations reach the limit of the positions, the longest texts go beyond it
    assert any(2 * n + 20 > one.max_tokens >= n for n in lengths) or one.family == "madlad"
    for target in ("pt", "zh"):
        translations = one.translate(texts, "en", target)
        assert other.translate(texts, "en", target) == translations
        assert len(set(translations)) > 2
    assert other.translate([], "en", "pt") == []
    assert other.describe()["family"] == one.describe()["family"]
    assert other.max_tokens == one.max_tokens
    if one.family != "nllb":  # the tiny NLLB knows all languages, as the real one does
        with pytest.raises(SDRRLError, match="does not know Thai"):
            other.translate(texts, "en", "th")


@pytest.mark.parametrize("converted", ["nllb"], indirect=True)
def test_a_converted_model_without_its_tokenizer_or_damaged_is_refused(converted):
    from sdrrl_trl.engines.ctranslate2 import CTranslate2Translator

    _, folder = converted
    (folder / "model.bin").write_bytes(b"damaged")
    with pytest.raises(SDRRLError, match="Cannot load the converted model"):
        CTranslate2Translator(str(folder))
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(SDRRLError, match="with its tokenizer"):
        CTranslate2Translator(str(folder))


def test_a_dry_run_tells_size_licence_and_time_of_a_translation_model(nllb, tiny_model, seeds, tmp_path, capsys):
    command = ["build", "--model_name_or_path", tiny_model, "--seeds", str(seeds), "--target_languages", "th"]
    command += ["--translator", "seq2seq", "--translator_model", str(nllb), "--output_dir", str(tmp_path / "out")]
    main([*command, "--dry_run"])
    told = re.search(
        r"translate into th: .*\(0 M parameters, licence: CC-BY-NC-4.0\), at most (.*)", capsys.readouterr().out
    )
    assert told[1] == "15 s"
