"""Tasks on text: language models, sentence classification, question answering."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from harness import Recipe, Task, Workload, register_task
from harness.streams import Streams
from tasks import data, models
from tasks.data import place, text
from tasks.data.splits import Split, Splits, hold_out
from tasks.data.text import Tokens
from tasks.models import AnyActivation, GPTTiny, Init, SentenceTiny, library
from tasks.options import heads_divide_width, positive
from tasks.recipes import SupervisedRecipe
from tasks.sequences import Answers, LanguageModel, SentenceClasses, SpanCorruption

BALANCED_ADAM = "arXiv 2601.21739"
REFRESH = "arXiv 2605.10119"


@dataclass
class TextTask(Task):
    """What tasks on text share. `activation: native` and `init: native` are what the model's library gives."""

    offers = frozenset({"gates", "labels"})
    metric = "val/loss"
    direction: ClassVar[Literal["max", "min"]] = "min"
    recipe_class = SupervisedRecipe
    data_set: ClassVar[str]
    model_name: ClassVar[str]
    training: ClassVar[dict[str, Any]]

    activation: AnyActivation = "native"
    init: Init = "native"

    def __post_init__(self) -> None:
        positive(self, "width", "depth", "heads", "context", "eval_tokens", "train_tokens")
        heads_divide_width(self)

    def epoch_size(self) -> int:
        """Sequences of the training part; 0 where they are not known before it is read, and epochs cannot be counted."""
        return 0

    def check(self, recipe: Recipe) -> None:
        assert isinstance(recipe, SupervisedRecipe)
        if recipe.epoch_size != (known := self.epoch_size()):
            raise ValueError(f"epoch_size: found {recipe.epoch_size}, allowed: {known}, what the task has")

    def recipe(self) -> SupervisedRecipe:
        return SupervisedRecipe(epoch_size=self.epoch_size(), **self.training)

    def build_model(self) -> nn.Module:
        """The model as its library gives it, initialised from torch's default generator."""
        raise NotImplementedError

    def dressed(self, streams: Streams, device: torch.device) -> nn.Module:
        """The model of a trial."""
        with streams.default("init"):
            return models.dress(self.build_model(), self.activation, self.init).to(device)


@dataclass
class LanguageTask(TextTask):
    """The next token of a corpus; the metric is the cross-entropy in nats per token.

    `eval_tokens` of the validation and of the test part, evenly spread, are scored; `train_tokens` takes the first so many
    for training, for proxies of larger runs.
    """

    tokens: Tokens = "bytes"
    context: int = 64
    width: int = 64
    depth: int = 2
    heads: int = 4
    eval_tokens: int | None = 16_384
    train_tokens: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_tokens is not None and self.train_tokens <= self.context:
            raise ValueError(
                f"train_tokens: found {self.train_tokens}, allowed: more than {self.context}, the context of a sample"
            )

    def data_digest(self) -> str:
        return text.digest(self.data_set, self.tokens)

    def epoch_size(self) -> int:
        tokens = text.training_tokens(self.data_set, self.tokens) or self.train_tokens or 0
        return max(0, min(tokens, self.train_tokens or tokens) - 1) // self.context

    def build_model(self) -> nn.Module:
        vocabulary = text.vocabulary(self.data_set, self.tokens)
        if self.model_name == "gpt_tiny":
            return GPTTiny(vocabulary, self.context, self.width, self.depth, self.heads, "relu")
        build = {"gpt2": library.gpt2, "llama60m": library.llama60m}[self.model_name]
        return build(vocabulary, self.context, width=self.width, depth=self.depth, heads=self.heads)

    def corpus(self, streams: Streams) -> text.Corpus:
        """The corpus, cut to `train_tokens`."""
        found = text.corpus(self.data_set, self.tokens, streams)
        return text.Corpus(found.vocabulary, found.train[: self.train_tokens], found.val, found.test)

    def workload(self, recipe: Recipe, streams: Streams, device: torch.device) -> Workload:
        assert isinstance(recipe, SupervisedRecipe)
        corpus, model = self.corpus(streams), self.dressed(streams, device)
        return LanguageModel(model, corpus, self.context, self.eval_tokens, recipe, streams, device)


@dataclass
class LargeLanguageTask(LanguageTask):
    """A language model of a library on pieces of words; the widths are GPT-2's with 124M parameters."""

    tokens: Tokens = "gpt2"
    context: int = 256
    width: int = 768
    depth: int = 12
    heads: int = 12
    eval_tokens: int | None = 262_144


@dataclass
class SmallGPT2Task(LargeLanguageTask):
    """nanoGPT's small form: 6 layers of 384."""

    width: int = 384
    depth: int = 6
    heads: int = 6


@dataclass
class LlamaTask(LargeLanguageTask):
    """The 60M Llama: 8 layers of 512."""

    tokens: Tokens = "llama"
    width: int = 512
    depth: int = 8
    heads: int = 8


@dataclass
class SpanTask(TextTask):
    """T5-small restores masked spans of a corpus."""

    context: int = 512
    eval_tokens: int | None = 131_072

    def data_digest(self) -> str:
        return text.digest(self.data_set, "t5")

    def build_model(self) -> nn.Module:
        return library.t5_small(text.vocabulary(self.data_set, "t5"), source_length(self.context))

    def workload(self, recipe: Recipe, streams: Streams, device: torch.device) -> Workload:
        assert isinstance(recipe, SupervisedRecipe)
        corpus, model = text.corpus(self.data_set, "t5", streams), self.dressed(streams, device)
        return SpanCorruption(model, corpus, self.context, self.eval_tokens, recipe, streams, device)


def source_length(context: int) -> int:
    """Tokens of a corrupted source: at most `context`, and as many as spans of whole numbers allow."""
    from tasks.sequences import raw_length, spans

    length = raw_length(context)
    masked, count = spans(length)
    return length - masked + count


@dataclass
class AnswerTask(TextTask):
    """T5-small answers questions on a text; the loss is that of the answer's tokens under teacher forcing."""

    def files(self) -> list[Any]:
        """Where the pairs lie."""
        root = place.folder() / "tokens" / f"{self.data_set}-t5"
        return place.require(
            self.data_set, [root / "train.npz", root / "test.npz"], f"python -m tasks.data {self.data_set}"
        )

    def data_digest(self) -> str:
        return place.digest(self.files())

    def build_model(self) -> nn.Module:
        with np.load(self.files()[0]) as saved:
            return library.t5_small(int(saved["vocabulary"]), saved["source"].shape[1])

    def workload(self, recipe: Recipe, streams: Streams, device: torch.device) -> Workload:
        assert isinstance(recipe, SupervisedRecipe)
        parts = []
        for file in self.files():
            with np.load(file) as saved:
                source = saved["source"].shape[1]
                pairs = torch.from_numpy(np.concatenate([saved["source"], saved["target"]], axis=1).astype(np.int32))
            parts.append(Split(pairs, torch.zeros(len(pairs), dtype=torch.int64)))
        splits = Splits(*hold_out(parts[0], streams, data.sets.VAL_SHARE), parts[1])
        return Answers(self.dressed(streams, device), splits, source, recipe, streams, device)


@dataclass
class SentenceTask(TextTask):
    """A small Transformer encoder on the bytes of sentences, cut or padded to `context`."""

    metric = "val/accuracy"
    direction = "max"

    context: int = 128
    width: int = 64
    depth: int = 2
    heads: int = 4

    def data_digest(self) -> str:
        return place.digest(text.sentence_files(self.data_set))

    def epoch_size(self) -> int:
        sizes = text.SENTENCES[self.data_set].sizes
        return sizes[0] if len(sizes) == 3 else sizes[0] - int(0.1 * sizes[0])

    def build_model(self) -> nn.Module:
        classes = len(text.SENTENCES[self.data_set].classes)
        return SentenceTiny(257, self.context, classes, self.width, self.depth, self.heads, "relu")

    def workload(self, recipe: Recipe, streams: Streams, device: torch.device) -> Workload:
        assert isinstance(recipe, SupervisedRecipe)
        splits = text.sentences(self.data_set, self.context, streams)
        return SentenceClasses(self.dressed(streams, device), splits, recipe, streams, device)


def add(base: type[TextTask], name: str, title: str, source: str = "", **training: Any) -> None:
    """Registers the task `DATA/MODEL` with its recipe, as far as that differs from the defaults."""
    data_set, model = name.split("/")
    contents = {"data_set": data_set, "model_name": model, "training": training, "source": source}
    label = "".join(part.title() for part in (*data_set.split("_"), *model.split("_")))
    register_task(name)(type(label, (base,), {"__doc__": f"{title}.", "__module__": __name__, **contents}))


COSINE: dict[str, Any] = {"schedule": "cosine"}
SMALL: dict[str, Any] = {"lr": 2e-3, "weight_decay": 1e-2, "warmup": 50, "clip": 1.0, **COSINE}
NANO: dict[str, Any] = {"optimizer": "adam", "clip": 1.0, "autocast": True, **COSINE}

# fmt: off
add(LanguageTask, "stdlib/gpt_tiny", "A small GPT on the bytes of the interpreter's own standard library",
    steps=1000, batch=32, **SMALL)
add(LanguageTask, "shakespeare/gpt_tiny", "A small GPT on the bytes of Tiny Shakespeare", steps=1000, batch=32, **SMALL)
add(LanguageTask, "wikitext2/gpt_tiny", "A small GPT on WikiText-2, by bytes or by words", steps=1000, batch=32, **SMALL)
add(LargeLanguageTask, "wikitext2/gpt2", "GPT-2 on WikiText-2", BALANCED_ADAM,
    epochs=60, batch=8, lr=3e-4, weight_decay=1e-4, **NANO)
add(LargeLanguageTask, "slimpajama/gpt2", "GPT-2 on SlimPajama; the paper sets context: 1024", BALANCED_ADAM,
    epochs=1, batch=8, lr=3e-4, weight_decay=1e-4, **NANO)
add(SmallGPT2Task, "wikitext103/gpt2", "GPT-2 with 6 layers of 384 on WikiText-103", REFRESH,
    steps=10_000, batch=64, accumulate=16, lr=1e-3, weight_decay=1e-1, evaluate_every=500, **NANO)
add(SmallGPT2Task, "openwebtext/gpt2", "GPT-2 with 6 layers of 384 on OpenWebText", REFRESH,
    steps=10_000, batch=64, accumulate=16, lr=1e-3, weight_decay=1e-1, evaluate_every=500, **NANO)
add(LlamaTask, "c4/llama60m", "A 60M Llama on C4", REFRESH,
    steps=10_000, batch=64, accumulate=8, lr=1e-3, weight_decay=1e-5, evaluate_every=1000, **NANO)
add(LlamaTask, "slimpajama/llama60m", "A 60M Llama on SlimPajama", REFRESH,
    steps=10_000, batch=64, accumulate=8, lr=1e-3, weight_decay=1e-5, evaluate_every=1000, **NANO)
add(SpanTask, "bookcorpus/t5_small", "T5-small restores masked spans of BookCorpus", REFRESH,
    steps=10_000, batch=64, lr=1e-3, weight_decay=1e-5, **NANO)
add(AnswerTask, "squad/t5_small", "T5-small on SQuAD", BALANCED_ADAM,
    steps=10_000, batch=8, optimizer="adam", lr=1e-3, weight_decay=1e-2, **COSINE)
add(SentenceTask, "sst2/encoder_tiny", "A small Transformer on the sentences of SST-2", epochs=5, batch=32, **SMALL)
add(SentenceTask, "trec/encoder_tiny", "A small Transformer on the questions of TREC", epochs=10, batch=32, **SMALL)
add(SentenceTask, "ag_news/encoder_tiny", "A small Transformer on AG News", epochs=2, batch=64, **SMALL)
add(SentenceTask, "ag_news_small/encoder_tiny", "A small Transformer on a tenth of AG News", epochs=5, batch=32, **SMALL)
# fmt: on
