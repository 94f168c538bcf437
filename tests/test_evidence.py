"""The evidence: its arms, how their data are drawn, and that docs/results.md shows what the results say."""

import sys
from collections import Counter
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM


ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))
from evidence import cpu, data, run, tables  # noqa: E402, F401


POOL = {kind: [{"kind": kind, "n": n, "n_supervised": 10 + n % 7} for n in range(50)] for kind in ("source", "target")}


def test_every_run_names_an_arm_with_kinds_that_exist():
    for target, arms, seeds in run.CONFIG["runs"]:
        assert target in data.CORPORA and seeds
        for arm in arms:
            options = run.options_of(arm)
            assert options["answers"] in ("own", "reference")
            assert options["proportions"] and set(options["proportions"]) <= set(data.KINDS)


def test_an_arm_without_a_kind_has_all_others():
    default = run.CONFIG["defaults"]["proportions"]
    assert run.options_of("sdrrl")["proportions"] == default
    assert set(run.options_of("without_source")["proportions"]) == set(default) - {"source"}


def test_all_arms_get_the_same_number_of_supervised_tokens_in_their_proportions():
    for proportions in ({"source": 1}, {"source": 1, "target": 3}):
        rows = data.draw(POOL, proportions, 5000, seed=0)
        assert 5000 <= sum(row["n_supervised"] for row in rows) < 5017
        counts = Counter(row["kind"] for row in rows)
        assert abs(counts["source"] / len(rows) - 1 / sum(proportions.values())) < 0.1


def test_no_row_comes_again_before_all_of_its_kind_were_used():
    rows = data.draw(POOL, {"source": 1}, 1500, seed=0)
    counts = Counter(row["n"] for row in rows)
    assert len(rows) > 50 and max(counts.values()) - min(counts.values()) <= 1


def test_the_seed_decides_what_is_drawn():
    draws = [[row["n"] for row in data.draw(POOL, {"source": 1}, 300, seed)] for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_rows_of_a_pack_attend_as_if_each_was_alone():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, attn_implementation="row_by_row",
    )  # fmt: skip
    model, lengths = LlamaForCausalLM(config).eval(), [7, 1, 12]
    ids = torch.randint(0, 50, (1, sum(lengths)))
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    packed = model(ids, position_ids=positions, use_cache=False).logits
    model.set_attn_implementation("sdpa")
    alone = [model(row, use_cache=False).logits for row in ids.split(lengths, dim=1)]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1))


def test_the_pages_show_what_the_results_say():
    found = tables.blocks(tables.read_all())
    for page in tables.PAGES:
        text = page.read_text(encoding="utf-8")
        assert "<!-- end of pt " in text
        assert tables.fill(text, found) == text, "run `python benchmarks/evidence/tables.py --write`"
