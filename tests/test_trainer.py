import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

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


def train(cls, config, model, tmp_path, dataset=None, peft=False, **options):
    args = config(
        output_dir=str(tmp_path / "out"),
        report_to="none",
        use_cpu=True,
        bf16=False,
        max_steps=3,
        logging_steps=1,
        save_strategy="no",
        learning_rate=1e-2,
        max_length=128,
        disable_tqdm=True,
        **options,
    )
    peft_config = LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "up_proj"]) if peft else None
    dataset = rows() if dataset is None else dataset
    trainer = cls(model, args, train_dataset=dataset, peft_config=peft_config)
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    "options", [{}, {"packing": True}, {"packing": True, "shuffle_dataset": True}, {"peft": True}]
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
def test_the_logged_loss_of_each_kind_and_language_is_the_mean_over_its_tokens(tiny_model, tmp_path, packing):
    trainer = train(SDRRLTrainer, SDRRLConfig, tiny_model, tmp_path, packing=packing)
    metrics = trainer.evaluate({"all": rows()})
    trained = {name: parameter.detach() for name, parameter in trainer.model.named_parameters()}
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    model.load_state_dict(trained, strict=False)
    model.tie_weights()
    sums = {}
    for row in rows():
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        whole = tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False)
        prompt, whole = (tokenizer(text)["input_ids"] for text in (prompt, whole))
        with torch.no_grad():
            log_probs = model(torch.tensor([whole])).logits[0, :-1].log_softmax(-1)
        nll = -log_probs.gather(-1, torch.tensor(whole[1:])[:, None])[len(prompt) - 1 :]
        for name in (row["kind"], row["answer_language"]):
            total, count = sums.get(name, (0.0, 0))
            sums[name] = (total + nll.sum().item(), count + len(nll))
    assert set(sums) == {"source", "target", "source_to_target", "translation", "en", "pt"}
    for name, (total, count) in sums.items():
        assert metrics[f"eval_nll/{name}"] == pytest.approx(total / count, abs=1e-4)


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


def test_rows_of_a_group_that_training_lacks_are_refused_by_name(tiny_model, tmp_path):
    trainer = train(
        SDRRLTrainer, SDRRLConfig, tiny_model, tmp_path, rows().filter(lambda row: row["kind"] != "target")
    )
    with pytest.raises(SDRRLError, match="'target', 'pt', 'pt'"):
        trainer.evaluate({"all": rows()})


@pytest.mark.parametrize(
    "option, named", [({"loss_type": "dft"}, "loss_type"), ({"packing_strategy": "wrapped"}, "bfd")]
)
def test_options_that_cannot_be_honoured_are_refused(tmp_path, option, named):
    with pytest.raises(SDRRLError, match=named):
        SDRRLConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, packing=True, **option)


def test_another_config_class_is_refused(tiny_model, tmp_path):
    args = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    with pytest.raises(SDRRLError, match="SDRRLConfig"):
        SDRRLTrainer(tiny_model, args, train_dataset=rows())


def test_the_log_is_json(tiny_model, tmp_path):
    trainer = train(SDRRLTrainer, SDRRLConfig, tiny_model, tmp_path, packing=True)
    assert "nll/pt" in json.loads(json.dumps(trainer.state.log_history))[0]
