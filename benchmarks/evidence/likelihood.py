"""Log-likelihoods of texts after a context, and how far a model is from the initial one, without whole logits."""

from collections.abc import Iterator

import torch


BATCH_TOKENS = 2048  # with padding; more is no faster on a CPU
CHUNK = 256  # tokens whose logits over the vocabulary exist at a time
Rows = list[tuple[str, list[str]]]  # a context, and texts that may follow it


@torch.inference_mode()
def log_likelihoods(model, tokenizer, rows: Rows, temperatures: tuple[float, ...] = (1.0,)) -> list[list[float]]:
    """In nats, of each text of each row in turn, at each temperature (the logits are divided by it)."""
    n_texts = sum(len(texts) for _, texts in rows)
    found = torch.zeros(n_texts, len(temperatures), dtype=torch.float64, device=model.device)
    for owners, labels, (logits,) in _logits([model], tokenizer, rows):
        for column, temperature in enumerate(temperatures):
            chosen = (logits / temperature).log_softmax(-1).gather(-1, labels[:, None])[:, 0]
            found[:, column].index_add_(0, owners, chosen.double())
    return [[round(nats, 4) for nats in values] for values in found.tolist()]


@torch.inference_mode()
def divergence(initial, model, tokenizer, rows: Rows) -> list[float]:
    """Sum over the tokens of each text of KL(initial || model) of the next token, in nats."""
    found = torch.zeros(sum(len(texts) for _, texts in rows), dtype=torch.float64, device=model.device)
    for owners, _, logits in _logits([initial, model], tokenizer, rows):
        log_p, log_q = (each.log_softmax(-1) for each in logits)
        found.index_add_(0, owners, (log_p.exp() * (log_p - log_q)).sum(-1).double())
    return [round(nats, 4) for nats in found.tolist()]


def _logits(models: list, tokenizer, rows: Rows) -> Iterator[tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]]:
    """
    Goes through all tokens of the texts, in chunks: number of the text of each, shape `(N,)`; the tokens, `(N,)`; the
    logits that each model has for them, `(N, V)`.
    """
    encoded, first = [], 0
    for context, texts in rows:
        ids = tokenizer([context, *texts], add_special_tokens=False)["input_ids"]
        encoded.append((first, ids))
        first += len(texts)
    for batch in _batches(encoded):
        ids, segments, positions, *of_tokens = (part.to(models[0].device) for part in _lay_out(batch))
        places, owners, labels = of_tokens
        # A text sees the context and itself, not the other texts of its row
        before = torch.arange(ids.shape[1], device=ids.device)
        visible = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
        mask = (visible & (before[None, :] <= before[:, None]))[:, None]
        states = [
            model.model(ids, attention_mask=mask, position_ids=positions, use_cache=False).last_hidden_state
            for model in models
        ]
        for start in range(0, len(owners), CHUNK):
            chunk = slice(start, start + CHUNK)
            logits = [
                model.lm_head(state.flatten(0, 1)[places[chunk]]).float()
                for model, state in zip(models, states, strict=True)
            ]
            yield owners[chunk], labels[chunk], logits


def _batches(encoded: list) -> Iterator[list]:
    """Rows of similar length together, the longest last."""
    batch = []
    for row in sorted(encoded, key=lambda row: sum(map(len, row[1]))):
        if batch and (len(batch) + 1) * sum(map(len, row[1])) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _lay_out(batch: list) -> tuple[torch.Tensor, ...]:
    """
    A batch as tensors `(rows, longest)`: tokens; the text that each belongs to, 0 for the context and -1 for padding;
    positions, as if each text alone followed the context. Then, of each token of the texts, where in the flattened
    batch the logits for it are, the number of its text, and the token.
    """
    longest = max(sum(map(len, ids)) for _, ids in batch)
    ids, positions = (torch.zeros(len(batch), longest, dtype=torch.long) for _ in range(2))
    segments, of_tokens = torch.full((len(batch), longest), -1), []
    for number, (first, (context, *texts)) in enumerate(batch):
        start = 0
        for segment, tokens in enumerate([context, *texts]):
            end = start + len(tokens)
            ids[number, start:end], segments[number, start:end] = torch.tensor(tokens), segment
            offset = len(context) if segment else 0
            positions[number, start:end] = torch.arange(offset, offset + len(tokens))
            if segment:
                row = number * longest
                before = [row + len(context) - 1, *range(row + start, row + end - 1)]
                of_tokens += [(place, first + segment - 1, token) for place, token in zip(before, tokens, strict=True)]
            start = end
    return ids, segments, positions, *map(torch.tensor, zip(*of_tokens, strict=True))
