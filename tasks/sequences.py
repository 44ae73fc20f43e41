"""The workloads on text: the next token of a corpus, the class of a sentence, an answer to a text."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from harness import Batch, Objective, Workload
from harness.streams import Streams
from tasks.data import EpochOrder, Splits
from tasks.data.pipeline import Pipeline
from tasks.data.text import Corpus, Row
from tasks.images import autocast, of_trial
from tasks.recipes import SupervisedRecipe

PAD = 0


class Text(Workload):
    """What the workloads on text share. Batches have `inputs`, what the model takes, and `targets`; -100 does not count."""

    EVALUATED = 64
    """Sequences that are scored together."""

    def __init__(
        self, model: nn.Module, samples: int, recipe: SupervisedRecipe, streams: Streams, device: torch.device
    ) -> None:
        self.model = model
        self._recipe, self._streams, self._device = recipe, streams, device
        self._pipeline = Pipeline(EpochOrder(samples, recipe.batch, streams.torch("data")), self._make)

    def _make(self, indices: Tensor, number: int) -> Batch:
        """The training batch of these samples."""
        raise NotImplementedError

    def _evaluation(self, split: Literal["val", "test"]) -> Batch:
        """All that is scored of a split."""
        raise NotImplementedError

    def next_batch(self) -> Batch:
        return {name: tensor.to(self._device, non_blocking=True) for name, tensor in self._pipeline.next().items()}

    def _loss(self, model: nn.Module, batch: Batch, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        with autocast(self._recipe, self._device):
            logits = model(batch["inputs"])
        flat = of_trial(logits).flatten(0, -2)
        return functional.cross_entropy(flat, batch["targets"].flatten(), label_smoothing=smoothing), logits

    def objective(self, model: nn.Module, batch: Batch) -> Objective:
        loss, logits = self._loss(model, batch, self._recipe.label_smoothing)
        return Objective(loss, {"logits": logits}, len(batch["inputs"]))

    def evaluate(self, model: nn.Module, split: Literal["val", "test"]) -> dict[str, float]:
        """Mean cross-entropy in nats per target, its exponential, and the share of targets that are the likeliest."""
        batch = self._evaluation(split)
        loss, right, count = 0.0, 0, 0
        for inputs, targets in zip(*(batch[name].split(self.EVALUATED) for name in ("inputs", "targets")), strict=True):
            part = {"inputs": inputs.to(self._device), "targets": targets.to(self._device)}
            mean, logits = self._loss(model, part)
            counted = part["targets"] != -100
            loss += float(mean) * int(counted.sum())
            right += int(((logits.argmax(dim=-1) == part["targets"]) & counted).sum())
            count += int(counted.sum())
        return {"loss": loss / count, "perplexity": math.exp(min(700.0, loss / count)), "accuracy": right / count}

    def state_dict(self) -> dict[str, Any]:
        return self._pipeline.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._pipeline.load_state_dict(state)


def windows(row: Row, starts: Tensor, length: int) -> Tensor:
    """Pieces of a row of tokens: (starts, length)."""
    places = starts.numpy()[:, None] + np.arange(length)
    return torch.from_numpy(row[places].astype(np.int64))


def spread(tokens: int, length: int, wanted: int | None) -> Tensor:
    """Starts of pieces that do not overlap, evenly spread over a row; as many as there are if none are wanted."""
    pieces = max(0, tokens - 1) // length
    count = pieces if wanted is None else min(pieces, max(1, wanted // length))
    return torch.arange(count) * pieces // max(1, count) * length


class LanguageModel(Text):
    """The next token at every place. An epoch visits each piece of `context` tokens once, in random order."""

    def __init__(
        self,
        model: nn.Module,
        corpus: Corpus,
        context: int,
        eval_tokens: int | None,
        recipe: SupervisedRecipe,
        streams: Streams,
        device: torch.device,
    ) -> None:
        super().__init__(model, (len(corpus.train) - 1) // context, recipe, streams, device)
        self._corpus, self._context, self._eval_tokens = corpus, context, eval_tokens
        self.probe_inputs = self._evaluation("val")["inputs"][:64].to(device)

    def _make(self, indices: Tensor, number: int) -> Batch:
        return self._batch(self._corpus.train, indices * self._context)

    def _batch(self, row: Row, starts: Tensor) -> Batch:
        tokens = windows(row, starts, self._context + 1)
        return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}

    def _evaluation(self, split: Literal["val", "test"]) -> Batch:
        row = self._corpus[split]
        return self._batch(row, spread(len(row), self._context, self._eval_tokens))


class SpanCorruption(Text):
    """T5's objective (arXiv 1910.10683): spans of a text are replaced by sentinels, and the target is what they held.

    15 % of the tokens, in spans of 3 on average. Sentinels count down from the end of the vocabulary.
    """

    def __init__(
        self,
        model: nn.Module,
        corpus: Corpus,
        context: int,
        eval_tokens: int | None,
        recipe: SupervisedRecipe,
        streams: Streams,
        device: torch.device,
    ) -> None:
        self._corpus, self._eval_tokens = corpus, eval_tokens
        self._length = raw_length(context)
        super().__init__(model, len(corpus.train) // self._length, recipe, streams, device)
        self.probe_inputs = self._evaluation("val")["inputs"][:64].to(device)

    def _make(self, indices: Tensor, number: int) -> Batch:
        generator = self._streams.fresh(f"data/spans/{number}")
        return self._corrupted(self._corpus.train, indices * self._length, generator)

    def _evaluation(self, split: Literal["val", "test"]) -> Batch:
        row = self._corpus[split]
        starts = spread(len(row), self._length, self._eval_tokens)
        return self._corrupted(row, starts, self._streams.fresh(f"evaluation/spans/{split}"))

    def _corrupted(self, row: Row, starts: Tensor, generator: torch.Generator) -> Batch:
        vocabulary = self._corpus.vocabulary
        pairs = [corrupt(text, vocabulary, generator) for text in windows(row, starts, self._length)]
        return _pairs(torch.stack([source for source, _ in pairs]), torch.stack([target for _, target in pairs]))


def spans(length: int) -> tuple[int, int]:
    """Tokens to be masked in a text of a length, and in how many spans."""
    masked = min(max(round(0.15 * length), 1), length - 1)
    return masked, max(1, round(masked / 3))


def raw_length(context: int) -> int:
    """The length of text whose corrupted source has `context` tokens at most."""
    length = context
    while length + 1 - spans(length + 1)[0] + spans(length + 1)[1] <= context:
        length += 1
    return length


def corrupt(text: Tensor, vocabulary: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Source and target of a text. Together they hold every token once, and each sentinel twice.

    >>> source, target = corrupt(torch.arange(20), 100, torch.Generator().manual_seed(0))
    >>> sorted(source.tolist() + target.tolist()) == [*range(20), 99, 99]
    True
    """
    masked, count = spans(len(text))
    inside = _parts(masked, count, generator)
    outside = _parts(len(text) - masked, count, generator)
    source, target, place = [], [], 0
    for number, (kept, hidden) in enumerate(zip(outside, inside, strict=True)):
        sentinel = torch.tensor([vocabulary - 1 - number])
        source += [text[place : place + kept], sentinel]
        target += [sentinel, text[place + kept : place + kept + hidden]]
        place += kept + hidden
    return torch.cat(source), torch.cat(target)


def _parts(total: int, count: int, generator: torch.Generator) -> list[int]:
    """A random division of a number into so many positive ones."""
    cuts = torch.randperm(total - 1, generator=generator)[: count - 1].sort().values + 1
    edges = [0, *cuts.tolist(), total]
    return [high - low for low, high in pairwise(edges)]


def _pairs(source: Tensor, target: Tensor) -> Batch:
    """What an encoder and decoder take side by side, the target moved right by one, and the targets without padding."""
    start = torch.full((len(target), 1), PAD)
    inputs = torch.cat([source, start, target[:, :-1]], dim=1)
    return {"inputs": inputs, "targets": torch.where(target == PAD, -100, target)}


class Answers(Text):
    """A text in answer to a text, of pairs with padding; source and target lie side by side in `splits.*.inputs`."""

    def __init__(
        self,
        model: nn.Module,
        splits: Splits,
        source: int,
        recipe: SupervisedRecipe,
        streams: Streams,
        device: torch.device,
    ) -> None:
        super().__init__(model, len(splits.train), recipe, streams, device)
        self._splits, self._source = splits, source
        self.probe_inputs = self._batch(splits.val.inputs[:64])["inputs"].to(device)

    def _make(self, indices: Tensor, number: int) -> Batch:
        return self._batch(self._splits.train.inputs[indices])

    def _evaluation(self, split: Literal["val", "test"]) -> Batch:
        return self._batch(self._splits[split].inputs)

    def _batch(self, pairs: Tensor) -> Batch:
        return _pairs(pairs[:, : self._source].long(), pairs[:, self._source :].long())


class SentenceClasses(Text):
    """The class of a sentence: one target for each."""

    EVALUATED = 256

    def __init__(
        self, model: nn.Module, splits: Splits, recipe: SupervisedRecipe, streams: Streams, device: torch.device
    ) -> None:
        super().__init__(model, len(splits.train), recipe, streams, device)
        self._splits = splits
        self.probe_inputs = splits.val.inputs[:256].to(device)

    def _make(self, indices: Tensor, number: int) -> Batch:
        part = self._splits.train.take(indices)
        return {"inputs": part.inputs, "targets": part.labels}

    def _evaluation(self, split: Literal["val", "test"]) -> Batch:
        part = self._splits[split]
        return {"inputs": part.inputs, "targets": part.labels}

    def evaluate(self, model: nn.Module, split: Literal["val", "test"]) -> dict[str, float]:
        """Mean cross-entropy and accuracy."""
        scores = super().evaluate(model, split)
        return {name: scores[name] for name in ("loss", "accuracy")}
