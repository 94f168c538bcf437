import pytest
import torch
import torch.nn.functional as F

from sdrrl_trl.trainer.divergence import Head, chunked_distillation


N, H, V = 11, 6, 17


def inputs(dtype=torch.float64, bias=True):
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    student, weight = randn(N, H).requires_grad_(), randn(V, H).requires_grad_()
    offset = randn(V).requires_grad_() if bias else None
    teacher, teacher_weight = randn(N, H + 2), randn(V, H + 2)
    labels = torch.randint(V, (N,), generator=generator)
    return student, weight, offset, teacher, teacher_weight, labels, randn(N).abs(), randn(N).abs()


def plain(student, weight, bias, teacher, teacher_weight, labels, a, b, direction, temperature, scale, cap):
    logits, teacher_logits = scale * F.linear(student, weight, bias), scale * (teacher @ teacher_weight.T)
    if cap is not None:
        logits, teacher_logits = cap * torch.tanh(logits / cap), cap * torch.tanh(teacher_logits / cap)
    nll = F.cross_entropy(logits, labels, reduction="none")
    log_q, log_p = (logits / temperature).log_softmax(-1), (teacher_logits / temperature).log_softmax(-1)
    p, q = (log_p, log_q) if direction == "forward" else (log_q, log_p)
    kl = (p.exp() * (p - q)).sum(-1)
    return (a * nll + b * kl).sum(), nll, kl


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(
    "scale, cap, bias", [(1.0, None, True), (0.3, None, False), (1.0, 2.0, False), (0.5, 3.0, True)]
)
def test_value_and_gradients_are_those_of_plain_logits(direction, temperature, scale, cap, bias):
    student, weight, offset, teacher, teacher_weight, labels, a, b = inputs(bias=bias)
    expected, nll, kl = plain(
        student, weight, offset, teacher, teacher_weight, labels, a, b, direction, temperature, scale, cap
    )
    leaves = [student, weight, offset] if bias else [student, weight]
    expected_grads = torch.autograd.grad(3 * expected, leaves)
    result = chunked_distillation(
        student,
        Head(weight, offset, scale, cap),
        labels,
        teacher,
        Head(teacher_weight, None, scale, cap),
        a,
        b,
        direction,
        temperature,
        chunk_size=4,
    )
    torch.testing.assert_close(result.total, expected)
    torch.testing.assert_close(result.nll, nll)
    torch.testing.assert_close(result.kl, kl)
    for actual, grad in zip(torch.autograd.grad(3 * result.total, leaves), expected_grads, strict=True):
        torch.testing.assert_close(actual, grad)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_gradcheck(direction):
    student, weight, offset, teacher, teacher_weight, labels, a, b = inputs()

    def total(student, weight, offset):
        head, teacher_head = Head(weight, offset, 0.7, 4.0), Head(teacher_weight)
        return chunked_distillation(student, head, labels, teacher, teacher_head, a, b, direction, 1.5, 4).total

    assert torch.autograd.gradcheck(total, (student, weight, offset))


def test_entropy_and_top1_are_those_of_the_student():
    student, weight, offset, teacher, teacher_weight, labels, a, b = inputs()
    logits = F.linear(student, weight, offset)
    result = chunked_distillation(student, Head(weight, offset), labels, teacher, Head(teacher_weight), a, b)
    torch.testing.assert_close(result.entropy, torch.distributions.Categorical(logits=logits).entropy())
    assert torch.equal(result.is_top1, logits.argmax(-1) == labels)


def test_a_frozen_head_gets_no_gradient_and_no_tokens_give_zero():
    student, weight, offset, teacher, teacher_weight, labels, a, b = inputs()
    frozen = Head(weight.detach(), offset.detach())
    result = chunked_distillation(student, frozen, labels, teacher, Head(teacher_weight), a, b)
    result.total.backward()
    assert student.grad is not None and weight.grad is None
    none = slice(0, 0)
    empty = chunked_distillation(
        student[none], frozen, labels[none], teacher[none], Head(teacher_weight), a[none], b[none]
    )
    empty.total.backward()
    assert empty.total == 0


def test_low_precision_is_near_the_exact_value():
    student, weight, _, teacher, teacher_weight, labels, a, b = inputs(torch.float32, bias=False)
    exact = chunked_distillation(student, Head(weight), labels, teacher, Head(teacher_weight), a, b)
    low = chunked_distillation(
        student.bfloat16(), Head(weight.bfloat16()), labels, teacher.bfloat16(), Head(teacher_weight.bfloat16()), a, b
    )
    torch.testing.assert_close(low.total, exact.total, rtol=0.03, atol=0)
