import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import DEMO, ROOT, CannedGenerator, cases, data_dir, write_json_lines
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, PeftModel, get_peft_model
from server import Server
from stub_engines import rows_of
from test_build import build_transfer_set, config
from transformers import AutoModelForCausalLM, AutoTokenizer

from sdrrl_trl import EvaluationConfig, SDRRLError, evaluate
from sdrrl_trl.engines import transformers
from sdrrl_trl.evaluation import evaluate as module
from sdrrl_trl.evaluation.evaluate import load_held_out_tasks
from sdrrl_trl.evaluation.heldout import whole_conversation
from sdrrl_trl.evaluation.models import load_lm, processes, wrap
from sdrrl_trl.evaluation.outputs import load
from sdrrl_trl.evaluation.report import ReportConfig, report


@pytest.fixture(scope="module")
def transfer_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("build")
    rows = [json.loads(line) for line in (DEMO / "seeds.jsonl").read_text(encoding="utf-8").splitlines()]
    seeds = str(write_json_lines(folder / "seeds.jsonl", rows[::11]))
    more = {"test_size": 0.25, "max_new_tokens": 8, "system_prompt": "Be kind."}
    return build_transfer_set(config(seeds, folder / "set", **more), CannedGenerator())


def make_adapter(base, folder, seed, factor=1.0, **more):
    """A random adapter; `factor` scales the head, for one that trains it."""
    torch.manual_seed(seed)
    lora = LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **more)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora)
    model.get_output_embeddings().weight.data.mul_(factor)
    model.save_pretrained(folder)
    return str(folder)


def make_tuned(base, folder):
    """An adapter, one that trains the head, too, and a full model, all tuned from a base."""
    make_adapter(base, folder / "adapter", 1)
    make_adapter(base, folder / "head", 2, 1.1, modules_to_save=["lm_head"])
    full = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder / "head").merge_and_unload()
    for part in (full, AutoTokenizer.from_pretrained(base)):
        part.save_pretrained(folder / "full")
    return {name: str(folder / name) for name in ("adapter", "head", "full")}


@pytest.fixture(scope="module")
def adapter(tiny_model, tmp_path_factory):
    return make_adapter(tiny_model, tmp_path_factory.mktemp("adapter"), 1)


@pytest.fixture(scope="module")
def options(tiny_model, adapter, transfer_set):
    """An evaluation of base and adapter on the held-out questions, which a test may change."""
    base = {"models": [f"base={tiny_model}", f"tuned={adapter}"], "tasks": ["sdrrl_heldout"]}
    base |= {"transfer_set": transfer_set, "model_args": "dtype=float32"}
    return lambda folder, **more: EvaluationConfig(**{**base, "output_dir": str(folder), **more})


@pytest.fixture(scope="module")
def evaluation(options, tmp_path_factory):
    """The results of that. No test writes there."""
    return evaluate(options(tmp_path_factory.mktemp("evaluation")))


def tasks_of(folder, *names):
    """Results of models by task, or of the only one that is named."""
    found = [load(folder / name).tasks for name in names]
    return found[0] if len(names) == 1 else found


def answers_of(tasks):
    """What must be the same if the same model is asked the same again."""
    return {task: (result.metrics, result.items) for task, result in tasks.items()}


def times_of(files):
    return {file: file.stat().st_mtime_ns for file in files}


def bits_per_byte(model, pairs, answers):
    """Of the second token lists given the first; `answers` are their texts."""
    nats = 0.0
    for context, answer in pairs:
        ids = torch.tensor([[*context, *answer]])
        with torch.no_grad():
            log_probs = model(ids).logits[0, len(context) - 1 : -1].log_softmax(-1)
        nats -= log_probs.gather(1, torch.tensor(answer)[:, None]).sum().item()
    return nats / math.log(2) / sum(len(answer.encode()) for answer in answers)


HELD_OUT = [("target", "pt"), ("source", "en"), ("translation", "pt"), ("translation", "en")]


@pytest.mark.parametrize("kind, language", HELD_OUT)
def test_held_out_answers_and_sentences_are_scored_as_by_the_models_alone(
    tiny_model, adapter, transfer_set, evaluation, kind, language
):
    tokenizer, base = AutoTokenizer.from_pretrained(tiny_model), AutoModelForCausalLM.from_pretrained(tiny_model)
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), adapter)
    rows = [row for row in rows_of(transfer_set, "test") if (row["kind"], row["answer_language"]) == (kind, language)]
    answers = [row["completion"][0]["content"] for row in rows]
    task, metric = f"sdrrl_heldout_bpb_{language}", "answer_bits_per_byte"
    if kind == "translation":  # by itself
        task, metric = f"sdrrl_heldout_text_{language}", "bits_per_byte"
        pairs = [([tokenizer.eos_token_id], tokenizer(text, add_special_tokens=False).input_ids) for text in answers]
    else:
        pairs = []
        for row, answer in zip(rows, answers, strict=True):
            prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
            # lm-eval counts the white space at the end of the prompt with the answer
            context = tokenizer(prompt.rstrip()).input_ids
            pairs.append((context, tokenizer(f"{prompt}{answer}<|im_end|>").input_ids[len(context) :]))
    scores = {}
    for name, model in (("base", base), ("tuned", tuned)):
        result = tasks_of(evaluation, name)[task]
        scores[name] = result.metrics[metric]
        assert scores[name] == pytest.approx(bits_per_byte(model, pairs, answers), abs=1e-4)
        assert len(result.items) == len(rows) >= 5
    assert abs(scores["base"] - scores["tuned"]) > 1e-3


@pytest.mark.parametrize("kind", ["adapter", "head", "full"])
def test_strength_0_scores_as_the_base_and_1_as_the_tuned_model(tiny_model, options, tmp_path, kind):
    tuned = make_tuned(tiny_model, tmp_path)[kind]
    models = {"base": tiny_model, "all": tuned} | {f"at_{strength}": f"{tuned}@{strength}" for strength in (0, 0.5, 1)}
    named = [f"{name}={path}" for name, path in models.items()]
    folder = evaluate(options(tmp_path / "evaluation", models=named, languages=["pt"], limit=3))
    found = {name: tasks_of(folder, name) for name in models}
    assert answers_of(found["at_0"]) == answers_of(found["base"])
    scores = {name: tasks["sdrrl_heldout_bpb_pt"].metrics["answer_bits_per_byte"] for name, tasks in found.items()}
    assert scores["at_1"] == pytest.approx(scores["all"], abs=1e-5 if kind == "head" else 0)  # merging rounds
    assert len({round(scores[name], 5) for name in ("at_0", "at_0.5", "at_1")}) == 3
    assert load(folder / "at_0.5").model == f"{tuned}@0.5"


def test_the_files_are_those_that_lm_eval_writes_and_strict_json(tiny_model, adapter, evaluation):
    folder = evaluation / "tuned"
    (file,) = folder.glob("results_*.json")
    content = json.loads(file.read_text(), parse_constant=pytest.fail)
    keys = {"results", "configs", "versions", "n-shot", "higher_is_better", "n-samples", "config", "date"}
    keys |= {"task_hashes", "model_source", "model_name", "chat_template_sha", "system_instruction", "lm_eval_version"}
    assert keys <= set(content) and content["model_name"] == adapter
    assert content["config"]["model_args"] == {"pretrained": tiny_model, "peft": adapter, "dtype": "float32"}
    date = file.stem.removeprefix("results_")
    assert {f.name for f in folder.glob("samples_*")} == {f"samples_{t}_{date}.jsonl" for t in content["results"]}
    rows = (folder / f"samples_sdrrl_heldout_gen_pt_{date}.jsonl").read_text().splitlines()
    row = json.loads(rows[0], parse_constant=pytest.fail)
    assert {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "doc_hash"} <= set(row)
    assert row["arguments"]["gen_args_0"]["arg_1"]["max_gen_toks"] == 8  # that of the transfer set
    assert len(rows) >= 5 and not list(folder.glob(".unfinished*"))


def test_each_model_is_asked_with_its_own_chat_template(tiny_model, adapter, options, tmp_path):
    shouting = shutil.copytree(adapter, tmp_path / "shouting")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = tokenizer.chat_template.replace("m.content", "m.content | upper")
    tokenizer.save_pretrained(shouting)
    models = [f"base={tiny_model}", f"same={tiny_model}", f"tuned={adapter}", f"shouting={shouting}"]
    found = evaluate(options(tmp_path / "evaluation", models=models))
    base, same, tuned, other = tasks_of(found, "base", "same", "tuned", "shouting")
    assert answers_of(base) == answers_of(same)
    for task in base:
        if "_text_" in task:  # without a prompt
            continue
        prompts = [[item.prompt for item in tasks[task].items] for tasks in (base, tuned, other)]
        assert prompts[0] == prompts[1] != prompts[2] and all("system\nBe kind." in prompt for prompt in prompts[0])
        assert base[task].items != tuned[task].items  # the answers are its own


def test_a_chunk_of_tasks_ends_where_it_has_many_items():
    sizes = {"a": 200, "b": 300, "c": 13, "large": 5000, "d": 1}
    tasks = {name: SimpleNamespace(eval_docs=range(n)) for name, n in sizes.items()}
    assert module.chunks(tasks, limit=None) == [["a", "b"], ["c"], ["large", "d"]]
    assert module.chunks(tasks, limit=100) == [["a", "b", "c", "large", "d"]]


def test_a_task_with_fewer_items_than_processes_is_named():
    task = SimpleNamespace(eval_docs=[1, 2, 3], get_config=lambda key: 0)
    with pytest.raises(SDRRLError, match="small has 3 items for 4 processes"):
        module.prepare_tasks({"small": task}, None, 4)


def arguments(config):
    """Of the command, for a configuration."""
    given = ["evaluate", "--models", *config.models, "--tasks", *config.tasks, "--output_dir", config.output_dir]
    return [*given, "--transfer_set", str(config.transfer_set), "--model_args", config.model_args]


def test_a_killed_evaluation_goes_on_and_keeps_what_is_done(options, evaluation, tmp_path):
    """`kill -9` at each of several moments: what was written stays, and the end is that of a run without kills."""
    script = "import sys; from sdrrl_trl.evaluation import evaluate as m; m.CHUNK_ITEMS = 6; "
    script += "from sdrrl_trl.cli import main; main(sys.argv[1:])"
    whole = options(tmp_path / "killed")
    command = [sys.executable, "-c", script, *arguments(whole)]
    for n in (1, 5):  # results files, of eight
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while process.poll() is None and len(list(tmp_path.glob("killed/*/results_*"))) < n:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        before = times_of(tmp_path.glob("killed/*/[rs]*_*"))
    evaluate(whole)
    assert not list(tmp_path.glob("killed/*/.unfinished*"))
    assert before and before.items() <= times_of(tmp_path.glob("killed/*/*_*")).items()
    for name in ("base", "tuned"):
        killed, expected = tasks_of(tmp_path / "killed", name), tasks_of(evaluation, name)
        assert set(killed) == set(expected)
        for task in killed:
            assert killed[task].metrics == pytest.approx(expected[task].metrics)


def test_a_damaged_result_is_made_again_alone(options, evaluation, tmp_path):
    folder = evaluate(options(shutil.copytree(evaluation, tmp_path / "evaluation")))
    damaged = next(folder.glob("tuned/samples_sdrrl_heldout_gen_pt_*"))
    damaged.write_text(damaged.read_text()[:-100])
    with pytest.raises(SDRRLError, match="samples_sdrrl_heldout_gen_pt.* is damaged.*sdrrl evaluate"):
        load(folder / "tuned")
    before = times_of(file for file in folder.rglob("*_*") if file != damaged)
    evaluate(options(folder))
    assert before.items() <= times_of(folder.rglob("*_*")).items()
    assert answers_of(tasks_of(folder, "tuned")) == answers_of(tasks_of(evaluation, "tuned"))


def test_a_model_without_a_chat_template_is_asked_without_one(tiny_model, options, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "plain")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = None
    (folder / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(folder)
    plain = options(tmp_path / "evaluation", models=[f"base={folder}"], apply_chat_template=False)
    result = tasks_of(evaluate(plain), "base")["sdrrl_heldout_bpb_pt"]
    assert result.signature["chat_template"] == "none"
    assert not any("<|im_start|>" in item.prompt for item in result.items)


@pytest.mark.parametrize("template", [True, False])
def test_a_held_out_question_is_asked_with_all_its_messages(tiny_model, options, tmp_path, template):
    texts = ["You are pilot number {}.", "Where is gate {}?", "Which gate do you mean?", "That beside shop {}."]
    turns = list(zip(("system", "user", "assistant", "user"), texts, strict=True))
    rows = [{"messages": [{"role": role, "content": text.format(i)} for role, text in turns]} for i in range(24)]
    file = str(write_json_lines(tmp_path / "turns.jsonl", rows))
    build = config(file, tmp_path / "s", test_size=0.25, system_prompt="Be kind.")
    more = {"transfer_set": build_transfer_set(build, CannedGenerator()), "apply_chat_template": template}
    tasks = tasks_of(evaluate(options(tmp_path / "evaluation", models=[f"base={tiny_model}"], **more)), "base")
    items = tasks["sdrrl_heldout_gen_en"].items + tasks["sdrrl_heldout_bpb_en"].items
    assert len(items) == 12
    for item in items:
        number = int(item.prompt.partition("pilot number ")[2].partition(".")[0])
        assert all(message["content"] in item.prompt for message in rows[number]["messages"])
        assert "Be kind" not in item.prompt
        assert ("<|im_start|>assistant\nWhich gate do you mean?<|im_end|>" in item.prompt) == template


@pytest.mark.parametrize("answer", ["It is", "end"])  # which is in `<|im_end|>`, too
@pytest.mark.parametrize("truncated, end", [(False, "<|im_end|>"), (True, "")])
def test_the_end_of_an_answer_counts_unless_it_was_cut_off(tiny_model, answer, truncated, end):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    lm = HFLM(pretrained=AutoModelForCausalLM.from_pretrained(tiny_model), tokenizer=tokenizer)
    messages = [{"role": "user", "content": "Why?"}]
    doc = {"messages": messages, "answer": answer, "said": answer, "truncated": truncated}
    assert whole_conversation(doc, True, lm.apply_chat_template).endswith("Why?<|im_end|>\n<|im_start|>assistant\n")
    assert doc["said"] == answer + end


def test_a_model_can_be_added_and_results_of_another_or_of_other_options_are_not_mixed_in(
    tiny_model, options, evaluation, tmp_path
):
    folder = evaluate(options(tmp_path / "evaluation", models=[f"base={tiny_model}"], limit=2))
    before = times_of(folder.glob("base/*_*"))
    evaluate(options(folder, batch_size=2, limit=2))
    assert before and before == times_of(folder.glob("base/*_*"))
    assert set(tasks_of(folder, "base")) == set(tasks_of(folder, "tuned"))
    for other, named in (({"limit": 3}, "limit: was 2, is 3"), ({"models": [f"tuned={tiny_model}"]}, "models: was")):
        with pytest.raises(SDRRLError, match=named):
            evaluate(options(folder, **{"limit": 2, **other}))


def test_results_on_other_data_of_a_benchmark_are_not_mixed_in(benchmarks, options, tmp_path, monkeypatch):
    config = partial(options, tmp_path / "evaluation", tasks=["sdrrl_pku_saferlhf"], limit=1)
    evaluate(config())
    folder = shutil.copytree(data_dir() / "pku_saferlhf", tmp_path / "data" / "pku_saferlhf")
    (file,) = folder.glob("*.jsonl")
    monkeypatch.setenv("SDRRL_DATA_DIR", str(folder.parent))
    with pytest.raises(SDRRLError, match="system_prompt: was .Be kind.., is None"):
        evaluate(config(transfer_set=None))
    evaluate(config())  # the same data in another folder
    file.chmod(0o644)
    file.write_text(file.read_text().replace("bully", "neighbour"))
    with pytest.raises(SDRRLError, match="data: was"):
        evaluate(config(tasks=["sdrrl_pku_saferlhf", "sdrrl_heldout"]))


@pytest.mark.parametrize("grown", [2, 30, -20])
def test_an_adapter_with_another_vocabulary_than_its_base_is_evaluated(tiny_model, tmp_path, grown):
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_model), AutoModelForCausalLM.from_pretrained(tiny_model)
    tokenizer.add_tokens(["<lang_th>", "<lang_km>"][: max(grown, 0)])
    model.resize_token_embeddings(model.config.vocab_size + grown)
    lora = LoraConfig(init_lora_weights=False, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    tuned = get_peft_model(model, lora)
    for part in (tuned, tokenizer):
        part.save_pretrained(tmp_path)
    ids = torch.tensor([tokenizer("Where is the sky?").input_ids])
    lm = load_lm(str(tmp_path), "hf", {"dtype": "float32"}, 4)
    assert torch.equal(lm.model(ids).logits, tuned(ids).logits)


def test_answers_of_an_adapter_do_not_copy_the_head_for_each_row(adapter):
    model = load_lm(adapter, "hf", {"dtype": "bfloat16"}, 4).model
    head = model.get_output_embeddings().weight
    with torch.profiler.profile(profile_memory=True) as seen:
        model.generate(torch.ones(64, 4, dtype=torch.long), max_new_tokens=2, do_sample=False)
    assert max(event.cpu_memory_usage for event in seen.events()) < 32 * head.numel() * head.element_size()


def test_an_adapter_with_a_head_of_its_own_is_evaluated_on_a_base_that_ties_it(tiny_model, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(tiny_model, tie_word_embeddings=True)
    for part in (base, AutoTokenizer.from_pretrained(tiny_model)):
        part.save_pretrained(tmp_path / "base")
    adapter = make_adapter(tmp_path / "base", tmp_path / "head", 2, 1.5, modules_to_save=["lm_head"])
    ids = torch.tensor([[5, 6, 7]])
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), adapter)
    assert torch.equal(load_lm(adapter, "hf", {"dtype": "float32"}, 4).model(ids).logits, tuned(ids).logits)


def test_code_that_a_model_brings_is_neither_run_nor_asked_about(options, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda question: pytest.fail(question))
    (tmp_path / "config.json").write_text('{"model_type": "odd", "auto_map": {"AutoConfig": "evil.Config"}}')
    (tmp_path / "evil.py").write_text("raise SystemExit('I was run')")
    with pytest.raises(SDRRLError, match="brings code of its own, which is never run"):
        evaluate(options(tmp_path / "evaluation", models=[f"base={tmp_path}"]))


def test_arguments_of_template_and_generation_take_effect_and_are_recorded(tiny_model, options, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "thinker")
    template = model / "chat_template.jinja"
    thought = "{% if enable_thinking is false %}<think>\n\n</think>{% endif %}{{ effort }}{% endif %}"
    template.write_text(template.read_text().removesuffix("{% endif %}") + thought)
    asked = 'dtype=float32,enable_thinking=False,chat_template_args={"effort": "low"}'
    more = {"models": [f"base={model}"], "model_args": asked, "languages": ["pt"], "limit": 2}
    sampling = "max_gen_toks=3,until=x,do_sample=true,temperature=2,top_p=1,min_p=1,top_k=9,repetition_penalty=2"
    sampled = evaluate(options(tmp_path / "s", **more, gen_kwargs=f"{sampling},num_beams=2,no_repeat_ngram_size=2"))
    assert "'temperature':2.0" in tasks_of(sampled, "base")["sdrrl_heldout_gen_pt"].signature["generation"]
    folder = evaluate(options(tmp_path / "e", **more, gen_kwargs="max_gen_toks=3"))
    tasks = tasks_of(folder, "base")
    for form in ("gen", "bpb"):
        items = tasks[f"sdrrl_heldout_{form}_pt"].items
        assert all(item.prompt.endswith("<think>\n\n</think>low") for item in items)
    assert "'max_gen_toks':3" in tasks["sdrrl_heldout_gen_pt"].signature["generation"]  # which the report compares
    assert json.loads((folder / "options.json").read_text())["options"]["model_args"] == asked
    with pytest.raises(SDRRLError, match="gen_kwargs: was 'max_gen_toks=3', is None"):
        evaluate(options(folder, **more))


def test_an_adapter_whose_base_is_gone_is_told_where_it_is_named(options, tmp_path, adapter):
    moved = shutil.copytree(adapter, tmp_path / "moved")
    config = json.loads((moved / "adapter_config.json").read_text()) | {"base_model_name_or_path": "/home/me/gone"}
    (moved / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(SDRRLError, match="'/home/me/gone': no such folder.*adapter_config.json"):
        evaluate(options(tmp_path / "e", models=[f"tuned={moved}"]))


def test_an_answer_ends_where_the_template_ends_a_turn(tiny_model):
    model, tokenizer = transformers.load_model(str(tiny_model))
    model.model.norm.weight.data.zero_()  # all that it says is token 0, <|pad|>
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ m.content }}<|im_end|>", "{{ m.content }}<|pad|>")
    question = tokenizer("Why?", return_tensors="pt")
    answer = wrap(model, tokenizer, processes()).model.generate(**question, max_new_tokens=8)
    assert answer.shape[1] == question["input_ids"].shape[1] + 1


def test_a_model_whose_logits_are_nan_has_no_scores(tiny_model, options, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.model.layers[0].mlp.up_proj.weight.data.fill_(math.nan)
    for part in (model, AutoTokenizer.from_pretrained(tiny_model)):
        part.save_pretrained(tmp_path / "broken")
    models = [f"base={tiny_model}", f"broken={tmp_path / 'broken'}"]
    with pytest.raises(SDRRLError, match="'broken' are NaN on .*sdrrl_heldout_gen_pt"):
        evaluate(options(tmp_path / "evaluation", models=models))
    assert list((tmp_path / "evaluation").glob("base/results_*.json"))
    assert not list((tmp_path / "evaluation").glob("broken/*"))


@pytest.mark.parametrize("more, named", cases("evaluation"))
def test_options_that_cannot_work_are_named(options, tmp_path, more, named):
    with pytest.raises(SDRRLError, match=named):
        evaluate(options(tmp_path, **more))


def test_a_form_of_held_out_tasks_can_be_named_alone(options, tmp_path):
    found = load_held_out_tasks(options(tmp_path, tasks=["sdrrl_heldout_text", "sdrrl_heldout_bpb_pt"]))
    assert sorted(found) == ["sdrrl_heldout_bpb_pt", "sdrrl_heldout_text_en", "sdrrl_heldout_text_pt"]
    with pytest.raises(SDRRLError, match="Unknown task 'sdrrl_heldout_txt'.*sdrrl_heldout_text_en"):
        load_held_out_tasks(options(tmp_path, tasks=["sdrrl_heldout_txt"]))
    with pytest.raises(SDRRLError, match="Unknown task 'sdrrl_heldout' in th"):
        load_held_out_tasks(options(tmp_path, languages=["th"]))


def test_held_out_questions_are_answered_by_a_chat_server(options, tmp_path):
    thought = {"role": "assistant", "content": None, "reasoning": "Hm."}  # and no token left for an answer
    replies = [{"role": "assistant", "content": "Lisboa"}, thought]
    with Server(lambda number, body: (200, {}, {"choices": [{"index": 0, "message": replies[number - 1]}]})) as server:
        arguments = {"backend": "local-chat-completions", "model_args": f"base_url={server.url}/chat/completions"}
        more = {"models": ["served=m"], "tasks": ["sdrrl_heldout_gen_pt"], "limit": 2, "gen_kwargs": "max_gen_toks=64"}
        tasks = tasks_of(evaluate(options(tmp_path, **more, **arguments)), "served")
        with pytest.raises(SDRRLError, match="tells no likelihoods, which sdrrl_heldout_bpb_pt"):
            evaluate(options(tmp_path, **more | {"tasks": ["sdrrl_heldout_bpb_pt"]}, **arguments))
        (_, _, asked, _), *_ = server.requests
    assert sorted(item.response for item in tasks["sdrrl_heldout_gen_pt"].items) == ["", "Lisboa"]
    assert [message["role"] for message in asked["messages"]] == ["system", "user"] and asked["max_tokens"] == 64


def test_the_key_of_a_server_is_sent_but_never_shown(options, tmp_path, monkeypatch, capfd):
    """Not by lm-eval or its libraries either, here of a redirection to an address that holds it."""
    with Server(lambda *_: (302, {"Location": "/v1/sk-secret/of-another"}, "")) as server:
        arguments = {"backend": "local-chat-completions", "model_args": f"base_url={server.url}/chat/completions"}
        arguments |= {"models": ["served=m"], "tasks": ["sdrrl_heldout_gen_pt"], "limit": 1}
        monkeypatch.setenv("OPENAI_API_KEY", "sk-s\necret")
        with pytest.raises(SDRRLError, match="OPENAI_API_KEY has characters"):
            evaluate(options(tmp_path, **arguments))
        monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\n")
        monkeypatch.setenv("SERVICE_TOKEN", "of-another")
        with pytest.raises(SDRRLError, match=r"failed at the model 'served'.*HTTPError.*/v1/\*\*\*/\*\*\*\)"):
            evaluate(options(tmp_path, **arguments))
        assert {headers["Authorization"] for _, headers, *_ in server.requests} == {"Bearer sk-secret"}
    output = capfd.readouterr()
    assert not any(key in output.out + output.err for key in ("sk-secret", "of-another"))


def test_the_report_of_an_evaluation_holds_every_comparison(transfer_set, evaluation, tmp_path):
    names = [f"{name}={evaluation / name}" for name in ("base", "tuned")]
    path = report(ReportConfig(names, str(tmp_path / "report"), str(transfer_set)), {"evaluate": 12.0})
    content = json.loads(path.with_suffix(".json").read_text())
    found = {(row["language"], row["metric"]) for row in content["rows"]}
    metrics = ("chrf++", "in_language", "answer_bits_per_byte", "bits_per_byte")
    assert found == {(language, metric) for language in ("pt", "en") for metric in metrics}
    card = (tmp_path / "report" / "README.md").read_text()
    assert "| evaluate | 12 |" in path.read_text() and "## Transfer set" in card


def test_two_processes_score_as_one_does(options, evaluation, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "sdrrl_trl", *arguments(options(tmp_path / "two"))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count(f"Next: sdrrl report base={tmp_path}/two/base tuned={tmp_path}/two/tuned") == 1
    for name in ("base", "tuned"):
        one, two = tasks_of(evaluation, name), tasks_of(tmp_path / "two", name)
        for task in one:
            said = [[(item.doc_id, item.response) for item in tasks[task].items] for tasks in (one, two)]
            # lm-eval batches sentences as they come, so that their neighbours change the last digits
            assert said[0] == said[1] or "_text_" in task
            assert two[task].metrics == pytest.approx(one[task].metrics, abs=1e-6)
