import json
import math
import shutil

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer, TrlParser

from sdrrl_trl import SDRRLConfig, SDRRLError, SDRRLTrainer


KINDS = [("source", "en", "en"), ("target", "pt", "pt"), ("source_to_target", "en", "pt"), ("translation", "pt", "en")]


def rows(n=16):
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": f"Why is the sky blue {i}" + " ?" * (i % 5)}],
                "completion": [{"role": "assistant", "content": "O céu é azul " * (1 + i % 3) + str(i)}],
                "kind": KINDS[i % 4][0],
                "question_language": KINDS[i % 4][1],
                "answer_language": KINDS[i % 4][2],
                "source_id": str(i),
            }
            for i in range(n)
        ]
    )


def train(cls, config, model, tmp_path, dataset=None, peft=False, shuffle=True, **options):
    args = config(
        output_dir=str(tmp_path / "out"),
        report_to="none",
        use_cpu=True,
        bf16=False,
        max_steps=3,
        logging_steps=1,
        save_strategy="no",
        learning_rate=1e-2,
        disable_tqdm=True,
        train_sampling_strategy="random" if shuffle else "sequential",
        **{"max_length": 128, **options},
    )
    peft_config = LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "up_proj"]) if peft else None
    dataset = rows() if dataset is None else dataset
    trainer = cls(model, args, train_dataset=dataset, peft_config=peft_config)
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"packing": True},
        {"packing": True, "shuffle_dataset": True},
        {"packing": True, "dataset_num_proc": 2},
        {"peft": True},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3},
        {"padding_free": True, "max_length": None},
    ],
)
def test_it_trains_bit_for_bit_as_sft_trainer_does(tiny_model, tmp_path, options):
    sft = train(SFTTrainer, SFTConfig, tiny_model, tmp_path, **options)
    for dataset in (rows(), rows().select_columns(["prompt", "completion"])):
        ours = train(SDRRLTrainer, SDRRLConfig, tiny_model, tmp_path, dataset, **options)
        for p, q in zip(ours.model.parameters(), sft.model.parameters(), strict=True):
            assert torch.equal(p, q)
        losses = [[entry["loss"] for entry in trainer.state.log_history[:3]] for trainer in (ours, sft)]
        assert losses[0] == losses[1]


@pytest.mark.parametrize("packing", [False, True])
def test_the_logged_figures_of_each_kind_and_language_are_sums_over_its_tokens(tiny_model, tmp_path, packing):
    trainer = train(SDRRLTrainer, SDRRLConfig, tiny_model, tmp_path, packing=packing)
    metrics = trainer.evaluate({"all": rows()})  # TRL 1.16 prepares these data twice
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    model.load_state_dict(trainer.model.state_dict())
    sums = {}
    for row in rows():
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        whole = tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False)
        start = len(tokenizer(prompt)["input_ids"])
        ids = tokenizer(whole)["input_ids"]
        with torch.no_grad():
            log_probs = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        nll = -log_probs.gather(-1, torch.tensor(ids[1:])[:, None])[start - 1 :]
        n_bytes = len(
            (row["completion"][0]["content"] + "\n").encode()
        )  # the template ends the turn with a line break
        for name in (row["kind"], row["answer_language"]):
            old = sums.get(name, (0.0, 0, 0))
            sums[name] = (old[0] + nll.sum().item(), old[1] + len(nll), old[2] + n_bytes)
    assert set(sums) == {"source", "target", "source_to_target", "translation", "en", "pt"}
    n_tokens = sums["en"][1] + sums["pt"][1]
    for name, (total, count, n_bytes) in sums.items():
        assert metrics[f"eval_all_nll/{name}"] == pytest.approx(total / count, abs=1e-4)
        assert metrics[f"eval_all_share/{name}"] == pytest.approx(count / n_tokens, abs=1e-6)
        if name in ("en", "pt"):
            assert metrics[f"eval_all_bpb/{name}"] == pytest.approx(total / n_bytes / math.log(2), abs=1e-4)


def test_gradient_accumulation_does_not_change_the_logged_losses(tiny_model, tmp_path):
    logs = [
        train(SDRRLTrainer, SDRRLConfig, tiny_model, tmp_path, **options).state.log_history[0]
        for options in (
            {"per_device_train_batch_size": 8},
            {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        )
    ]
    names = [name for name in logs[0] if name.startswith("nll/")]
    assert len(names) >= 4
    for name in names:
        assert logs[0][name] == pytest.approx(logs[1][name], abs=1e-5)


def test_the_card_names_the_method_and_its_paper(tiny_model, tmp_path):
    trainer = train(SDRRLTrainer, SDRRLConfig, tiny_model, tmp_path)
    trainer.create_model_card()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "2402.12204" in card and "SDRRL" in card


def test_the_card_lists_kinds_and_languages_of_the_training_data(tiny_model, tmp_path):
    trainer = train(SDRRLTrainer, SDRRLConfig, tiny_model, tmp_path)
    trainer.create_model_card()
    trainer.create_model_card()  # at every checkpoint
    assert (tmp_path / "out" / "README.md").read_text().count("| source_to_target | en | pt |") == 1


def test_evaluation_data_may_have_groups_that_training_lacks_but_must_be_known_from_the_start(tiny_model, tmp_path):
    fewer = rows().filter(lambda row: row["kind"] != "target")
    args = {"max_steps": 1, "report_to": "none", "use_cpu": True, "bf16": False, "output_dir": str(tmp_path / "out")}
    trainer = SDRRLTrainer(tiny_model, SDRRLConfig(**args), train_dataset=fewer, eval_dataset={"all": rows()})
    assert "eval_all_nll/target" in trainer.evaluate()
    trainer = SDRRLTrainer(tiny_model, SDRRLConfig(**args), train_dataset=fewer)
    with pytest.raises(SDRRLError, match="'target', 'pt', 'pt'"):
        trainer.evaluate({"all": rows()})


def test_streaming_data_train_alike_once_their_groups_are_declared(tiny_model, tmp_path):
    groups = [list(group) for group in KINDS]
    streamed = train(
        SDRRLTrainer,
        SDRRLConfig,
        tiny_model,
        tmp_path,
        rows().to_iterable_dataset(),
        groups=json.dumps(groups),
        per_device_train_batch_size=8,
    )
    whole = train(SDRRLTrainer, SDRRLConfig, tiny_model, tmp_path, shuffle=False, per_device_train_batch_size=8)
    for one, other in zip(streamed.state.log_history[:2], whole.state.log_history[:2], strict=True):
        names = {name for name in one if "/" in name or name == "loss"}
        assert "bpb/pt" in names and {name: one[name] for name in names} == {name: other[name] for name in names}
    with pytest.raises(SDRRLError, match="Declare them in `groups`"):
        train(SDRRLTrainer, SDRRLConfig, tiny_model, tmp_path, rows().to_iterable_dataset())


def test_tokenized_data_are_taken_as_they_are(tiny_model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)

    def tokenize(row):
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"]
        ids = tokenizer.apply_chat_template(row["prompt"] + row["completion"])["input_ids"]
        return {"input_ids": ids, "labels": [-100] * len(prompt) + ids[len(prompt) :]}

    tokenized = rows().map(tokenize).remove_columns(["prompt", "completion"])
    logs = [
        train(SDRRLTrainer, SDRRLConfig, tiny_model, tmp_path, data).state.log_history for data in (tokenized, None)
    ]
    names = ("loss", "nll/en", "bpb/en", "share/en")
    assert [logs[0][0][name] for name in names] == [logs[1][0][name] for name in names]


def test_packed_data_are_taken_as_they_are(tiny_model, tmp_path):
    """Packed once by TRL, without provenance: `seq_lengths` keeps the rows apart."""
    options = {"per_device_train_batch_size": 2, "padding_free": True, "max_length": None}
    packed = train(SFTTrainer, SFTConfig, tiny_model, tmp_path, packing=True).train_dataset
    assert "seq_lengths" in packed.column_names
    trainers = [
        train(cls, config, tiny_model, tmp_path, packed, **options)
        for cls, config in ((SDRRLTrainer, SDRRLConfig), (SFTTrainer, SFTConfig))
    ]
    for p, q in zip(*(trainer.model.parameters() for trainer in trainers), strict=True):
        assert torch.equal(p, q)


def test_resuming_from_a_checkpoint_ends_where_an_uninterrupted_run_ends(tiny_model, tmp_path):
    def run(folder, resume, **options):
        args = SDRRLConfig(
            output_dir=str(tmp_path / folder),
            save_steps=2,
            report_to="none",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            learning_rate=1e-2,
            per_device_train_batch_size=2,
            **options,
        )
        trainer = SDRRLTrainer(tiny_model, args, train_dataset=rows())
        trainer.train(resume_from_checkpoint=resume)
        return [parameter.detach().clone() for parameter in trainer.model.parameters()]

    whole = run("whole", None, max_steps=6)
    for name in ("checkpoint-4", "checkpoint-6"):  # torn at the last two checkpoints, each in another way
        shutil.copytree(tmp_path / "whole" / name, tmp_path / "torn" / name)
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "torn" / "checkpoint-2")
    (tmp_path / "torn" / "checkpoint-6" / "trainer_state.json").unlink()
    weights = tmp_path / "torn" / "checkpoint-4" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    resumed = run("torn", True, max_steps=6)
    assert all(torch.equal(p, q) for p, q in zip(whole, resumed, strict=True))


def test_half_written_checkpoints_are_skipped_and_named(tmp_path, caplog):
    from safetensors.torch import save_file

    from sdrrl_trl.trainer.checkpoints import last_complete_checkpoint

    damages = {
        "checkpoint-2": None,
        "checkpoint-10": lambda folder: (folder / "trainer_state.json").write_text('{"global_step": 1'),
        "checkpoint-11": lambda folder: (folder / "model.safetensors").write_bytes(b"\x10\0\0"),
        "checkpoint-12": lambda folder: (folder / "optimizer.pt").write_bytes(b"PK half of it"),
        "checkpoint-13": lambda folder: (folder / "model.safetensors").unlink(),
        "checkpoint-14": lambda folder: (folder / "model.safetensors.index.json").write_text(
            '{"weight_map": {"x": "model.safetensors", "y": "model-00002-of-00002.safetensors"}}'
        ),
    }
    for name, damage in damages.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "trainer_state.json").write_text("{}")
        save_file({"x": torch.zeros(3)}, folder / "model.safetensors")
        torch.save({"x": 1}, folder / "optimizer.pt")
        if damage:
            damage(folder)
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    for name in set(damages) - {"checkpoint-2"}:
        assert name in caplog.text
    assert last_complete_checkpoint(tmp_path / "checkpoint-2") is None


def test_resuming_without_any_complete_checkpoint_is_an_error(tiny_model, tmp_path):
    args = SDRRLConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_steps=1)
    with pytest.raises(SDRRLError, match="no complete checkpoint"):
        SDRRLTrainer(tiny_model, args, train_dataset=rows()).train(resume_from_checkpoint=True)


def test_the_configuration_is_read_from_yaml_and_from_the_command_line(tmp_path):
    (tmp_path / "c.yaml").write_text("kind_weights: {target: 2}\nkl_coef: 1e-1\nuse_cpu: true\nbf16: false\n")
    more = ["--output_dir", str(tmp_path), "--language_weights", '{"pt": 1.5}', "--kl_direction", "reverse"]
    (config,) = TrlParser((SDRRLConfig,)).parse_args_and_config(["--config", str(tmp_path / "c.yaml"), *more])
    assert (config.kind_weights, config.language_weights) == ({"target": 2}, {"pt": 1.5})
    assert (config.kl_coef, config.kl_direction) == (0.1, "reverse")


@pytest.mark.parametrize(
    "option, named",
    [
        ({"loss_type": "dft"}, "loss_type"),
        ({"packing": True, "packing_strategy": "wrapped"}, "bfd"),
        ({"kind_weights": {"target": -1.0}}, "weight of 'target' must be a number of at least 0"),
        ({"kind_weights": {"target": float("nan")}}, "weight of 'target'"),
        ({"language_weights": {"pt": "much"}}, "weight of 'pt'"),
        ({"kind_weights": [1.0]}, "must map names to numbers"),
        ({"kl_coef": -0.1}, "kl_coef"),
        ({"kl_coef": float("nan")}, "kl_coef"),
        ({"kl_coef": 1.0, "kl_temperature": 0.0}, "kl_temperature"),
        ({"kl_coef": 1.0, "kl_direction": "sideways"}, "kl_direction"),
        ({"kl_token_weights": "dpsw"}, "does nothing without `kl_coef`"),
        ({"kl_coef": 1.0, "kl_token_weights": "other"}, "kl_token_weights"),
        ({"groups": "[["}, "not valid JSON"),
        ({"groups": [["target", "pt"]]}, "must list"),
        ({"kl_coef": 1.0, "label_smoothing_factor": 0.1}, "label_smoothing_factor"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused_by_name(tmp_path, option, named):
    with pytest.raises(SDRRLError, match=named):
        SDRRLConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **option)


def without(column, share):
    def change(row, index):
        return {column: None if index < share * 16 else row[column]}

    return rows().map(change, with_indices=True)


@pytest.mark.parametrize(
    "dataset, options, named",
    [
        (rows, {"kind_weights": {"targt": 2.0}}, "names 'targt', of which the data have no row"),
        (rows, {"language_weights": {"th": 2.0}}, "names 'th'"),
        (rows, {"kind_weights": dict.fromkeys([kind for kind, *_ in KINDS], 0.0)}, "weights of all rows are 0"),
        (
            lambda: rows().select_columns(["prompt", "completion"]),
            {"kind_weights": {"target": 2.0}},
            "columns are missing",
        ),
        (lambda: without("kind", 0.5), {}, "8 of 16 rows have no `kind`"),
        (lambda: rows().map(lambda row, i: {"kind": i}, with_indices=True), {}, "must hold strings"),
        (lambda: rows().map(lambda row: {"kind": "pt"}), {}, "'pt' names a kind and a language"),
        (rows, {"max_length": 8}, "without a supervised token"),
        (rows, {"max_length": 8, "packing": True}, "without a supervised token"),
        (rows, {"max_length": None, "packing": True}, "needs `max_length`"),
        (rows, {"dataset_kwargs": {"skip_prepare_dataset": True}}, "skip_prepare_dataset"),
    ],
)
def test_data_and_options_that_do_not_fit_are_refused_before_the_first_step(
    tiny_model, tmp_path, dataset, options, named
):
    args = SDRRLConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", **options)
    with pytest.raises(SDRRLError, match=named):
        SDRRLTrainer(tiny_model, args, train_dataset=dataset())


def test_prompt_learning_adapters_and_other_collators_are_refused(tiny_model, tmp_path):
    args = SDRRLConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    prompt_tuning = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(SDRRLError, match="Prompt-learning"):
        SDRRLTrainer(tiny_model, args, train_dataset=rows(), peft_config=prompt_tuning)
    with pytest.raises(SDRRLError, match="its own collator"):
        SDRRLTrainer(tiny_model, args, lambda rows: rows, rows())


def test_another_config_class_is_refused(tiny_model, tmp_path):
    args = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    with pytest.raises(SDRRLError, match="SDRRLConfig"):
        SDRRLTrainer(tiny_model, args, train_dataset=rows())


def test_each_evaluation_set_has_its_own_figures(tiny_model, tmp_path):
    trainer = train(SDRRLTrainer, SDRRLConfig, tiny_model, tmp_path)
    sets = {name: rows().filter(lambda row, name=name: row["answer_language"] == name) for name in ("en", "pt")}
    metrics = trainer.evaluate(sets)
    assert {name for name in metrics if "bpb" in name} == {"eval_en_bpb/en", "eval_pt_bpb/pt"}


def test_a_filtered_data_set_is_judged_by_the_rows_it_has(tiny_model, tmp_path):
    data = without("kind", 0.5).filter(lambda row: row["kind"] is not None)
    assert "nll/pt" in train(SDRRLTrainer, SDRRLConfig, tiny_model, tmp_path, data).state.log_history[0]


def test_data_without_provenance_can_be_evaluated_beside_a_transfer_set(tiny_model, tmp_path):
    args = SDRRLConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    plain = rows().select_columns(["prompt", "completion"])
    trainer = SDRRLTrainer(tiny_model, args, train_dataset=rows(), eval_dataset={"plain": plain, "all": rows()})
    metrics = trainer.evaluate()
    assert metrics["eval_plain_loss"] == pytest.approx(metrics["eval_all_loss"])
    assert "eval_all_nll/pt" in metrics and not [name for name in metrics if name.startswith("eval_plain_nll")]


def test_half_of_the_provenance_columns_are_refused(tiny_model, tmp_path):
    with pytest.raises(SDRRLError, match="but not question_language"):
        train(SDRRLTrainer, SDRRLConfig, tiny_model, tmp_path, rows().remove_columns("question_language"))
