"""Exports of a transfer set, each for a step of the trainer of TRL that it is for."""

import pytest
from datasets import load_dataset
from stub_engines import build, rows_of
from trl import DPOConfig, DPOTrainer
from trl.experimental.sdft import SDFTConfig, SDFTTrainer

from sdrrl_trl.cli import main


CPU = {
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
    "max_steps": 1,
    "learning_rate": 1e-3,
}


@pytest.fixture
def transfer_set(stub_seeds, tmp_path):
    return build(stub_seeds, tmp_path / "set", proportions={"source": 1, "target": 2}, system_prompt="Be kind.")


def exported(folder, method, tmp_path):
    """Each row that `sdrrl export` writes for training, with the two records of its question."""
    main(["export", str(folder), str(tmp_path / method), "--for", method])
    data = load_dataset(str(tmp_path / method))
    for split, rows in data.items():
        records = {}
        for row in rows_of(folder, split):
            records.setdefault(row["source_id"], {})[row["kind"]] = row
        both = {source_id: kinds for source_id, kinds in records.items() if {"source", "target"} <= kinds.keys()}
        assert len(both) >= 4 and len(rows) == len(both) * (2 if method == "dpo" else 1)
        yield from ((row, *(both[row["source_id"]][kind] for kind in ("source", "target"))) for row in rows)


def assert_a_step_is_taken(trainer, config, model, tmp_path, method, **options):
    args = config(str(tmp_path / "out"), per_device_train_batch_size=2, **CPU, **options)
    trainer = trainer(model, args=args, train_dataset=load_dataset(str(tmp_path / method), split="train"))
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    trainer.train()
    changed = [(old != new).any() for old, new in zip(before, trainer.model.parameters(), strict=True)]
    assert sum(changed) > len(changed) / 2


def test_dpo_prefers_the_answer_in_the_language_of_the_question(transfer_set, tiny_model, tmp_path):
    for row, source, target in exported(transfer_set, "dpo", tmp_path):
        asked, other = (target, source) if row["language"] == "pt" else (source, target)
        expected = {"prompt": asked["prompt"], "chosen": asked["completion"], "rejected": other["completion"]}
        assert {name: row[name] for name in expected} == expected
    assert_a_step_is_taken(DPOTrainer, DPOConfig, tiny_model, tmp_path, "dpo")


def test_sdft_shows_the_teacher_the_source_question_with_its_answer(transfer_set, tiny_model, tmp_path):
    for row, source, target in exported(transfer_set, "sdft", tmp_path):
        assert row["prompt"] == target["prompt"] and row["language"] == "pt"
        question, answer = source["prompt"][-1]["content"], source["completion"][0]["content"]
        assert row["privileged_context"] == f"{question}\n\n{answer}"  # without the system message
    options = {"num_generations": 2, "max_completion_length": 8, "distillation_topk": 10}
    assert_a_step_is_taken(SDFTTrainer, SDFTConfig, tiny_model, tmp_path, "sdft", **options)


def test_what_cannot_be_exported_is_refused(stub_seeds, transfer_set, tmp_path, capsys):
    only_source = build(stub_seeds, tmp_path / "other", proportions={"source": 1}, lexicon=None)
    for folder, output, named in (
        (tmp_path / "nowhere", "new", f"no finished transfer set in {tmp_path / 'nowhere'}. Build it"),
        (only_source.parent, "new", f"no finished transfer set in {only_source.parent}. Did you mean {tmp_path}/"),
        (only_source, "new", "no question with both a `source` and a `target` record"),
        (transfer_set, "set", "is there already"),
    ):
        with pytest.raises(SystemExit):
            main(["export", str(folder), str(tmp_path / output), "--for", "dpo"])
        assert named in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
