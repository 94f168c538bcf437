"""The KL divergence against plain logits: of the chunked function in float64, of the trainer one row at a time."""

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from peft import IA3Config, LoraConfig, OFTConfig, get_peft_model
from test_trainer import CPU, LORA, make, plain_rows, rows, tokenized, train
from transformers import AutoModelForCausalLM, AutoTokenizer, Cohere2Config, Gemma2Config, GraniteConfig

from sdrrl_trl import SDRRLConfig, SDRRLError, SDRRLTrainer
from sdrrl_trl.trainer.divergence import Head, chunked_distillation
from sdrrl_trl.trainer.teacher import teacher_states


N, H, V = 11, 6, 17


def inputs(dtype=torch.float64, bias=True):
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    student, weight = randn(N, H).requires_grad_(), randn(V, H).requires_grad_()
    offset = randn(V).requires_grad_() if bias else None
    teacher, teacher_weight = randn(N, H + 2), randn(V, H + 2)
    labels = torch.randint(V, (N,), generator=generator)
    return student, weight, offset, teacher, teacher_weight, labels


@pytest.mark.parametrize("anchors", [False, True])
@pytest.mark.parametrize(
    "scale, cap, bias", [(1.0, None, True), (0.3, None, False), (1.0, 2.0, False), (0.5, 3.0, True)]
)
def test_values_and_gradients_are_those_of_plain_logits(scale, cap, bias, anchors):
    student, weight, offset, teacher, teacher_weight, labels = inputs(bias=bias)
    logits, teacher_logits = scale * F.linear(student, weight, offset), scale * (teacher @ teacher_weight.T)
    if cap is not None:
        logits, teacher_logits = cap * torch.tanh(logits / cap), cap * torch.tanh(teacher_logits / cap)
    log_p, log_q = teacher_logits.log_softmax(-1), logits.log_softmax(-1)
    nll, kl = F.cross_entropy(logits, labels, reduction="none"), (log_p.exp() * (log_p - log_q)).sum(-1)
    leaves = [student, weight, offset] if bias else [student, weight]
    anchored = torch.arange(N) % 3 == 1 if anchors else None
    expected = nll[~anchored].sum() + 0.7 * kl[anchored].sum() if anchors else (nll + 0.7 * kl).sum()
    expected_grads = torch.autograd.grad(3 * expected, leaves)

    heads = Head(weight, offset, scale, cap), Head(teacher_weight, None, scale, cap)
    result = chunked_distillation(student, heads[0], labels, teacher, heads[1], 0.7, anchored, chunk_size=4)
    torch.testing.assert_close((result.loss, result.log_probs, result.kl), (expected, -nll, kl))
    for actual, grad in zip(torch.autograd.grad(3 * result.loss, leaves), expected_grads, strict=True):
        torch.testing.assert_close(actual, grad)
    torch.testing.assert_close(result.entropy, torch.distributions.Categorical(logits=logits).entropy())
    assert torch.equal(result.is_top1, logits.argmax(-1) == labels)


def test_a_frozen_head_gets_no_gradient_and_no_tokens_give_zero():
    student, weight, offset, teacher, teacher_weight, labels = inputs()
    head, teacher_head = Head(weight.detach(), offset.detach()), Head(teacher_weight)
    chunked_distillation(student, head, labels, teacher, teacher_head, 0.7).loss.backward()
    assert student.grad is not None and weight.grad is None
    none = slice(0, 0)
    empty = chunked_distillation(student[none], head, labels[none], teacher[none], teacher_head, 0.7)
    empty.loss.backward()
    assert empty.loss == 0


def test_low_precision_is_near_the_exact_value():
    student, weight, _, teacher, teacher_weight, labels = inputs(torch.float32, bias=False)
    exact = chunked_distillation(student, Head(weight), labels, teacher, Head(teacher_weight), 0.7)
    heads = Head(weight.bfloat16()), Head(teacher_weight.bfloat16())
    low = chunked_distillation(student.bfloat16(), heads[0], labels, teacher.bfloat16(), heads[1], 0.7)
    torch.testing.assert_close(low.loss, exact.loss, rtol=0.03, atol=0)
    with torch.autocast("cpu", torch.bfloat16):  # of weights in float32, as mixed precision has them
        mixed = chunked_distillation(student, Head(weight), labels, teacher, Head(teacher_weight), 0.7)
    torch.testing.assert_close(mixed.log_probs, low.log_probs, rtol=1e-6, atol=1e-6)
    gradients = (torch.autograd.grad(result.loss, (student, weight)) for result in (mixed, exact))
    for actual, expected in zip(*gradients, strict=True):
        assert actual.dtype == torch.float32 and (actual - expected).norm() < 0.03 * expected.norm()


def of_objects(model, tokenizer, tmp_path, ref_model=None, peft_config=None, **options):
    """A trainer of a model that is loaded already."""
    args = SDRRLConfig(str(tmp_path), kl_coef=0.7, **{**CPU, "per_device_train_batch_size": 16, **options})
    tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    return SDRRLTrainer(model, args, None, rows(), None, tokenizer, ref_model=ref_model, peft_config=peft_config)


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
    return gradients(trainer.model, loss)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def expected(trainer, teacher_logits, kl_coef=0.7, anchors=None):
    """The same from plain logits, one row after the other."""
    total, n = 0.0, 0
    for row, ids, start in tokenized(trainer.processing_class):
        logits = trainer.model(input_ids=ids).logits[0, start - 1 : -1]
        log_p, log_q = teacher_logits(ids)[0, start - 1 : -1].log_softmax(-1), logits.log_softmax(-1)
        nll = F.cross_entropy(logits, ids[0, start:], reduction="sum")
        kl = kl_coef * (log_p.exp() * (log_p - log_q)).sum()
        if anchors:
            total = total + (kl if row["answer_language"] in anchors else nll)
        else:
            total = total + nll + kl
        n += len(logits)
    return gradients(trainer.model, total / n)


def of(model, context=nullcontext):
    """Logits of a teacher."""

    def logits(ids):
        with torch.no_grad(), context():
            return model(input_ids=ids).logits

    return logits


def assert_same(actual, reference):
    torch.testing.assert_close(actual[0], reference[0], rtol=1e-5, atol=1e-5)
    assert actual[1].keys() == reference[1].keys() and actual[1]
    for name, grad in actual[1].items():
        torch.testing.assert_close(
            grad, reference[1][name], rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name} {m}"
        )


@pytest.mark.parametrize("anchors", [None, ["en"]])
@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("peft", [False, True])
def test_the_loss_is_that_of_plain_logits(tiny_model, tmp_path, packing, peft, anchors):
    options = {"packing": packing, "max_length": 2048, "per_device_train_batch_size": 16, "kl_coef": 0.7}
    options["anchor_languages"] = anchors
    dataset = rows() if anchors or not packing else plain_rows()  # with kinds and languages or without
    trainer = make(tiny_model, tmp_path, dataset, peft_config=LORA if peft else None, **options)
    disturb(trainer)
    initial = AutoModelForCausalLM.from_pretrained(tiny_model)
    teacher = of(trainer.model, trainer.model.disable_adapter) if peft else of(initial)
    assert_same(measured(trainer), expected(trainer, teacher, anchors=anchors))


@pytest.mark.parametrize("peft", [False, True])
def test_the_gradient_of_anchored_records_is_exactly_zero_at_the_start(tiny_model, tmp_path, peft):
    options = {"kl_coef": 4.0, "per_device_train_batch_size": 16, "peft_config": LORA if peft else None}
    trainer = make(tiny_model, tmp_path, anchor_languages=["en"], **options)
    english = [i for i, row in enumerate(rows()) if row["answer_language"] == "en"]
    trainer.train_dataset = trainer.train_dataset.select(english)
    loss, grads = measured(trainer)
    assert loss == 0 and grads and all(grad.abs().max() == 0 for grad in grads.values())
    loss, grads = measured(make(tiny_model, tmp_path, rows(), anchor_languages=["en"], **options))
    assert loss > 0 and any(grad.abs().max() > 0 for grad in grads.values())


SIZES = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
SIZES |= {"intermediate_size": 64, "initializer_range": 0.2, "pad_token_id": 0, "eos_token_id": 2, "bos_token_id": 2}


@pytest.mark.parametrize(
    "config",
    [
        Gemma2Config(final_logit_softcapping=5.0, head_dim=8, **SIZES),
        GraniteConfig(logits_scaling=4.0, **SIZES),
        Cohere2Config(logit_scale=0.3, head_dim=8, **SIZES),
    ],
)
def test_soft_capped_and_scaled_logits_are_right(tiny_model, tmp_path, config):
    config.vocab_size = len(AutoTokenizer.from_pretrained(tiny_model))
    torch.manual_seed(0)
    models = [AutoModelForCausalLM.from_config(config) for _ in range(3)]
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())
    trainer = of_objects(models[0], tiny_model, tmp_path, ref_model=models[1])
    disturb(trainer)
    assert_same(measured(trainer), expected(trainer, of(models[2].eval())))


@pytest.mark.parametrize("anchors", [None, ["en"]])
def test_accumulation_does_not_change_the_loss(tiny_model, tmp_path, anchors):
    logs = []
    for batch, steps in ((16, 1), (2, 8)):
        options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps, "max_steps": 1}
        options["anchor_languages"] = anchors
        trainer = make(tiny_model, tmp_path, kl_coef=0.7, peft_config=LORA, **options)
        disturb(trainer)
        trainer.train()
        logs.append(trainer.state.log_history[0])
    for name in ("loss", "grad_norm", "nll/pt", "bpb/en", "kl/pt"):
        assert logs[0][name] == pytest.approx(logs[1][name], rel=1e-5), name


@pytest.mark.parametrize("peft", [False, True])
def test_the_divergence_is_zero_at_the_start_and_the_teacher_stays_as_it_was(tiny_model, tmp_path, peft):
    trainer = train(tiny_model, tmp_path, peft_config=LORA if peft else None, kl_coef=1.0)
    log = trainer.state.log_history
    assert abs(log[0]["kl/pt"]) < 1e-6 < 1e-3 < log[2]["kl/pt"]
    initial = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    teacher = trainer.model.get_base_model() if peft else trainer.ref_model
    found = {name.replace(".base_layer", ""): p for name, p in teacher.named_parameters()}
    compared = [name for name in initial if name in found]
    assert len(compared) > 10
    assert all(torch.equal(found[name], initial[name]) for name in compared)


@pytest.mark.parametrize(
    "adapter",
    [
        LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False),
        IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], init_ia3_weights=False),
        LoraConfig(r=2, target_modules=["embed_tokens"], init_lora_weights=False),
        LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa"),
    ],
    ids=["lora", "ia3", "embedding lora", "pissa"],
)
def test_training_on_from_any_adapter_keeps_a_copy_of_it_as_teacher(tiny_model, tmp_path, adapter):
    torch.manual_seed(3)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), adapter)
    ids = torch.tensor([[5, 6, 7, 8]])
    before = model.eval()(input_ids=ids).logits.detach()
    trainer = of_objects(model, tiny_model, tmp_path, max_steps=1, learning_rate=1e-2)
    assert abs(trainer.evaluate(rows())["eval_kl/pt"]) < 1e-5  # of the adapter, not of the bare model
    disturb(trainer)
    trainer.train()
    assert trainer.evaluate(rows())["eval_kl/pt"] > 1e-4
    trainer.model.set_adapter("sdrrl_teacher")
    torch.testing.assert_close(trainer.model.eval()(input_ids=ids).logits.detach(), before, rtol=1e-4, atol=1e-4)


def test_tokens_that_a_chat_template_adds_need_an_adapter(tiny_model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_tokens(["<|turn|>"], special_tokens=True)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>", "<|turn|>")
    tokenizer.save_pretrained(tmp_path / "template")
    options = {"chat_template_path": str(tmp_path / "template"), "kl_coef": 0.7}
    log = train(tiny_model, tmp_path, peft_config=copy.deepcopy(LORA), **options).state.log_history  # TRL changes it
    assert abs(log[0]["kl/pt"]) < 1e-6 < 1e-3 < log[2]["kl/pt"]
    with pytest.raises(SDRRLError, match="add them to the model first"):
        make(tiny_model, tmp_path, **options)


def test_dropout_is_off_in_the_teacher(tiny_model, tmp_path):
    trainer = make(tiny_model, tmp_path, kl_coef=1.0, model_init_kwargs={"attention_dropout": 0.5})
    (batch,) = list(trainer.get_eval_dataloader(trainer.train_dataset.select(range(8))))
    batch = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    trainer.ref_model.train()
    first, second = (teacher_states(trainer.model, trainer.ref_model, None, batch)[0] for _ in range(2))
    assert torch.equal(first, second) and trainer.ref_model.training


@pytest.mark.parametrize(
    "adapter",
    [
        LoraConfig(target_modules=["q_proj"], init_lora_weights="pissa"),
        LoraConfig(target_modules=["q_proj"], bias="lora_only"),
        OFTConfig(target_modules=["q_proj"], oft_block_size=4, bias="all"),
    ],
    ids=["pissa", "bias", "oft bias"],
)
def test_adapters_that_change_the_base_model_are_no_way_back_to_it(tiny_model, tmp_path, adapter):
    with pytest.raises(SDRRLError, match="not the initial model"):
        make(tiny_model, tmp_path, peft_config=adapter, kl_coef=1.0)


def test_a_teacher_must_be_there_another_model_and_of_the_same_vocabulary(tiny_model, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with pytest.raises(SDRRLError, match="needs the frozen initial model"):
        of_objects(model, tiny_model, tmp_path)
    for peft_config in (None, LORA):
        with pytest.raises(SDRRLError, match="the model itself"):
            of_objects(model, tiny_model, tmp_path, ref_model=model, peft_config=peft_config)
    config = AutoModelForCausalLM.from_pretrained(tiny_model).config
    config.vocab_size += 5
    with pytest.raises(SDRRLError, match="vocabulary"):
        of_objects(model, tiny_model, tmp_path, ref_model=AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_evaluation_before_training_in_bf16(tiny_model, tmp_path, dtype):
    trainer = make(tiny_model, tmp_path, bf16=True, model_init_kwargs={"dtype": dtype}, kl_coef=1.0)
    assert abs(trainer.evaluate(rows())["eval_kl/pt"]) < 1e-6
