import math
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, OFTConfig, PromptTuningConfig
from transformers import AutoTokenizer, TrainingArguments
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from sdrrl_trl import SDRRLConfig, SDRRLError, SDRRLTrainer
from sdrrl_trl.trainer.checkpoints import last_complete_checkpoint


KINDS = [("source", "en", "en"), ("target", "pt", "pt"), ("source_to_target", "en", "pt"), ("translation", "pt", "en")]
LORA = LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
TRAINERS = (SDRRLTrainer, SFTTrainer)
CPU = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True}


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


def plain_rows():
    return rows().select_columns(["prompt", "completion"])


def tokenized(tokenizer):
    """Each row with its token ids, shape (1, L), and the place of the first supervised one."""
    for row in rows():
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"]
        ids = tokenizer.apply_chat_template(row["prompt"] + row["completion"])["input_ids"]
        yield row, torch.tensor([ids]), len(prompt)


def make(model, folder, dataset=None, cls=SDRRLTrainer, eval_dataset=None, peft_config=None, **options):
    """A trainer for three steps; the options are those of its configuration."""
    defaults = {"max_steps": 3, "logging_steps": 1, "save_strategy": "no", "learning_rate": 1e-2, "max_length": 128}
    args = (SFTConfig if cls is SFTTrainer else SDRRLConfig)(str(folder / "out"), **{**CPU, **defaults, **options})
    train_dataset = rows() if dataset is None else dataset
    return cls(model, args, train_dataset=train_dataset, eval_dataset=eval_dataset, peft_config=peft_config)


def train(*args, **kwargs):
    trainer = make(*args, **kwargs)
    trainer.train()
    return trainer


def assert_equal_weights(one, other):
    for p, q in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_trains_in_float32_where_trl_stops(tmp_path):
    with pytest.raises(ValueError, match="bf16"):
        SFTConfig(str(tmp_path))
    assert SDRRLConfig(str(tmp_path)).bf16 is False and SDRRLConfig(str(tmp_path), use_cpu=True).bf16 is False
    with pytest.raises(ValueError, match="bf16"):
        SDRRLConfig(str(tmp_path), bf16=True)


def test_an_answer_that_was_cut_off_is_trained_without_an_end_of_turn(tiny_model, tmp_path):
    dataset = rows(4).add_column("truncated", [False, True, False, True])
    trainer = make(tiny_model, tmp_path, dataset)
    for row, made in zip(dataset, trainer.train_dataset, strict=True):
        text = trainer.processing_class.decode([label for label in made["labels"] if label != -100])
        assert text == row["completion"][0]["content"] + ("" if row["truncated"] else "<|im_end|>\n")
        assert sum(made["label_bytes"]) == len(text.replace("<|im_end|>", "").encode())
    # The rows of a stream are cut, and have no end of turn to lose
    options = {"eval_dataset": rows(), "max_length": len(made["labels"]) - 3}
    short = make(tiny_model, tmp_path, dataset.to_iterable_dataset(), **options)
    assert list(short.train_dataset)[3]["labels"] == made["labels"][:-3]


@pytest.mark.parametrize("packing", [False, True])
def test_rows_longer_than_max_length_are_left_out_and_counted_not_cut(tiny_model, tmp_path, caplog, packing):
    """In training and in evaluation; what is left is trained on with its end."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    sizes = [ids.shape[1] for _, ids, _ in tokenized(tokenizer)]
    limit = sorted(sizes)[10]
    lost = [row["answer_language"] for row, n in zip(rows(), sizes, strict=True) if n > limit]
    options = {"max_length": limit, "packing": packing, "eval_packing": False, "eval_dataset": {"own": rows()}}
    trainer = make(tiny_model, tmp_path, **options)
    n_ends = sum((torch.tensor(row["labels"]) == tokenizer.eos_token_id).sum() for row in trainer.train_dataset)
    assert n_ends == len(trainer.eval_dataset["own"]) == 16 - len(lost)
    counts = [f"{lost.count(name)} of 8 in {name}" for name in ("en", "pt") if name in lost]
    for name in ("train", "own"):
        assert f"{len(lost)} of 16 rows of the {name} data set are left out" in caplog.text
    assert f"({', '.join(counts)}): they are longer than `max_length` ({limit} tokens)" in caplog.text
    # Of data without the columns nothing is left out but by TRL
    assert len(make(tiny_model, tmp_path, plain_rows(), max_length=limit).train_dataset) == 16


@pytest.fixture(scope="module")
def trained(tiny_model, tmp_path_factory):
    return train(tiny_model, tmp_path_factory.mktemp("trained"))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"packing": True, "shuffle_dataset": True},
        {"packing": True, "dataset_num_proc": 2},
        {"peft_config": LORA, "label_smoothing_factor": 0.1},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3, "loss_type": "dft"},
        {"padding_free": True, "max_length": None},
    ],
)
def test_it_trains_bit_for_bit_as_sft_trainer_does(tiny_model, tmp_path, options):
    sft = train(tiny_model, tmp_path, cls=SFTTrainer, **options)
    for dataset in (rows(), plain_rows()):
        ours = train(tiny_model, tmp_path, dataset, **options)
        assert_equal_weights(ours, sft)
        losses = [[entry["loss"] for entry in trainer.state.log_history[:3]] for trainer in (ours, sft)]
        assert losses[0] == losses[1]


@pytest.mark.parametrize(
    "options",
    [
        {"packing": True, "packing_strategy": "wrapped", "max_length": 64},
        {"peft_config": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)},
    ],
)
def test_what_kinds_and_languages_cannot_follow_is_taken_without_them(tiny_model, tmp_path, options):
    ours, sft = (train(tiny_model, tmp_path, plain_rows(), cls=cls, **options) for cls in TRAINERS)
    assert_equal_weights(ours, sft)


@pytest.mark.parametrize(
    "options", [{}, {"packing": True, "kl_coef": 0.7}, {"kl_coef": 0.7, "anchor_languages": ["en"]}]
)
def test_the_logged_figures_of_each_kind_and_language_are_sums_over_its_tokens(tiny_model, tmp_path, options):
    trainer = make(tiny_model, tmp_path, peft_config=LORA, **options)
    trainer.watch_drift()
    assert trainer.evaluate({"all": rows()})["eval_all_drift/source"] == 0
    trainer.train()
    metrics = trainer.evaluate({"all": rows()})  # TRL 1.16 prepares these data twice
    sums = {}
    for row, ids, start in tokenized(trainer.processing_class):
        with torch.no_grad():
            log_q = trainer.model(ids).logits[0, start - 1 : -1].log_softmax(-1)
            with trainer.model.disable_adapter():
                log_p = trainer.model(ids).logits[0, start - 1 : -1].log_softmax(-1)
        nll, kl = -log_q.gather(-1, ids[0, start:, None]).sum(), (log_p.exp() * (log_p - log_q)).sum()
        # The template ends the turn with a line break
        n_bytes = len((row["completion"][0]["content"] + "\n").encode())
        for name in (row["kind"], row["answer_language"]):
            sums[name] = sums.get(name, 0) + torch.tensor([nll, kl, len(log_q), n_bytes], dtype=torch.float64)
    assert set(sums) == {"source", "target", "source_to_target", "translation", "en", "pt"}
    n_all = sums["en"][2] + sums["pt"][2]
    for name, (nll, kl, n_tokens, n_bytes) in sums.items():
        figures = {"nll": nll / n_tokens, "kl": kl / n_tokens, "share": n_tokens / n_all}
        figures |= {"bpb": nll / n_bytes / math.log(2), "drift": kl / n_bytes / math.log(2)}
        for figure, value in figures.items():
            assert metrics[f"eval_all_{figure}/{name}"] == pytest.approx(value.item(), rel=1e-4, abs=1e-6), figure


def test_the_card_names_the_method_and_its_paper(trained):
    trained.create_model_card()
    card = Path(trained.args.output_dir, "README.md").read_text(encoding="utf-8")
    assert "2402.12204" in card and "SDRRL" in card and "- sft" in card


def test_each_evaluation_set_has_its_own_figures_and_one_without_columns_has_none(tiny_model, tmp_path):
    sets = {name: rows().filter(lambda row, name=name: row["answer_language"] == name) for name in ("en", "pt")}
    metrics = make(tiny_model, tmp_path, eval_dataset=sets | {"plain": plain_rows(), "all": rows()}).evaluate()
    assert {name for name in metrics if name.endswith(("bpb/en", "bpb/pt"))} == {
        f"eval_{name}" for name in ("en_bpb/en", "pt_bpb/pt", "all_bpb/en", "all_bpb/pt")
    }
    assert metrics["eval_plain_loss"] == pytest.approx(metrics["eval_all_loss"])


def test_evaluation_data_may_have_groups_that_training_lacks_but_must_be_known_from_the_start(tiny_model, tmp_path):
    fewer = rows().filter(lambda row: row["kind"] != "target")
    assert "eval_all_nll/target" in make(tiny_model, tmp_path, fewer, eval_dataset={"all": rows()}).evaluate()
    with pytest.raises(SDRRLError, match="'target', 'pt', 'pt'"):
        make(tiny_model, tmp_path, fewer).evaluate({"all": rows()})


def test_streaming_data_train_alike_but_without_the_figures(tiny_model, tmp_path):
    options = {"per_device_train_batch_size": 8, "max_steps": 2}
    stream = rows().to_iterable_dataset()
    streamed = train(tiny_model, tmp_path, stream, eval_dataset={"all": rows()}, **options)
    assert_equal_weights(streamed, train(tiny_model, tmp_path, train_sampling_strategy="sequential", **options))
    assert not [name for name in streamed.state.log_history[0] if "/" in name]
    assert "eval_all_nll/pt" in streamed.evaluate()


def test_tokenized_data_are_taken_as_they_are(tiny_model, trained, tmp_path):
    data = [
        row | {"input_ids": ids[0].tolist(), "labels": [-100] * start + ids[0, start:].tolist()}
        for row, ids, start in tokenized(AutoTokenizer.from_pretrained(tiny_model))
    ]
    ours = train(tiny_model, tmp_path, Dataset.from_list(data).remove_columns(["prompt", "completion"]))
    for name in ("loss", "nll/en", "bpb/en", "share/en"):
        assert ours.state.log_history[0][name] == trained.state.log_history[0][name]


def without_kind(data):
    return data.map(lambda row, index: {"kind": None if index < 8 else row["kind"]}, with_indices=True)


def test_resuming_from_a_checkpoint_ends_where_an_uninterrupted_run_ends(tiny_model, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6, "per_device_train_batch_size": 2}
    whole = train(tiny_model, tmp_path / "whole", **options)
    torn = shutil.copytree(tmp_path / "whole" / "out", tmp_path / "torn" / "out")
    (torn / "checkpoint-6" / "trainer_state.json").unlink()
    resumed = make(tiny_model, tmp_path / "torn", **options)
    resumed.train(resume_from_checkpoint=True)
    assert_equal_weights(whole, resumed)
    with pytest.raises(SDRRLError, match="no complete checkpoint"):
        make(tiny_model, tmp_path / "none").train(resume_from_checkpoint=True)


def test_checkpoints_with_a_missing_or_damaged_file_are_skipped_and_named(tiny_model, tmp_path, caplog):
    # Never one checkpoint alone, for the last may turn out to be torn
    train(tiny_model, tmp_path, save_strategy="steps", save_steps=1, max_steps=3, save_total_limit=1)
    first, second = (tmp_path / "out" / f"checkpoint-{step}" for step in (2, 3))
    assert last_complete_checkpoint(tmp_path / "out") == str(second)
    names = {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
    assert names < {file.name for file in second.iterdir()}
    for file in second.iterdir():
        content = file.read_bytes()
        for damage in (file.unlink, lambda file=file, content=content: file.write_bytes(bytes(len(content)))):
            damage()
            assert last_complete_checkpoint(tmp_path / "out") == str(first)
            file.write_bytes(content)
    assert all(f"{name} is missing or damaged" in caplog.text for name in names)
    train(tiny_model, tmp_path / "models", save_strategy="steps", save_steps=1, save_only_model=True)
    assert last_complete_checkpoint(tmp_path / "models" / "out") is None


@pytest.mark.parametrize(
    "change, options, named",
    [
        (None, {"kl_coef": -0.1}, "kl_coef"),
        (None, {"kl_coef": float("nan")}, "kl_coef"),
        (None, {"kl_coef": "much"}, "kl_coef"),
        (None, {"anchor_languages": ["en"]}, "`anchor_languages` needs a `kl_coef` above 0"),
        (None, {"kl_coef": 1.0, "loss_type": "dft"}, "loss_type"),
        (None, {"kl_coef": 1.0, "label_smoothing_factor": 0.1}, "label_smoothing_factor"),
        (None, {"kl_coef": 1.0, "peft_config": LoraConfig(init_lora_weights="pissa")}, "not the initial model"),
        (None, {"kl_coef": 1.0, "peft_config": LoraConfig(bias="lora_only")}, "not the initial model"),
        (None, {"kl_coef": 1.0, "peft_config": OFTConfig(oft_block_size=4, bias="all")}, "not the initial model"),
        (None, {"peft_config": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)}, "Prompt-learning"),
        (None, {"packing": True, "packing_strategy": "wrapped"}, "must be 'bfd'"),
        (without_kind, {}, "8 of 16 rows have no text in `kind`"),
        (lambda data: data.map(lambda row: {"kind": 1}), {}, "16 of 16 rows have no text in `kind`"),
        (lambda data: data.map(lambda row: {"kind": "pt"}), {}, "A kind has the name of a language"),
        (lambda data: data.remove_columns("question_language"), {}, "but not question_language"),
        (None, {"anchor_languages": ["fr"], "kl_coef": 1.0}, "'fr', but no training record.*Answered in: en, pt"),
        (lambda data: plain_rows(), {"anchor_languages": ["en"], "kl_coef": 1.0}, "the data do not say"),
        (None, {"anchor_languages": ["en", "pt"], "kl_coef": 1.0}, "names all languages"),
        (None, {"max_length": 8}, "No row is left: 16 of 16 rows of the train data set"),
        (None, {"max_length": None, "packing": True}, "needs `max_length`"),
        (None, {"dataset_kwargs": {"skip_prepare_dataset": True}}, "skip_prepare_dataset"),
    ],
)
def test_data_and_options_that_do_not_fit_are_refused_before_the_first_step(
    tiny_model, tmp_path, change, options, named
):
    with pytest.raises(SDRRLError, match=named):
        make(tiny_model, tmp_path, change(rows()) if change else rows(), **options)


def test_a_collator_of_ones_own_is_for_data_without_kinds_and_languages(tiny_model, tmp_path):
    def collate(rows):
        return DataCollatorForLanguageModeling(pad_token_id=0)([{"input_ids": row["input_ids"][-9:]} for row in rows])

    args, options = SDRRLConfig(str(tmp_path), **CPU), {"save_strategy": "no", "max_steps": 2}
    runs = [cls(tiny_model, SFTConfig(str(tmp_path), **CPU | options), collate, plain_rows()) for cls in TRAINERS]
    for trainer in runs:
        trainer.train()
    assert_equal_weights(*runs)
    with pytest.raises(SDRRLError, match="its own collator"):
        SDRRLTrainer(tiny_model, args, collate, rows())


@pytest.mark.parametrize("cls", [TrainingArguments, SFTConfig])
def test_other_configurations_are_taken_as_sft_trainer_takes_them(tiny_model, tmp_path, cls):
    args = cls(str(tmp_path), **CPU, learning_rate=3e-4, hub_token="secret", lr_scheduler_kwargs={"num_cycles": 2})
    ours, sft = (trainer(tiny_model, args, train_dataset=plain_rows()).args for trainer in TRAINERS)
    assert (ours.hub_token, ours.learning_rate, ours.lr_scheduler_kwargs) == ("secret", 3e-4, {"num_cycles": 2})
    assert {name: value for name, value in ours.to_dict().items() if name in sft.to_dict()} == sft.to_dict()
