"""The real model, the real translator."""

import json
import re

import pytest
import yaml
from conftest import DEMO, write_json_lines

from sdrrl_trl.run import demo, run


@pytest.mark.real
def test_the_chain_runs_on_the_real_model(smollm2, tmp_path):
    questions = [
        "What is the capital of France? Answer in one short sentence.",
        "Name one animal that can fly.",
        "Why do we sleep? Answer in one sentence.",
        "Write a slogan for a bakery.",
        "What color is the sky? Answer in one sentence.",
        "Is the moon bigger than the sun? Answer in one sentence.",
        "Name a fruit that is yellow. Answer in one short sentence.",
        "What do bees make? Answer in one sentence.",
    ]
    write_json_lines(tmp_path / "seeds.jsonl", [{"instruction": question} for question in questions])
    config = yaml.safe_load((DEMO / "config.yaml").read_text())
    config["build"] |= {"model_name_or_path": smollm2, "seeds": "seeds.jsonl", "dtype": "bfloat16"}
    config["build"] |= {"parallel": str(DEMO / "parallel.jsonl"), "test_size": 0.25, "temperature": 0}
    config["train"] |= {"dtype": "bfloat16", "bf16": True, "use_cpu": True, "max_steps": 1}
    config["evaluate"] = {"tasks": ["sdrrl_heldout"], "model_args": "dtype=bfloat16"}
    path = run(config, tmp_path, tmp_path / "out")
    (samples,) = (tmp_path / "out" / "evaluation" / "base").glob("samples_sdrrl_heldout_gen_en_*.jsonl")
    answers = [json.loads(line)["resps"][0][0] for line in samples.read_text().splitlines()]
    assert answers and all(re.search(r"[a-z]{3}", answer) for answer in answers)
    rows = {
        (row["language"], row["metric"]): row["comparison"]
        for row in json.loads((path.parent / "report.json").read_text())["rows"]
    }
    # the model knows its own greedy English answers far better than their translations
    assert rows["en", "answer_bits_per_byte"]["base"] < 0.7 < 1.0 < rows["pt", "answer_bits_per_byte"]["base"]


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.timeout(3600)
def test_the_demo_improves_the_target_language_and_hides_no_loss(tmp_path):
    path = demo(None, tmp_path / "demo")
    rows = json.loads((path.parent / "report.json").read_text())["rows"]
    verdicts = {(row["language"], row["metric"]): row["verdict"] for row in rows if row["comparison"]["n"] >= 20}
    assert verdicts["pt", "answer_bits_per_byte"] == verdicts["pt", "bits_per_byte"] == "better", rows
    assert ("en", "bits_per_byte") in verdicts and ("en", "answer_bits_per_byte") in verdicts
