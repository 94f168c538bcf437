"""The evidence: what is drawn, measured and decided, and that the pages show what the results say."""

import json
import math
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM

from sdrrl_trl import SDRRLConfig, SDRRLTrainer
from sdrrl_trl.trainer import sdrrl_trainer


ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks" / "evidence"))
import cpu  # noqa: E402
import data  # noqa: E402
import decide  # noqa: E402
import likelihood  # noqa: E402
import measure  # noqa: E402
import pairs  # noqa: E402
import tables  # noqa: E402


POOL = {
    kind: [{"kind": kind, "n": n, "n_tokens": 100 + n % 7, "answer_language": language} for n in range(50)]
    for kind, language in (("source", "en"), ("target", "pt"))
}
CONTROL = decide.Run("smollm2", "positive_control", 1e-2, 10)


def tiny_model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=128, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, initializer_range=0.5,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def characters(texts: list[str], add_special_tokens: bool) -> dict:
    """A tokenizer: a token for each character."""
    return {"input_ids": [[ord(character) for character in text] for text in texts]}


def test_every_arm_names_pools_and_kinds_that_exist():
    for arm in data.CONFIG["arms"]:
        options = decide.options_of(arm)
        assert options["answers"] in data.POOLS and options["rates"]
        assert options["proportions"] and set(options["proportions"]) <= set(data.KINDS)


def test_no_test_item_is_a_dev_item_or_was_trained_on():
    items = data.ITEMS
    for dev, test in (("dev_questions", "open_questions"), ("dev_flores", "flores"), ("dev_drift", "drift")):
        assert items[dev] and items[test] and not set(items[dev]) & set(items[test])
    assert min(items["drift"] + items["dev_drift"]) > data.N_QUESTIONS
    for corpora in items["pairs"].values():
        assert min(corpora["flores"]) > max(items["dev_flores"]) and min(corpora["tatoeba"]) > data.N_PARALLEL


def test_rows_are_drawn_in_their_proportions_and_none_again_before_all_were():
    rows = list(islice(data.draw(POOL, {"source": 1, "target": 3}, seed=0), 2000))
    assert abs(Counter(row["kind"] for row in rows)["source"] / 2000 - 1 / 4) < 0.03
    counts = Counter(row["n"] for row in rows if row["kind"] == "target")
    assert max(counts.values()) - min(counts.values()) <= 1


def test_the_seed_decides_what_is_drawn():
    draws = [[row["n"] for row in islice(data.draw(POOL, {"source": 1}, seed), 30)] for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_all_arms_cost_the_same_and_fit_into_as_many_packs():
    spent = []
    for anchored in (set(), {"en"}):
        rows, size = data.spend(data.draw(POOL, {"source": 1, "target": 1}, 0), 6000, 12, anchored)
        same_size, packs = data.pack(rows, 12)
        assert size == same_size and len(packs) == 12 and sum(map(len, packs)) == len(rows)
        assert 6000 <= data.processed(packs, anchored) < 6000 + 4 / 3 * 2 * 106
        spent.append(sum(row["n_tokens"] for row in rows))
    # The forward pass of the initial model on packs with an anchored answer is paid for with tokens
    assert 4500 <= spent[1] < spent[0]


def test_rows_of_a_pack_attend_as_if_each_was_alone():
    model, lengths = tiny_model(), [7, 1, 12]
    ids = torch.randint(0, 50, (1, sum(lengths)))
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    alone = [model(row, use_cache=False).logits for row in ids.split(lengths, dim=1)]
    model.set_attn_implementation("row_by_row")
    packed = model(ids, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(packed, torch.cat(alone, dim=1))


def test_the_initial_model_is_asked_about_anchored_answers_alone_and_training_stays_the_same(
    tiny_model, tmp_path, monkeypatch
):
    asked, weights, teacher_states = [], [], sdrrl_trainer.teacher_states
    monkeypatch.setattr(sdrrl_trainer, "teacher_states", lambda *args: asked.append(1) or teacher_states(*args))
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Question {number}"}],
            "completion": [{"role": "assistant", "content": f"Answer {language} {number}"}],
            "kind": kind,
            "question_language": language,
            "answer_language": language,
        }
        for number in range(4)
        for kind, language in (("source", "en"), ("target", "pt"))
    ]
    for number, trainer_class in enumerate((SDRRLTrainer, cpu.SparingTrainer)):
        args = SDRRLConfig(
            str(tmp_path / str(number)), kl_coef=4.0, anchor_languages=["en"], learning_rate=1e-2, use_cpu=True,
            bf16=False, per_device_train_batch_size=1, gradient_accumulation_steps=2, num_train_epochs=1,
            save_strategy="no", report_to="none",
        )  # fmt: skip
        peft_config = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
        trainer = trainer_class(tiny_model, args, train_dataset=Dataset.from_list(rows), peft_config=peft_config)
        trainer.train()
        weights.append([p.detach() for p in trainer.model.parameters() if p.requires_grad])
    assert len(asked) == 8 + 4
    torch.testing.assert_close(*weights)


def test_texts_that_share_a_context_are_as_likely_as_each_by_itself():
    model, rows = tiny_model(), [("What?", ["yes", "nobody knows"]), ("A", ["b"]), ("Long context ", ["x", "y", "zz"])]
    expected = []
    for context, texts in rows:
        for text in texts:
            ids = torch.tensor(characters([context + text], False)["input_ids"])
            for temperature in (1.0, 2.0):
                log_p = (model(ids).logits[0, :-1] / temperature).log_softmax(-1)
                expected.append(log_p.gather(-1, ids[0, 1:, None])[len(context) - 1 :].sum().item())
    found = likelihood.log_likelihoods(model, characters, rows, (1.0, 2.0))
    assert np.array(found).flatten() == pytest.approx(expected, abs=1e-3)


def test_drift_is_the_divergence_from_the_initial_model_and_zero_of_itself():
    initial, model, rows = tiny_model(), tiny_model(seed=1), [("Why", [" not"]), ("Because it is", [" so", "n't"])]
    assert likelihood.divergence(initial, tiny_model(), characters, rows) == [0.0, 0.0, 0.0]
    ids = torch.tensor(characters(["Why not"], False)["input_ids"])
    log_p, log_q = (each(ids).logits[0, 2:-1].log_softmax(-1) for each in (initial, model))
    expected = torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="sum").item()
    assert likelihood.divergence(initial, model, characters, rows)[0] == pytest.approx(expected, abs=1e-3) != 0


@pytest.mark.parametrize(
    ("kind", "sentence", "right", "wrong"),
    [
        ("agreement", "Ele saiu do carro novo", " do carro novo", " da carro novo"),
        ("agreement", "Gosto das casas antigas", " das casas antigas", " dos casas antigas"),
        ("é/são", "A casa é grande", " é grande", " são grande"),
        ("foi/foram", "Eles foram embora cedo", " foram embora cedo", " foi embora cedo"),
        ("swap", "Uma casa de pedra velha", " de pedra velha", " pedra de velha"),
    ],
)
def test_a_minimal_pair_differs_in_what_is_wrong_alone(kind, sentence, right, wrong):
    beginning, *found = pairs.minimal_pair(sentence, kind)
    assert found == [right, wrong] and beginning + right == sentence


@pytest.mark.parametrize("kind", pairs.KINDS)
def test_a_sentence_without_its_words_makes_no_minimal_pair(kind):
    assert pairs.minimal_pair("Muito obrigado, senhor", kind) is None
    # Not where the ending does not tell the gender
    assert kind != "agreement" or pairs.minimal_pair("Um problema do clima", kind) is None


def test_the_temperature_that_fits_best_is_found_between_those_tried():
    loss = [100 + 50 * (t - 1.14) ** 2 for t in measure.TEMPERATURES]
    dev = {"likelihoods": {"flores/pt": [[10, *(-x for x in loss)]], "flores/en": [[10, *loss]]}}
    assert measure.fitted_temperature(dev, "pt") == pytest.approx(1.14)
    assert measure.TEMPERATURES[decide.AT_1] == 1


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Results of a made-up round: `write` sets what the arms reach."""
    monkeypatch.setattr(decide, "result_file", lambda run, part: tmp_path / f"{run.name}.{part}.json")
    decide.read.cache_clear()

    def write(run: decide.Run, composite: float = 1.0, drift: float = 0.1, right: float = 0.8, english: float = 1.0):
        dev = {name: [[100, *[-100 * composite] * 4]] * 3 for name in decide.TEXTS}
        training = {"tokens": 1, "supervised_tokens": 1, "seconds": 1}
        content = {"likelihoods": dev, "drift": [[100, 100 * drift]], "training": training, "pool": "p"}
        (tmp_path / f"{run.name}.dev.json").write_text(json.dumps(content))
        n, noise = 400, 1 + 1e-4 * run.seed  # seeds differ a little
        content = {
            "pool": "p",
            "drift": [[100, 100 * drift]] * n,
            "translation": {"en-pt": [[0, -1]] * n, "pt-en": [[0, -1]] * n},
        }
        for name in (*decide.T, *decide.SOURCE):
            nats = -100 * (composite if name.endswith("pt") else english) * noise
            content[name] = [[100, nats, nats]] * n
        choices = ("pairs/swap", "questions", "stories", "inferences")
        content["choices"] = {name: [int(i < right * n) for i in range(n)] for name in choices}
        content["texts"] = dict.fromkeys(("wrong_language", "repetitive", "characters"), [0] * n)
        for part in ("gate", "test", "bits"):
            (tmp_path / f"{run.name}.{part}.json").write_text(json.dumps(content))
        decide.read.cache_clear()

    write(decide.Run("smollm2", "base"), drift=0.0)
    for run in decide.stage_1():
        drifts = {"t_sft": 0.1, "anchored": 0.04, "sampled": 0.06, "positive_control": 0.5}
        write(run, composite=0.9 + 0.01 * (run.rate < 2e-3), drift=drifts.get(run.arm, 0.2))
    yield write
    decide.read.cache_clear()


def test_the_winner_has_at_most_half_the_drift_of_t_sft(results):
    assert decide.better_rate("t_sft") == 3e-3
    assert decide.winner() == ("anchored", 3e-3)
    results(decide.Run("smollm2", "sampled", 1e-3, 10), composite=0.8, drift=0.05)
    assert decide.winner() == ("sampled", 1e-3)
    for run in decide.stage_1():
        if run.arm in decide.CANDIDATES:
            results(run, composite=0.5, drift=0.051)
    assert decide.winner() == ("target_sampled", 3e-3)


def test_a_stage_opens_when_the_one_before_is_complete(results):
    jobs = decide.jobs("smollm2")
    assert {run.arm for run, _ in jobs if run.seed > 10} == {"anchored", "t_sft"}
    assert not any(part == "test" for _, part in jobs)
    for run in [run for run, _ in jobs if run.seed > 10]:
        results(run)
    assert sum(part == "test" for _, part in decide.jobs("smollm2")) == 1 + 8 + len(data.CONFIG["arms"])
    decide.result_file(CONTROL, "dev").unlink()
    assert all(run.seed in (0, 10) for run, _ in decide.jobs("smollm2"))


@pytest.mark.parametrize(
    ("ours", "control", "expected"),
    [
        ({"composite": 0.95}, 0.5, "WIN"),
        ({"composite": 1.005}, 0.5, "PARTIAL"),
        ({"composite": 1.05}, 0.5, "FAIL"),
        ({"composite": 0.95, "drift": 0.2}, 0.5, "FAIL"),
        ({"composite": 0.95, "english": 1.02}, 0.5, "FAIL"),
        ({"composite": 0.95, "right": 0.7}, 0.5, "FAIL"),
        ({"composite": 0.95}, 0.05, "FAIL"),  # of keeping nothing can be said
    ],
)
def test_the_decision_follows_the_rule(results, ours, control, expected):
    results(CONTROL, drift=control)
    groups = [[decide.Run("smollm2", arm, 3e-3, seed) for seed in (11, 12, 13, 14)] for arm in ("anchored", "t_sft")]
    for run in groups[0]:
        results(run, **{"drift": 0.04, **ours})
    for run in groups[1]:
        results(run)
    assert decide.verdict(decide.decision(*groups, CONTROL)) == expected


def test_a_difference_has_welchs_interval_over_seeds(results):
    groups = [[decide.Run("smollm2", arm, 3e-3, seed) for seed in (11, 12, 13)] for arm in ("anchored", "t_sft")]
    drifts = [0.1, 0.2, 0.3], [0.5, 0.5, 0.8]
    for runs, values in zip(groups, drifts, strict=True):
        for run, drift in zip(runs, values, strict=True):
            results(run, drift=drift)
    found = decide.contrast(*groups, ("drift",), decide.same)
    assert found.delta == pytest.approx(-0.4 / math.log(2))
    error = math.sqrt(0.01 / 3 + 0.03 / 3)  # variances of the two groups
    freedom = error**4 / ((0.01 / 3) ** 2 / 2 + (0.03 / 3) ** 2 / 2)
    reach = decide.student.ppf(0.975, freedom) * error / math.log(2)
    assert found.of_seeds == pytest.approx((found.delta - reach, found.delta + reach))
    assert found.of_items == pytest.approx((found.delta, found.delta))  # all items are alike


def test_tables_and_plots_are_made_of_what_there_is(results):
    assert "| anchored, 0.003 |" in tables.blocks()["stage 1"]
    svg = tables.plots()["evidence_stage_1"]
    assert svg.count("<circle") == len(decide.stage_1()) - 1 and ">t_sft 0.001</text>" in svg  # no positive control
    half, whole = (decide.result_file(decide.Run("smollm2", "t_sft", 0.001, 10), part) for part in ("dev@0.5", "dev"))
    half.write_text(whole.read_text())
    assert "| t_sft, 0.001 | 0.5 |" in tables.strengths_table()
    assert ">t_sft 0.001@0.5</text>" in tables.plots()["evidence_stage_1"]


def test_runs_on_clean_texts_stand_beside_the_same_with_the_fault(results):
    seeds = data.CONFIG["stage_2"]["seeds"]
    for model, reached in {"smollm2_clean": 0.8, "smollm2": 0.9}.items():
        for seed in seeds:
            results(decide.Run(model, "t_sft", 3e-3, seed), composite=0.8)
            results(decide.Run(model, "anchored", 3e-3, seed), composite=reached)
        if model == "smollm2_clean":
            assert tables.clean_table() == tables.NOT_YET
            results(decide.Run(model, "base"), drift=0.0)
    first = tables.clean_table().splitlines()[2]
    values = [cell.strip() for cell in first.split("|")[2:-1]]
    assert values[0] == "1.4427" and values[3].startswith("+0") and values[-1] == "+11.8 %", first
    assert tables.short_table(tables.wider_interval) == tables.NOT_YET
    for seed in seeds:
        results(decide.Run("smollm2_clean", "anchored_references", 3e-3, seed), composite=0.79, drift=0.02)
        half = decide.Run("smollm2_clean", "t_sft", 3e-3, seed)
        content = decide.result_file(half, "bits").read_text().replace("-80.", "-90.")
        decide.result_file(half, tables.HALF).write_text(content)
    first, half, _, last, planned = (
        line.split("|")[2:-1] for line in tables.short_table(tables.wider_interval).splitlines()[2:]
    )
    # Of their logarithms, in per cent; the seeds move these a little: the interval over the seeds is the wider one
    assert [cell.strip() for cell in first] == ["-19.9 ± 0.0", "", "0.1 ± 0.0", "0.144 ± 0.000"]
    assert [cell.strip() for cell in half][:2] == ["-9.9 ± 0.0", "12.5 ± 0.0"]
    assert [cell.strip() for cell in last] == ["-20.9 ± 0.0", "-1.3 ± 0.0", "0.1 ± 0.0", "0.029 ± 0.000"]
    # Beside their own T-SFT, with the fault
    assert [cell.strip() for cell in planned][:2] == ["-9.9 ± 0.0", "12.5 ± 0.0"]
    assert "| -20.9 (-20.9 to -20.9; -20.9 to -20.9) |" in tables.short_table(tables.both_intervals)
    file = decide.result_file(decide.Run("smollm2_clean", "t_sft", 3e-3, 11), tables.HALF)
    file.write_text(file.read_text().replace('"pool": "p"', '"pool": "q"'))
    decide.read.cache_clear()
    with pytest.raises(SystemExit, match="different pools"):
        tables.short_table(tables.wider_interval)


def test_the_pages_show_what_the_results_say():
    found, shown = tables.blocks(), set()
    for page in tables.PAGES:
        text = page.read_text(encoding="utf-8")
        assert tables.fill(text, found) == text, "run `python benchmarks/evidence/tables.py --write`"
        shown |= {name for name in found if f"<!-- end of {name} -->" in text}
    assert shown >= {"decision", "pairs", "stage 2", "clean texts", "stage 1", "second model", "larger"}
    for name, svg in tables.plots().items():
        assert (ROOT / "docs" / f"{name}.svg").read_text(encoding="utf-8") == svg
