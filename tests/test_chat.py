"""Chat templates, ends of turns and windows of models as they come."""

import json
import re
import shutil
from pathlib import Path

import pytest
import transformers
from conftest import cases
from datasets import Dataset
from stub_engines import StubTranslator, stub_config
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer
from trl import SFTConfig

from sdrrl_trl import SDRRLConfig, SDRRLError, SDRRLTrainer, build_transfer_set
from sdrrl_trl.engines import Sampling
from sdrrl_trl.engines.chat import fix_date
from sdrrl_trl.engines.transformers import TransformersGenerator, load_chat, load_model
from sdrrl_trl.engines.vllm import VLLMGenerator
from sdrrl_trl.evaluation.models import processes, wrap
from sdrrl_trl.transfer.fertility import MAX_LENGTH


ASK = [{"role": "user", "content": "Why is the sky blue?"}]
SYSTEM = [{"role": "system", "content": "Be kind."}, *ASK]


@pytest.fixture
def model(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "model")


def change(model: Path, file: str, **values) -> None:
    path = model / file
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | values))


def with_template(model: Path, *replaced: str) -> str:
    path = model / "chat_template.jinja"
    path.write_text(path.read_text().replace(*replaced))
    return str(model)


# Of the tiny model: 0 <|pad|>, 1 <|im_start|>, 2 <|im_end|>
@pytest.mark.parametrize("configured, tokenizer, behind, ends", cases("ends_of_turn", "file_cases.yaml"))
def test_an_answer_ends_at_all_that_model_tokenizer_and_template_call_an_end(
    model, configured, tokenizer, behind, ends
):
    change(model, "config.json", eos_token_id=configured[0])
    change(model, "generation_config.json", eos_token_id=configured[1])
    change(model, "tokenizer_config.json", eos_token=tokenizer)
    with_template(model, "{{ m.content }}<|im_end|>", "{{ m.content }}" + behind)
    chat = load_chat(str(model), Sampling())
    assert chat.ends == ends
    word = chat.tokenizer("Hello", add_special_tokens=False)["input_ids"]
    assert all(chat.text([*word, end, *word]) == "Hello" for end in ends)


def test_an_answer_that_ends_as_the_tokenizer_says_is_whole(model):
    change(model, "config.json", eos_token_id=5)
    change(model, "generation_config.json", eos_token_id=None)
    generator = TransformersGenerator(str(model), Sampling(24), dtype="float32")
    generator.model.get_output_embeddings().weight.data[2] *= 3
    answers = generator.generate([[{"role": "user", "content": "Why " * n}] for n in range(1, 9)])
    assert "stop" in {answer.finish_reason for answer in answers}
    assert not any("<|im" in answer.text for answer in answers)


# Without a limit, with one of another name, without keys, with and without a state in the cache of transformers
KINDS = {
    "Bloom": {"n_layer": 1, "n_head": 2},
    "Mpt": {"d_model": 16, "n_layers": 1, "n_heads": 2, "max_seq_len": 2048},
    "Mamba": {"num_hidden_layers": 1, "state_size": 4},
    "Lfm2": {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32}
    | {"layer_types": ["conv", "full_attention"]},
    "xLSTM": {"hidden_size": 128, "num_hidden_layers": 1, "num_heads": 2},
}


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_other_kinds_answer_as_they_do_one_row_at_a_time(model, kind):
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokens = {"vocab_size": len(tokenizer), "eos_token_id": 2, "pad_token_id": 0, "bos_token_id": 1}
    config = getattr(transformers, f"{kind}Config")(**{"hidden_size": 16} | KINDS[kind] | tokens)
    getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(model)
    generator = TransformersGenerator(str(model), Sampling(6, temperature=0.0), dtype="float32")
    questions = [ASK, [{"role": "user", "content": "Why " * 9}]]
    for question, answer in zip(questions, generator.generate(questions), strict=True):
        inputs = tokenizer.apply_chat_template([question], add_generation_prompt=True, return_tensors="pt")
        ids = generator.model.generate(**inputs, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :]
        assert answer.text == tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert generator.chat.window == {"Mpt": 2048, "Lfm2": 128_000}.get(kind)


def test_no_room_for_an_answer_is_said_before_weights_are_loaded(model):
    (model / "model.safetensors").unlink()
    for engine in (TransformersGenerator, VLLMGenerator):
        with pytest.raises(SDRRLError, match="leaves no room for a question.*2048 positions"):
            engine(str(model), Sampling(2048))


REFUSES = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
LEAVES_OUT = "{% if messages[0].role == 'system' %}{% set messages = messages[1:] %}{% endif %}"


@pytest.mark.parametrize(
    "template, problem", [(REFUSES, "System role not supported"), (LEAVES_OUT, "leaves them out")]
)
@pytest.mark.parametrize("where", ["system_prompt", "seeds"])
def test_a_template_without_system_messages_is_found_before_weights_are_loaded(
    model, tmp_path, template, problem, where
):
    name, path = with_template(model, "{% for", template + "{% for"), tmp_path / "seeds.jsonl"
    (model / "model.safetensors").write_bytes(b"")
    row = {"messages": SYSTEM if where == "seeds" else ASK}
    path.write_text("".join(json.dumps(row | {"id": number}) + "\n" for number in range(20)))
    options = {"system_prompt": "Be kind."} if where == "system_prompt" else {}
    config = stub_config(str(path), tmp_path / "set", model_name_or_path=name, lexicon=None, dry_run=True, **options)
    with pytest.raises(SDRRLError, match=f"takes no system messages \\(.*{problem}"):
        build_transfer_set(config)


def test_what_a_template_refuses_later_is_an_error_that_names_it(model):
    chat = load_chat(with_template(model, "{% for", REFUSES + "{% for"), Sampling())
    with pytest.raises(SDRRLError, match="refuses a conversation: System role"):
        chat.prompts([SYSTEM])


def test_arguments_of_the_template_take_effect_or_are_refused(model):
    thought = "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    name = with_template(model, "assistant\n{% endif %}", "assistant\n" + thought + "{% endif %}")
    prompts = [
        load_chat(name, Sampling(chat_template_kwargs=arguments)).prompts([ASK])[0]
        for arguments in (None, {"enable_thinking": True}, {"enable_thinking": False})
    ]
    assert prompts[0] == prompts[1] != prompts[2]
    assert "</think>" in AutoTokenizer.from_pretrained(name).decode(prompts[2])
    for wrong in ("enable_thinkng", "add_generation_prompt", "messages"):
        with pytest.raises(SDRRLError, match=f"does not know {wrong}, so it would do nothing"):
            load_chat(name, Sampling(chat_template_kwargs={wrong: False}))


DATE = "{% if strftime_now is defined %}{{ strftime_now(FORMAT) }}{% endif %}"


@pytest.mark.parametrize("asked", ["'%d %b %Y'", "format='%-d %b %Y'", "'%e %b %Y'", "['%d', '%b', '%Y'] | join(' ')"])
def test_the_date_in_a_template_is_the_same_every_day_in_build_training_and_evaluation(model, tmp_path, asked):
    date = "\n" + DATE.replace("FORMAT", asked)
    name = with_template(model, "{% for", date + "{% for")
    chat = load_chat(name, Sampling())
    once = chat.tokenizer.get_chat_template
    assert fix_date(chat.tokenizer).get_chat_template is once
    prompts = {chat.tokenizer.decode(chat.prompts([ASK])[0])}
    row = {"prompt": ASK, "completion": [{"role": "assistant", "content": ""}]}
    options = SDRRLConfig(output_dir=str(tmp_path / "tuned"), report_to="none", use_cpu=True)
    trainer = SDRRLTrainer(name, options, train_dataset=Dataset.from_list([row]))
    prompts.add(chat.tokenizer.decode(trainer.train_dataset[0]["input_ids"][: len(chat.prompts([ASK])[0])]))
    prompts.add(wrap(*load_model(name), processes()).apply_chat_template(ASK))
    assert len(prompts) == 1 and all("26 Jul 2024" in prompt for prompt in prompts)
    trainer.save_model()  # with the template as it was
    assert (tmp_path / "tuned" / "chat_template.jinja").read_text() == (model / "chat_template.jinja").read_text()


@pytest.mark.parametrize(
    "opening, closing", [("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<|channel>", "<channel|>")]
)
def test_marks_of_thoughts_stay_in_the_text_though_they_are_special_tokens(model, opening, closing):
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"additional_special_tokens": [opening, closing, "<|tool|>"]})
    tokenizer.save_pretrained(model)
    chat = load_chat(str(model), Sampling())
    tokens = chat.tokenizer(f"{opening}Hm{closing}<|tool|>Yes <|im_end|>")["input_ids"]
    assert chat.text(tokens) == f"{opening}Hm{closing}Yes"


def test_spaces_before_punctuation_stay(model):
    words = "<unk> <|pad|> <|im_end|> ▁if ▁x ▁!= ▁5 ▁?".split()
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.decoder = decoders.Metaspace()
    options = {"eos_token": "<|im_end|>", "clean_up_tokenization_spaces": True}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options).save_pretrained(model)
    assert load_chat(str(model), Sampling()).text([3, 4, 5, 6, 7, 2]) == "if x != 5 ?"


@pytest.mark.real
def test_a_dry_run_tells_the_tokens_of_each_language_and_where_answers_become_too_long(smollm2, seeds, capsys):
    options = {"model_name_or_path": smollm2, "lexicon": None, "target_languages": ["pt", "th", "km"], "dry_run": True}
    build_transfer_set(stub_config(seeds, "/none", **options), translator=StubTranslator())
    output = capsys.readouterr().out
    found = dict(re.findall(r"^(\w+): about ([\d.]+) tokens for one of en$", output, re.MULTILINE))
    # Of FLORES-200 with the same tokenizer
    for language, expected in (("pt", 1.79), ("th", 7.82), ("km", 11.21)):
        assert float(found[language]) == pytest.approx(expected, rel=0.3)
    assert re.search(
        r"answers of up to 512 tokens become up to \d,\d{3} in th, more than `max_length`.*to 1\d\d$", output, re.M
    )
    build_transfer_set(stub_config(seeds, "/none", **options, max_new_tokens=64), translator=StubTranslator())
    assert "become" not in capsys.readouterr().out
    assert SFTConfig.__dataclass_fields__["max_length"].default == MAX_LENGTH
