"""Negative log-likelihood and KL divergence to a frozen teacher in chunks of tokens: no logits ever exist in full."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from trl.trainer.utils import FusedCausalLMOutput


@dataclass(frozen=True)
class Head:
    """
    Language-model head with what the model does to its logits: `cap * tanh(scale * (hidden @ weight.T + bias) / cap)`.

    Args:
        weight (`torch.Tensor` of shape `(V, H)`): Projection to the vocabulary.
        bias (`torch.Tensor` of shape `(V,)`, *optional*): Bias of the projection.
        scale (`float`, *optional*, defaults to `1.0`): Factor of the logits (Cohere, Granite).
        cap (`float`, *optional*): Soft cap of the logits (Gemma 2 and 3).
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0
    cap: float | None = None

    def cast(self) -> "Head":
        """The head in the data type of autocast, which would convert the whole of it anew for each chunk."""
        kind = self.weight.device.type
        if not torch.is_autocast_enabled(kind):
            return self
        dtype = torch.get_autocast_dtype(kind)
        return replace(self, weight=self.weight.to(dtype), bias=None if self.bias is None else self.bias.to(dtype))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits in at least float32, shape `(N, V)`."""
        logits = torch.nn.functional.linear(hidden.to(self.weight.device, self.weight.dtype), self.weight, self.bias)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else logits.div_(self.cap).tanh_().mul_(self.cap)


@dataclass
class DistillationOutput(FusedCausalLMOutput):
    """
    Result of [`chunked_distillation`], in the form of TRL's fused head: of `N` tokens, or spread over `(B, L - 1)`
    with 0 at those that have no label. Only `loss` has a gradient.

    Args:
        loss (`torch.Tensor`): Sum over the tokens of their loss in nats, not divided by their number, a scalar.
        log_probs (`torch.Tensor`): Log-probability of each label.
        entropy (`torch.Tensor`): Entropy of the student in nats.
        is_top1 (`torch.Tensor`): Whether the label is the student's most likely token.
        label_mask (`torch.Tensor` of shape `(B, L - 1)`, *optional*): Which tokens have a label.
        kl (`torch.Tensor`): KL(teacher || student) in nats.
    """

    kl: torch.Tensor | None = None

    def spread(self, mask: torch.Tensor) -> "DistillationOutput":
        """With each value where `mask`, of shape `(B, L - 1)`, has its token."""
        values = {name: getattr(self, name) for name in ("log_probs", "entropy", "is_top1", "kl")}
        values = {name: value.new_zeros(mask.shape).masked_scatter(mask, value) for name, value in values.items()}
        return replace(self, label_mask=mask, **values)


def chunked_distillation(
    student: torch.Tensor,
    student_head: Head,
    labels: torch.Tensor,
    teacher: torch.Tensor,
    teacher_head: Head,
    kl_coef: float,
    anchored: torch.Tensor | None = None,
    chunk_size: int | None = None,
) -> DistillationOutput:
    """
    `sum_t nll_t + kl_coef * KL(teacher_t || student_t)`, or, with `anchored`, the first term for the tokens that are
    not anchored and the second for those that are. The gradients are formed in the forward pass, chunk by chunk.

    Memory beside the inputs, as measured with a head in bfloat16: `8.5 * chunk_size * V` floats and one `(N, H)`
    gradient; if the head is trained, one `(V, H)` gradient in float32, and 1.5 times as much while a chunk's part is
    added to it. The logits' part does not grow with `N`.

    Args:
        student (`torch.Tensor` of shape `(N, H)`):
            Last hidden states of the tokens that predict `labels`.
        student_head ([`Head`]):
            Head of the student.
        labels (`torch.Tensor` of shape `(N,)`):
            Token ids.
        teacher (`torch.Tensor` of shape `(N, H')`):
            Last hidden states of the teacher at the same tokens.
        teacher_head ([`Head`]):
            Head of the teacher, over the same vocabulary.
        kl_coef (`float`):
            Coefficient of the divergence.
        anchored (`torch.Tensor` of shape `(N,)`, *optional*):
            Whether a token has its divergence in the place of its negative log-likelihood.
        chunk_size (`int`, *optional*):
            Number of tokens whose logits exist at the same time. Default: 128 on a CPU, 512 elsewhere.
    """
    # An H200 (vocabulary of 152k) takes with 512 0.79 of the time of 128, 0.50 if the head is trained; with 1024 it
    # takes 0.77 and 0.43, and 2.5 GB more (`benchmarks/gpu_h200.txt`)
    chunk_size = chunk_size or (128 if student.device.type == "cpu" else 512)
    head = student_head  # its tensors apart: autograd only follows what is handed over as such
    arguments = (head.scale, head.cap, labels, teacher.detach(), teacher_head, kl_coef, anchored, chunk_size)
    loss, *values = _ChunkedDistillation.apply(student, head.weight, head.bias, *arguments)
    return DistillationOutput(loss, **dict(zip(("log_probs", "kl", "entropy", "is_top1"), values, strict=True)))


class _ChunkedDistillation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *arguments: Any
    ) -> tuple[torch.Tensor, ...]:
        scale, cap, labels, teacher, teacher_head, kl_coef, anchored, chunk_size = arguments
        head = Head(weight.detach(), None if bias is None else bias.detach(), scale, cap).cast()
        teacher_head = teacher_head.cast()
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        # Sums over chunks in the data type of training would lose what is small beside the sum
        exact = torch.promote_types(student.dtype, torch.float32)
        grad_hidden = torch.empty_like(student) if need_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=exact) if need_weight else None
        grad_bias = torch.zeros_like(bias, dtype=exact) if need_bias else None
        log_probs, kl, entropy = (student.new_zeros(len(student), dtype=exact) for _ in range(3))
        is_top1 = torch.zeros(len(student), dtype=torch.bool, device=student.device)
        for start in range(0, len(student), chunk_size):
            rows = slice(start, start + chunk_size)
            logits = head.logits(student[rows])
            log_q = logits.log_softmax(-1)
            log_p = teacher_head.logits(teacher[rows]).log_softmax(-1)
            p, q = log_p.exp(), log_q.exp()
            log_probs[rows] = log_q.gather(-1, labels[rows, None]).squeeze(-1)
            entropy[rows] = -(q * log_q).sum(-1)
            is_top1[rows] = logits.argmax(-1) == labels[rows]
            kl[rows] = (p * (log_p - log_q)).sum(-1)
            # d KL / d logits = q - p; d nll / d logits = q - [label]
            d_kl = p.neg_().add_(q).mul_(kl_coef)
            grad = q
            grad.scatter_add_(-1, labels[rows, None], grad.new_full((len(grad), 1), -1.0))
            if anchored is not None:
                grad *= ~anchored[rows, None]
                d_kl *= anchored[rows, None]
            grad += d_kl
            if cap is not None:
                grad *= 1 - (logits / cap) ** 2  # d tanh
            grad = (grad * scale if scale != 1.0 else grad).to(head.weight.dtype)
            if need_hidden:
                grad_hidden[rows] = grad @ head.weight
            if need_weight:
                grad_weight += (grad.T @ student[rows].to(grad.dtype)).to(grad_weight.dtype)
            if need_bias:
                grad_bias += grad.sum(0).to(grad_bias.dtype)
        grad_weight = grad_weight.to(weight.dtype) if need_weight else None
        grad_bias = grad_bias.to(bias.dtype) if need_bias else None
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.mark_non_differentiable(log_probs, kl, entropy, is_top1)
        losses = kl_coef * kl - log_probs if anchored is None else torch.where(anchored, kl_coef * kl, -log_probs)
        return losses.sum(), log_probs, kl, entropy, is_top1

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        # The loss is one number, so the gradient of what follows it is one factor
        grads = [None if grad is None else grad * grad_loss.to(grad.dtype) for grad in ctx.saved_tensors]
        return (*grads, *[None] * 8)
