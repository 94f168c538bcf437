import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import CannedGenerator, data_dir, write_json_lines
from lm_eval.api.task import Task
from peft import LoraConfig, get_peft_model
from test_build import build_transfer_set, config
from transformers import AutoModelForCausalLM, AutoTokenizer

from sdrrl_trl import EvaluationConfig, SDRRLError, evaluate
from sdrrl_trl.evaluation import run_tasks
from sdrrl_trl.evaluation.evaluate import load_evaluation, load_results
from sdrrl_trl.evaluation.models import base_of
from sdrrl_trl.evaluation.report import ReportConfig, report
from sdrrl_trl.evaluation.run_tasks import chunks
from sdrrl_trl.evaluation.suite import language_of
from sdrrl_trl.evaluation.tasks import tasks_dir
from sdrrl_trl.utils import write_json


@pytest.fixture
def transfer_set(seeds, tmp_path):
    return build_transfer_set(config(seeds, tmp_path / "set", test_size=0.25), CannedGenerator())


@pytest.fixture
def adapter(tiny_model, tmp_path):
    torch.manual_seed(1)
    lora = LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), lora)
    model.save_pretrained(tmp_path / "adapter")
    return str(tmp_path / "adapter")


def options(tiny_model, adapter, transfer_set, folder, **more):
    models = [f"base={tiny_model}", f"tuned={adapter}"]
    base = {"models": models, "tasks": ["sdrrl_heldout"], "transfer_set": transfer_set, "max_gen_toks": 8}
    return EvaluationConfig(**{**base, "output_dir": str(folder), "dtype": "float32", **more})


def bits_per_byte(model, tokenizer, rows):
    nats, n_bytes = 0.0, 0
    for row in rows:
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        answer = row["completion"][0]["content"]
        # lm-eval counts the white space at the end of the prompt with the answer
        context, whole = (tokenizer(text)["input_ids"] for text in (prompt.rstrip(), prompt + answer))
        with torch.no_grad():
            log_probs = model(torch.tensor([whole])).logits[0, :-1].log_softmax(-1)
        nats -= log_probs.gather(-1, torch.tensor(whole[1:])[:, None])[len(context) - 1 :].sum().item()
        n_bytes += len(answer.encode())
    return nats / n_bytes / math.log(2)


def test_base_and_adapter_are_scored_as_when_loaded_alone(tiny_model, adapter, transfer_set, tmp_path):
    from datasets import load_dataset
    from peft import PeftModel

    results = load_results(evaluate(options(tiny_model, adapter, transfer_set, tmp_path / "evaluation")))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), adapter)
    test = load_dataset(str(transfer_set), split="test")
    for language, kind in (("pt", "target"), ("en", "source")):
        rows = test.filter(lambda row, kind=kind: row["kind"] == kind)
        scores = {}
        for name, model in (("base", base), ("tuned", tuned)):
            result = results[name][f"sdrrl_heldout_bpb_{language}"]
            scores[name] = result["metrics"]["bits_per_byte"]
            assert scores[name] == pytest.approx(bits_per_byte(model, tokenizer, rows), abs=1e-4)
            assert len(result["samples"]) == len(rows) == 6
        assert abs(scores["base"] - scores["tuned"]) > 1e-3


def test_several_adapters_on_one_base_do_not_add_up(tiny_model, adapter, transfer_set, tmp_path):
    models = [f"base={tiny_model}", f"a={adapter}", f"b={adapter}", f"c={adapter}"]
    folder = evaluate(options(tiny_model, adapter, transfer_set, tmp_path / "evaluation", models=models))
    scores = {name: tasks["sdrrl_heldout_bpb_pt"]["metrics"] for name, tasks in load_results(folder).items()}
    assert scores["a"] == scores["b"] == scores["c"] != scores["base"]


def test_prompts_are_made_once_for_models_with_the_same_chat_template_and_anew_for_another(
    tiny_model, adapter, transfer_set, tmp_path, monkeypatch
):
    made, make = [], Task.build_all_requests
    monkeypatch.setattr(
        Task, "build_all_requests", lambda task, **how: made.append(task.task_name) or make(task, **how)
    )
    shouting = shutil.copytree(adapter, tmp_path / "shouting")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = tokenizer.chat_template.replace("m.content", "m.content | upper")
    tokenizer.save_pretrained(shouting)
    models = [f"base={tiny_model}", f"same={tiny_model}", f"tuned={adapter}", f"shouting={shouting}"]
    config = options(tiny_model, adapter, transfer_set, tmp_path / "evaluation", models=models)
    results = load_results(evaluate(config))
    tasks = list(results["base"])
    assert sorted(made) == sorted(2 * tasks)
    assert results["base"] == results["same"]
    for task in tasks:
        prompts = {model: [sample["prompt"] for sample in results[model][task]["samples"]] for model in results}
        assert prompts["base"] == prompts["tuned"] != prompts["shouting"]
        assert results["base"][task]["samples"] != results["tuned"][task]["samples"]  # the answers are its own


def test_a_chunk_of_tasks_has_few_items_and_a_large_task_is_alone(monkeypatch):
    class FakeTask:
        def __init__(self, n):
            self.eval_docs = range(n)

    tasks = {name: FakeTask(n) for name, n in {"a": 200, "b": 300, "c": 13, "large": 5000, "d": 1}.items()}
    assert chunks(list(tasks), tasks, limit=None) == [["a", "b"], ["c"], ["large"], ["d"]]
    assert chunks(["b", "large"], tasks, limit=None) == [["b"], ["large"]]
    assert chunks(list(tasks), tasks, limit=100) == [["a", "b", "c", "large", "d"]]


def test_a_task_with_fewer_items_than_processes_is_named_before_any_model_is_loaded(tmp_path, monkeypatch):
    state = SimpleNamespace(num_processes=4, wait_for_everyone=lambda: None)
    monkeypatch.setattr(run_tasks, "processes", lambda: state)
    task = SimpleNamespace(eval_docs=[1, 2, 3], get_config=lambda key: 0)
    config = EvaluationConfig(["base=nowhere"], ["small"], str(tmp_path))
    with pytest.raises(SDRRLError, match="small has 3 items for 4 processes"):
        run_tasks.run_tasks(config, {"small": task}, None)


def test_what_was_evaluated_before_a_kill_is_kept_chunk_by_chunk(
    tiny_model, adapter, transfer_set, tmp_path, monkeypatch
):
    monkeypatch.setattr(run_tasks, "CHUNK_ITEMS", 12)  # two tasks of six items
    written = []

    def write_or_fail(path, result):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        write_json(path, result)

    monkeypatch.setattr(run_tasks, "write_json", write_or_fail)
    config = options(tiny_model, adapter, transfer_set, tmp_path / "evaluation")
    with pytest.raises(KeyboardInterrupt):
        evaluate(config)
    times = {path: path.stat().st_mtime_ns for path in written}
    monkeypatch.undo()
    results = load_results(evaluate(config))
    assert len(results["base"]) == len(results["tuned"]) == 4
    assert {path: path.stat().st_mtime_ns for path in written} == times


def test_a_model_without_a_chat_template_is_asked_without_one(tiny_model, transfer_set, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "plain")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = None
    (folder / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(folder)
    config = options(str(folder), str(folder), transfer_set, tmp_path / "evaluation", apply_chat_template=False)
    result = load_results(evaluate(config))["base"]["sdrrl_heldout_bpb_pt"]
    assert result["signature"]["chat_template"] is None
    assert not any("<|im_start|>" in sample["prompt"] for sample in result["samples"])


def test_an_adapter_with_a_head_of_its_own_on_a_tied_model_is_evaluated(tiny_model, transfer_set, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "tied")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "tied")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "tied")
    lora = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    get_peft_model(model, lora).save_pretrained(tmp_path / "adapter")
    config = options(str(tmp_path / "tied"), str(tmp_path / "adapter"), transfer_set, tmp_path / "evaluation")
    scores = {name: tasks["sdrrl_heldout_bpb_pt"]["metrics"] for name, tasks in load_results(evaluate(config)).items()}
    assert scores["tuned"] == pytest.approx(scores["base"])


def test_the_system_prompt_of_the_transfer_set_is_part_of_the_question(tiny_model, adapter, seeds, tmp_path):
    transfer_set = build_transfer_set(config(seeds, tmp_path / "s", system_prompt="Be kind."), CannedGenerator())
    folder = evaluate(options(tiny_model, adapter, transfer_set, tmp_path / "evaluation"))
    samples = load_results(folder)["base"]["sdrrl_heldout_gen_pt"]["samples"]
    assert all("system\nBe kind." in sample["prompt"] for sample in samples)


@pytest.mark.parametrize("template", [True, False])
def test_a_held_out_question_is_asked_with_all_its_messages(tiny_model, adapter, tmp_path, template):
    rows = [
        {
            "messages": [
                {"role": "system", "content": f"You are pilot number {i}."},
                {"role": "user", "content": f"Where is gate {i}?"},
                {"role": "assistant", "content": "Which gate do you mean?"},
                {"role": "user", "content": f"The one beside shop number {i}, please."},
            ]
        }
        for i in range(24)
    ]
    file = str(write_json_lines(tmp_path / "turns.jsonl", rows))
    transfer_set = build_transfer_set(
        config(file, tmp_path / "s", test_size=0.25, system_prompt="Be kind."), CannedGenerator()
    )
    more = {"apply_chat_template": template}
    results = load_results(evaluate(options(tiny_model, adapter, transfer_set, tmp_path / "evaluation", **more)))
    samples = results["base"]["sdrrl_heldout_gen_en"]["samples"] + results["base"]["sdrrl_heldout_bpb_en"]["samples"]
    assert len(samples) == 12
    for sample in samples:
        number = int(sample["prompt"].partition("pilot number ")[2].partition(".")[0])
        assert all(message["content"] in sample["prompt"] for message in rows[number]["messages"])
        assert "Be kind" not in sample["prompt"]
        assert ("<|im_start|>assistant\nWhich gate do you mean?<|im_end|>" in sample["prompt"]) == template


@pytest.mark.parametrize(
    "task, language",
    [
        ("sdrrl_heldout_gen_pt", "pt"),
        ("sdrrl_flores_eng_Latn-por_Latn", "pt"),
        ("sdrrl_flores_por_Latn-eng_Latn", "en"),
        ("hellaswag", None),
        ("agieval_lsat_ar", None),  # analytical reasoning
    ],
)
def test_the_language_of_a_task_is_that_of_its_answers(task, language):
    assert language_of(task) == language


def test_an_interrupted_evaluation_goes_on_and_keeps_what_is_done(tiny_model, adapter, transfer_set, tmp_path):
    folder = evaluate(options(tiny_model, adapter, transfer_set, tmp_path / "evaluation"))
    kept, lost = folder / "base" / "sdrrl_heldout_gen_pt.json", folder / "tuned" / "sdrrl_heldout_bpb_pt.json"
    before, expected = kept.stat().st_mtime_ns, json.loads(lost.read_text())
    lost.unlink()
    (folder / "manifest.json").unlink()
    with pytest.raises(SDRRLError, match="no finished evaluation"):
        load_results(folder)
    evaluate(options(tiny_model, adapter, transfer_set, folder))
    assert kept.stat().st_mtime_ns == before
    assert json.loads(lost.read_text())["metrics"] == pytest.approx(expected["metrics"])


def test_results_of_another_model_are_not_mixed_in(tiny_model, adapter, transfer_set, tmp_path):
    evaluate(options(tiny_model, adapter, transfer_set, tmp_path / "evaluation"))
    with pytest.raises(SDRRLError, match="models"):
        evaluate(options(tiny_model, tiny_model, transfer_set, tmp_path / "evaluation"))


def test_a_model_can_be_added_to_an_evaluation(tiny_model, adapter, transfer_set, tmp_path):
    folder = evaluate(
        options(tiny_model, adapter, transfer_set, tmp_path / "evaluation", models=[f"base={tiny_model}"])
    )
    before = {file: file.stat().st_mtime_ns for file in folder.glob("base/*.json")}
    evaluate(options(tiny_model, adapter, transfer_set, folder, batch_size=2))
    assert before and before == {file: file.stat().st_mtime_ns for file in folder.glob("base/*.json")}
    assert set(load_results(folder)) == {"base", "tuned"}


def test_a_damaged_result_is_named_and_made_again(tiny_model, adapter, transfer_set, tmp_path):
    folder = evaluate(options(tiny_model, adapter, transfer_set, tmp_path / "evaluation"))
    whole = load_results(folder)
    (folder / "tuned" / "sdrrl_heldout_gen_pt.json").write_text('{"metrics": ')
    with pytest.raises(SDRRLError, match="tuned/sdrrl_heldout_gen_pt.json.*command again"):
        load_results(folder)
    evaluate(options(tiny_model, adapter, transfer_set, folder))
    assert load_results(folder) == whole


@pytest.mark.parametrize("kind", [{"init_lora_weights": "pissa"}, {"modules_to_save": ["lm_head"]}])
def test_an_adapter_that_changes_its_base_does_not_change_the_next_one(
    tiny_model, adapter, transfer_set, tmp_path, kind
):
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **kind)
    first = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), lora)
    with torch.no_grad():  # something was trained
        for parameter in first.parameters():
            parameter += 0.1 * parameter.requires_grad
    first.save_pretrained(tmp_path / "first")
    models = [f"first={tmp_path / 'first'}", f"tuned={adapter}"]
    alone = load_results(evaluate(options(tiny_model, adapter, transfer_set, tmp_path / "alone", models=models[1:])))
    both = load_results(evaluate(options(tiny_model, adapter, transfer_set, tmp_path / "both", models=models)))
    assert both["tuned"] == alone["tuned"] != both["first"]


def test_a_model_whose_logits_are_nan_has_no_scores(tiny_model, adapter, transfer_set, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.model.layers[0].mlp.up_proj.weight.data.fill_(math.nan)
    for part in (model, AutoTokenizer.from_pretrained(tiny_model)):
        part.save_pretrained(tmp_path / "broken")
    models = [f"base={tiny_model}", f"broken={tmp_path / 'broken'}"]
    with pytest.raises(SDRRLError, match="'broken' are NaN on .*sdrrl_heldout_gen_pt"):
        evaluate(options(tiny_model, adapter, transfer_set, tmp_path / "evaluation", models=models))
    assert (tmp_path / "evaluation" / "base" / "sdrrl_heldout_gen_pt.json").exists()
    assert not list((tmp_path / "evaluation").glob("broken/*.json"))


def test_the_source_language_is_that_of_the_transfer_set_or_given(tiny_model, adapter, transfer_set, tmp_path):
    for given, known in ((None, "en"), ("pt", "pt")):
        folder = tmp_path / str(given)
        evaluate(options(tiny_model, adapter, transfer_set, folder, source_language=given, limit=2))
        assert load_evaluation(folder)["source_language"] == known
    with pytest.raises(SDRRLError, match="xx"):
        options(tiny_model, adapter, transfer_set, tmp_path, source_language="xx")


def test_one_base_has_one_name_however_its_path_is_written(tiny_model, monkeypatch):
    monkeypatch.chdir(Path(tiny_model).parent)
    assert base_of(str(tiny_model)) == base_of(Path(tiny_model).name)
    assert base_of("org/model") == "org/model"


def test_the_report_holds_every_comparison_with_interval_and_n(tiny_model, adapter, transfer_set, tmp_path):
    folder = evaluate(options(tiny_model, adapter, transfer_set, tmp_path / "evaluation"))
    path = report(ReportConfig(str(folder), str(tmp_path / "report"), timings=[str(folder / "timings.json")]))
    content = json.loads((tmp_path / "report" / "report.json").read_text())
    found = {(row["language"], row["metric"]) for row in content["rows"]}
    assert found == {(lang, m) for lang in ("pt", "en") for m in ("chrf++", "in_language", "bits_per_byte")}
    text = path.read_text()
    for row in content["rows"]:
        c = row["comparison"]
        assert c["low"] <= c["delta"] <= c["high"] and c["n"] == 6
        assert f"{c['delta']:+.3f}" in text or f"{c['delta']:+.1f}" in text
    assert "| evaluate |" in text and "Portuguese" in text
    assert (tmp_path / "report" / "report.png").read_bytes().startswith(b"\x89PNG")


def test_models_that_were_asked_different_items_are_not_compared(tiny_model, adapter, transfer_set, tmp_path):
    folder = evaluate(options(tiny_model, adapter, transfer_set, tmp_path / "evaluation"))
    file = folder / "tuned" / "sdrrl_heldout_bpb_pt.json"
    result = json.loads(file.read_text())
    result["samples"].pop()
    file.write_text(json.dumps(result))
    with pytest.raises(SDRRLError, match="sdrrl_heldout_bpb_pt: base and tuned were not asked the same items"):
        report(ReportConfig(str(folder), str(tmp_path / "report")))


@pytest.mark.parametrize(
    "more, named",
    [
        ({"tasks": ["sdrrl_nothing"]}, "Unknown task 'sdrrl_nothing'"),
        ({"models": ["base"]}, "name=path"),
        ({"models": ["../x=gpt2"]}, "name=path"),
        ({"models": ["a=gpt2", "a=gpt2"]}, "twice"),
        ({"models": ["a=./nowhere"]}, "no model in ./nowhere"),
        ({"limit": 0}, "limit"),
    ],
)
def test_bad_options_are_refused_before_a_model_is_loaded(tiny_model, adapter, transfer_set, tmp_path, more, named):
    with pytest.raises(SDRRLError, match=named):
        evaluate(options(tiny_model, adapter, transfer_set, tmp_path / "evaluation", **more))
    assert not (tmp_path / "evaluation").exists()


def test_held_out_questions_need_a_transfer_set(tiny_model, tmp_path):
    with pytest.raises(SDRRLError, match="needs `transfer_set`"):
        EvaluationConfig([f"base={tiny_model}"], ["sdrrl_heldout"], str(tmp_path))
    with pytest.raises(SDRRLError, match="no finished transfer set"):
        evaluate(EvaluationConfig([f"base={tiny_model}"], ["sdrrl_heldout"], str(tmp_path / "e"), str(tmp_path)))


def test_benchmark_data_that_are_missing_are_named_with_what_to_do(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("SDRRL_DATA_DIR", str(tmp_path))
    task = "sdrrl_flores_eng_Latn-por_Latn"
    with pytest.raises(SDRRLError, match="SDRRL_DATA_DIR"):
        evaluate(EvaluationConfig([f"base={tiny_model}"], [task], str(tmp_path / "evaluation")))


@pytest.mark.skipif(data_dir() is None, reason="no benchmark data")
def test_flores_runs_on_the_real_data(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("SDRRL_DATA_DIR", str(data_dir()))
    task = "sdrrl_flores_eng_Latn-por_Latn"
    folder = evaluate(EvaluationConfig([f"base={tiny_model}"], [task], str(tmp_path / "evaluation"), limit=3))
    samples = load_results(folder)["base"][task]["samples"]
    assert len(samples) == 3 and "into Portuguese" in samples[0]["prompt"]
    lines = (data_dir() / "flores200" / "devtest" / "por_Latn.devtest").read_text(encoding="utf-8").splitlines()
    assert [sample["target"] for sample in samples] == lines[:3]


def test_the_folder_of_tasks_holds_the_tasks():
    assert (tasks_dir() / "flores200" / "utils.py").exists()
