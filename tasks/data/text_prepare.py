"""Turns text corpora into what the tasks read, once: through Hugging Face `datasets` and a tokenizer of the data folder.

`datasets` is an optional dependency: `pip install 'training-harness[text]'`. A corpus is streamed, so it never has to lie
on the disk as a whole; `--from FOLDER` reads Parquet, JSON or text files that are there instead, without a network.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from tasks.data import place
from tasks.data.text import SENTENCES


@dataclass(frozen=True)
class Source:
    """Where a corpus is published: path and configuration for `datasets.load_dataset`, and how many tokens to take."""

    path: str
    configuration: str | None = None
    tokens: int | None = None
    parts: tuple[str, ...] = ("train",)


CORPORA = {
    "wikitext2": Source("Salesforce/wikitext", "wikitext-2-raw-v1", parts=("train", "validation", "test")),
    "wikitext103": Source("Salesforce/wikitext", "wikitext-103-raw-v1", parts=("train", "validation", "test")),
    "openwebtext": Source("Skylion007/openwebtext"),
    "slimpajama": Source("DKYoon/SlimPajama-6B", parts=("train", "validation", "test")),
    "c4": Source("allenai/c4", "en", tokens=3_000_000_000),
    "bookcorpus": Source("bookcorpus/bookcorpus"),
    "squad": Source("rajpurkar/squad", parts=("train", "validation")),
    "ag_news": Source("fancyzhx/ag_news", parts=("train", "test")),
}
TOKENIZERS = {
    "gpt2": "openai-community/gpt2",
    "t5": "google-t5/t5-small",
    "llama": "hf-internal-testing/llama-tokenizer",
}
HELD_OUT = 200
"""One of so many documents is for validation and one for testing, where the makers made no such parts."""
SOURCE_LENGTH, TARGET_LENGTH = 384, 32
"""Tokens of a question with its context, and of an answer."""


def prepare(name: str, tokenizer: str = "gpt2", tokens: int | None = None, source: Path | None = None) -> None:
    """Puts a corpus into the data folder in the form that the tasks read.

    Args:
        tokenizer: whose vocabulary; it is read from `tokenizers` in the data folder, and fetched into it if absent.
        tokens: how many tokens to take at most.
        source: a folder of files to read instead of the published corpus.
    """
    corpus = CORPORA[name]
    if name in SENTENCES:
        _write_sentences(name, [stream(corpus, part, source) for part in corpus.parts])
        return
    encoder = load_tokenizer("t5" if name == "squad" else tokenizer)
    if name == "squad":
        _write_pairs(place.folder() / "tokens" / "squad-t5", [stream(corpus, p, source) for p in corpus.parts], encoder)
        return
    parts = corpus.parts if source is None else ("train",)
    documents = [(row["text"] for row in stream(corpus, part, source)) for part in parts]
    root = place.folder() / "tokens" / f"{name}-{tokenizer}"
    write_tokens(documents, encoder.encode_batch, encoder.get_vocab_size(), root, tokens or corpus.tokens)


def stream(corpus: Source, part: str, source: Path | None) -> Iterator[dict[str, Any]]:
    """The rows of a part of a corpus, one after the other."""
    try:
        import datasets
    except ImportError as error:
        raise SystemExit(f"{corpus.path} needs `datasets`: pip install 'training-harness[text]'") from error
    if source is None:
        return iter(datasets.load_dataset(corpus.path, corpus.configuration, split=part, streaming=True))
    kinds = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".txt": "text"}
    found = sorted(path for path in source.rglob("*") if path.suffix in kinds)
    if not found:
        raise SystemExit(f"--from: found no file in {source}, allowed: {', '.join(kinds)}")
    chosen = [path for path in found if path.stem.startswith(part)] or found
    names = [str(path) for path in chosen]
    return iter(datasets.load_dataset(kinds[chosen[0].suffix], data_files=names, split="train", streaming=True))


def load_tokenizer(name: str) -> Any:
    """A tokenizer from the data folder; where it is absent it is fetched and kept there."""
    from tokenizers import Tokenizer

    file = place.folder() / "tokenizers" / f"{name}.json"
    if file.exists():
        return Tokenizer.from_file(str(file))
    tokenizer = Tokenizer.from_pretrained(TOKENIZERS[name])
    file.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(file))
    return tokenizer


def write_tokens(
    parts: Sequence[Iterable[str]],
    encode: Callable[[list[str]], list[Any]],
    vocabulary: int,
    root: Path,
    limit: int | None = None,
) -> None:
    """Writes `train.bin`, `val.bin` and `test.bin`, rows of 16-bit tokens, and `meta.json` last of all.

    Between documents stands the last token of the vocabulary, which is GPT-2's end of text.

    Raises:
        ValueError: if the vocabulary does not fit into 16 bits.
    """
    if vocabulary > 2**16:
        raise ValueError(f"vocabulary: found {vocabulary}, allowed: at most {2**16}")
    root.mkdir(parents=True, exist_ok=True)
    names = ("train", "val", "test")
    counts = dict.fromkeys(names, 0)
    files = {name: (root / f"{name}.bin").open("wb") for name in names}
    try:
        for part, documents in zip(names, parts, strict=False):
            for start, batch in _batches(documents):
                for number, encoded in enumerate(encode(batch), start=start):
                    name = _held_out(number) if len(parts) == 1 else part
                    row = np.array([*encoded.ids, vocabulary - 1], dtype=np.uint16)
                    files[name].write(row.tobytes())
                    counts[name] += len(row)
                if limit and counts["train"] >= limit:
                    break
    finally:
        for file in files.values():
            file.close()
    (root / "meta.json").write_text(json.dumps({"vocabulary": vocabulary, "tokens": counts}))


def _held_out(number: int) -> str:
    return {1: "val", 2: "test"}.get(number % HELD_OUT, "train")


def _batches(documents: Iterable[str], size: int = 256) -> Iterator[tuple[int, list[str]]]:
    """Batches of documents that are not empty, with the number of their first."""
    batch: list[str] = []
    start = 0
    for document in chain(documents, [None]):
        if document is not None and document.strip():
            batch.append(document)
        if batch and (document is None or len(batch) == size):
            yield start, batch
            start += len(batch)
            batch = []


def _write_sentences(name: str, parts: list[Iterator[dict[str, Any]]]) -> None:
    found = SENTENCES[name]
    for file, rows in zip(found.files, parts, strict=True):
        path = place.folder() / file
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"{' '.join(row['text'].split())}\t{found.classes[row['label']]}\n" for row in rows]
        path.write_text("".join(lines), encoding="utf-8")


def _write_pairs(root: Path, parts: list[Iterator[dict[str, Any]]], encoder: Any) -> None:
    """Questions with their context, and the first answer: `train.npz` and `test.npz` with `source` and `target`."""
    root.mkdir(parents=True, exist_ok=True)
    for name, rows in zip(("train", "test"), parts, strict=True):
        listed = list(rows)
        sources = [f"question: {row['question']} context: {row['context']}" for row in listed]
        targets = [row["answers"]["text"][0] for row in listed]
        arrays = {
            "source": _padded(encoder, sources, SOURCE_LENGTH),
            "target": _padded(encoder, targets, TARGET_LENGTH),
        }
        np.savez(
            root / f"{name}.npz", vocabulary=encoder.get_vocab_size(), source=arrays["source"], target=arrays["target"]
        )


def _padded(encoder: Any, texts: list[str], length: int) -> np.ndarray[Any, np.dtype[np.uint16]]:
    rows = np.zeros((len(texts), length), dtype=np.uint16)
    for row, encoded in zip(rows, encoder.encode_batch(texts), strict=True):
        ids = encoded.ids[:length]
        row[: len(ids)] = ids
    return rows
