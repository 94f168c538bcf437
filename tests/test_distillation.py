"""Weights and KL divergence of the trainer against plain logits, one row at a time."""

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import IA3Config, LoHaConfig, LoraConfig, get_peft_model
from test_trainer import rows
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Cohere2Config,
    Cohere2ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaForCausalLM,
)

from sdrrl_trl import SDRRLConfig, SDRRLError, SDRRLTrainer


LORA = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "up_proj"], "task_type": "CAUSAL_LM"}
WEIGHTS = {"kind_weights": {"target": 2.0, "translation": 0.5}, "language_weights": {"pt": 1.5}}


def make(model, tmp_path, peft=False, dataset=None, ref_model=None, processing_class=None, **options):
    defaults = {"max_length": 2048, "per_device_train_batch_size": 16, "max_steps": 1, "learning_rate": 1e-2}
    defaults |= {"save_strategy": "no", "report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True}
    return SDRRLTrainer(
        model,
        SDRRLConfig(output_dir=str(tmp_path / "out"), **{**defaults, **options}),
        train_dataset=rows() if dataset is None else dataset,
        processing_class=processing_class,
        ref_model=ref_model,
        peft_config=LoraConfig(**LORA) if peft else None,
    )


def disturb(trainer):
    """Moves the student away from its teacher, else there is no divergence."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def measured(trainer):
    """Loss of all rows in one batch, and the gradients."""
    trainer.model.train()
    (batch,) = list(trainer.get_train_dataloader())
    num_items = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=num_items)
    trainer.model.zero_grad()
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


def expected(trainer, teacher_logits, weights=None, kl_coef=0.0, direction="forward", temperature=1.0):
    """The same from plain logits, one row after the other."""
    tokenizer, weights = trainer.processing_class, weights or {}
    total, divisor = 0.0, 0.0
    for row in rows():
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        whole = tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False)
        start = len(tokenizer(prompt)["input_ids"]) - 1
        ids = torch.tensor([tokenizer(whole)["input_ids"]])
        logits = trainer.model(input_ids=ids).logits[0, start:-1]
        nll = F.cross_entropy(logits, ids[0, start + 1 :], reduction="sum")
        weight = weights.get("kind_weights", {}).get(row["kind"], 1.0)
        weight *= weights.get("language_weights", {}).get(row["answer_language"], 1.0)
        kl = 0.0
        if kl_coef:
            log_q = (logits / temperature).log_softmax(-1)
            log_p = (teacher_logits(ids)[0, start:-1] / temperature).log_softmax(-1)
            p, q = (log_p, log_q) if direction == "forward" else (log_q, log_p)
            kl = (p.exp() * (p - q)).sum()
        total, divisor = total + weight * (nll + kl_coef * kl), divisor + weight * len(logits)
    loss = total / divisor
    trainer.model.zero_grad()
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


def without_adapter(trainer):
    def logits(ids):
        with torch.no_grad(), trainer.model.disable_adapter():
            return trainer.model(input_ids=ids).logits

    return logits


def of(model):
    def logits(ids):
        with torch.no_grad():
            return model(input_ids=ids).logits

    return logits


def assert_same(actual, reference):
    torch.testing.assert_close(actual[0], reference[0], rtol=1e-5, atol=1e-5)
    assert actual[1].keys() == reference[1].keys() and actual[1]
    for name, grad in actual[1].items():
        torch.testing.assert_close(
            grad, reference[1][name], rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name} {m}"
        )


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("peft", [False, True])
def test_weights_are_those_of_a_weighted_mean_over_tokens(tiny_model, tmp_path, packing, peft):
    trainer = make(tiny_model, tmp_path, peft, packing=packing, **WEIGHTS)
    disturb(trainer)
    assert_same(measured(trainer), expected(trainer, None, WEIGHTS))


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("peft", [False, True])
@pytest.mark.parametrize("direction, temperature", [("forward", 1.0), ("reverse", 1.0), ("forward", 2.0)])
def test_the_divergence_is_that_of_plain_logits(tiny_model, tmp_path, packing, peft, direction, temperature):
    options = {"kl_coef": 0.7, "kl_direction": direction, "kl_temperature": temperature}
    trainer = make(tiny_model, tmp_path, peft, packing=packing, **options, **WEIGHTS)
    disturb(trainer)
    teacher = without_adapter(trainer) if peft else of(AutoModelForCausalLM.from_pretrained(tiny_model))
    reference = expected(trainer, teacher, WEIGHTS, 0.7, direction, temperature)
    assert_same(measured(trainer), reference)


SIZES = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "head_dim": 8}
SIZES |= {"intermediate_size": 64, "initializer_range": 0.2, "pad_token_id": 0, "eos_token_id": 2, "bos_token_id": 2}


@pytest.mark.parametrize(
    "config, cls",
    [
        (Gemma2Config(final_logit_softcapping=5.0, **SIZES), Gemma2ForCausalLM),
        (GraniteConfig(logits_scaling=4.0, **{k: v for k, v in SIZES.items() if k != "head_dim"}), GraniteForCausalLM),
        (Cohere2Config(logit_scale=0.3, **SIZES), Cohere2ForCausalLM),
    ],
)
def test_soft_capped_and_scaled_logits_are_right(tiny_model, tmp_path, config, cls):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config.vocab_size = len(tokenizer)
    torch.manual_seed(0)
    model, ref_model = cls(config), cls(config)
    ref_model.load_state_dict(model.state_dict())
    trainer = make(model, tmp_path, ref_model=ref_model, processing_class=tokenizer, kl_coef=0.7)
    disturb(trainer)
    teacher = cls(config)
    teacher.load_state_dict(ref_model.state_dict())
    reference = expected(trainer, of(teacher.eval()), None, 0.7)
    assert_same(measured(trainer), reference)


def test_a_weight_of_two_acts_as_having_each_row_twice(tiny_model, tmp_path):
    doubled = [row for row in rows() for _ in range(2 if row["kind"] == "target" else 1)]
    weighted = make(tiny_model, tmp_path, kind_weights={"target": 2.0})
    twice = make(tiny_model, tmp_path, dataset=Dataset.from_list(doubled), per_device_train_batch_size=32)
    assert_same(measured(weighted), measured(twice))


def test_tiny_weights_act_by_their_ratios(tiny_model, tmp_path):
    small = make(tiny_model, tmp_path, kind_weights=dict.fromkeys(set(rows()["kind"]), 1e-06))
    plain = make(tiny_model, tmp_path)
    assert_same(measured(small), measured(plain))


def test_the_divergence_is_zero_at_the_start_and_the_teacher_stays_as_it_was(tiny_model, tmp_path):
    for peft in (False, True):
        trainer = make(tiny_model, tmp_path, peft, kl_coef=1.0, max_steps=3, logging_steps=1)
        trainer.train()
        log = trainer.state.log_history
        assert abs(log[0]["kl/pt"]) < 1e-6 < 1e-3 < log[2]["kl/pt"]
        initial = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
        if peft:
            found = {
                name.replace(".base_layer", ""): p for name, p in trainer.model.get_base_model().named_parameters()
            }
        else:
            found = dict(trainer.ref_model.named_parameters())
        compared = [name for name in initial if name in found]
        assert len(compared) > 10
        assert all(torch.equal(found[name], initial[name]) for name in compared)


def test_training_on_from_an_adapter_keeps_a_copy_of_it_as_teacher(tiny_model, tmp_path):
    torch.manual_seed(3)
    lora = LoraConfig(**LORA, init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), lora)
    ids = torch.tensor([[5, 6, 7, 8]])
    before = model(input_ids=ids).logits.detach()
    trainer = make(model, tmp_path, processing_class=AutoTokenizer.from_pretrained(tiny_model), kl_coef=1.0)
    metrics = trainer.evaluate(rows())
    assert abs(metrics["eval_kl/pt"]) < 1e-6  # of the adapter, not of the bare model
    disturb(trainer)
    trainer.train()
    assert trainer.evaluate(rows())["eval_kl/pt"] > 1e-3
    trainer.model.set_adapter("sdrrl_teacher")
    torch.testing.assert_close(trainer.model(input_ids=ids).logits.detach(), before)


def test_dropout_is_off_in_the_teacher(tiny_model, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, attention_dropout=0.5)
    ref_model = AutoModelForCausalLM.from_pretrained(tiny_model, attention_dropout=0.5)
    trainer = make(
        model, tmp_path, ref_model=ref_model, kl_coef=1.0, processing_class=AutoTokenizer.from_pretrained(tiny_model)
    )
    from sdrrl_trl.trainer.teacher import teacher_states

    (batch,) = list(trainer.get_train_dataloader())
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    trainer.ref_model.train()
    first, second = (teacher_states(trainer.model, trainer.ref_model, None, inputs)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert trainer.ref_model.training


def test_dpsw_weights_have_a_mean_of_one_and_grow_with_certainty_and_surprise(tiny_model, tmp_path):
    from sdrrl_trl.trainer.divergence import Head, dpsw_weights

    identity = Head(torch.eye(4, dtype=torch.float64))
    sure, unsure = [9.0, 0.0, 0.0, 0.0], [0.1, 0.0, 0.0, 0.0]
    teacher = torch.tensor([sure, sure, unsure, unsure], dtype=torch.float64)
    student = torch.tensor([unsure, sure, unsure, sure], dtype=torch.float64)
    labels = torch.zeros(4, dtype=torch.long)
    weights = dpsw_weights(student, identity, labels, teacher, identity, top_k=3, chunk_size=3)
    assert weights.mean() == pytest.approx(1.0)
    assert weights[0] == weights.max() and weights[0] > 3
    # by hand: the second token's factor
    p = torch.tensor(sure[:3], dtype=torch.float64).softmax(-1)
    certainty = 1 + (p * p.log()).sum() / torch.tensor(3.0).log()
    q = torch.tensor(sure, dtype=torch.float64).softmax(-1)[0]
    ratio = certainty * (1 - q) / (certainty * (1 - torch.tensor(unsure, dtype=torch.float64).softmax(-1)[0]))
    assert weights[1] / weights[0] == pytest.approx(ratio.item())
    trainer = make(tiny_model, tmp_path, True, kl_coef=1.0, kl_token_weights="dpsw")
    disturb(trainer)
    plain = make(tiny_model, tmp_path, True, kl_coef=1.0)
    disturb(plain)
    assert measured(trainer)[0] != measured(plain)[0]


def test_a_teacher_with_another_vocabulary_is_refused(tiny_model, tmp_path):
    config = AutoModelForCausalLM.from_pretrained(tiny_model).config
    config.vocab_size += 5
    with pytest.raises(SDRRLError, match="vocabulary"):
        make(tiny_model, tmp_path, ref_model=AutoModelForCausalLM.from_config(config), kl_coef=1.0)


def test_a_teacher_is_asked_for_where_none_can_be_found(tiny_model, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    with pytest.raises(SDRRLError, match="needs the frozen initial model"):
        make(model, tmp_path, processing_class=tokenizer, kl_coef=1.0)
    with pytest.raises(SDRRLError, match="the model itself"):
        make(model, tmp_path, ref_model=model, processing_class=tokenizer, kl_coef=1.0)


@pytest.mark.parametrize(
    "adapter",
    [
        IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], init_ia3_weights=False),
        LoHaConfig(r=2, target_modules=["q_proj"], init_weights=False),
        LoraConfig(r=2, target_modules=["embed_tokens"], init_lora_weights=False),
        LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa"),
    ],
    ids=["ia3", "loha", "embedding lora", "pissa"],
)
def test_any_adapter_that_comes_with_the_model_is_copied_and_the_model_stays_as_it_was(tiny_model, tmp_path, adapter):
    torch.manual_seed(3)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), adapter)
    ids = torch.tensor([[5, 6, 7, 8]])
    before = model.eval()(input_ids=ids).logits.detach()
    trainer = make(model, tmp_path, processing_class=AutoTokenizer.from_pretrained(tiny_model), kl_coef=1.0)
    torch.testing.assert_close(trainer.model.eval()(input_ids=ids).logits.detach(), before, rtol=1e-4, atol=1e-4)
    assert abs(trainer.evaluate(rows())["eval_kl/pt"]) < 1e-5


@pytest.mark.parametrize("options", [{"init_lora_weights": "pissa"}, {"bias": "lora_only"}])
def test_adapters_that_change_the_base_model_are_no_way_back_to_it(tiny_model, tmp_path, options):
    args = SDRRLConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", kl_coef=1.0)
    with pytest.raises(SDRRLError, match="not the initial model"):
        SDRRLTrainer(tiny_model, args, train_dataset=rows(), peft_config=LoraConfig(**{**LORA, **options}))


def test_a_model_is_not_its_own_reference_even_when_an_adapter_is_put_on_it(tiny_model, tmp_path):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    with pytest.raises(SDRRLError, match="the model itself"):
        make(model, tmp_path, True, ref_model=model, processing_class=tokenizer, kl_coef=1.0)
    with pytest.raises(SDRRLError, match="does nothing without `kl_coef`"):
        make(tiny_model, tmp_path, ref_model=tiny_model)


@pytest.mark.parametrize("accepts", [True, False])
def test_accumulation_does_not_change_a_weighted_loss(tiny_model, tmp_path, accepts, monkeypatch):
    monkeypatch.setattr(LlamaForCausalLM, "accepts_loss_kwargs", accepts, raising=False)
    logs = []
    for batch, steps in ((16, 1), (2, 8)):
        options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps, "logging_steps": 1}
        trainer = make(tiny_model, tmp_path, **options, **WEIGHTS)
        trainer.train()
        logs.append(trainer.state.log_history[0])
    for name in ("loss", "grad_norm", "nll/pt", "bpb/en"):
        assert logs[0][name] == pytest.approx(logs[1][name], rel=1e-5), name


def test_the_evaluation_loss_is_the_training_objective_whatever_the_batch_size(tiny_model, tmp_path):
    options = {"kind_weights": {"target": 50.0}}
    trainers = [make(tiny_model, tmp_path, per_device_eval_batch_size=n, **options) for n in (1, 4, 16)]
    losses = [trainer.evaluate(rows())["eval_loss"] for trainer in trainers]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    trainer = make(tiny_model, tmp_path, kind_weights={"target": 50.0})
    assert losses[0] == pytest.approx(expected(trainer, None, {"kind_weights": {"target": 50.0}})[0].item(), rel=1e-4)


def test_evaluation_before_training_in_bf16(tiny_model, tmp_path):
    for dtype in ("float32", "bfloat16"):
        options = {"bf16": True, "model_init_kwargs": {"dtype": dtype}, "kl_coef": 1.0}
        assert abs(make(tiny_model, tmp_path, **options).evaluate(rows())["eval_kl/pt"]) < 1e-6
