"""Tasks on text: parts, windows, span corruption, prepared corpora, and one step of every full-size model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic import take_one_step, write_answers, write_corpus
from torch.nn.functional import cross_entropy

from harness.activations import gates
from harness.conformance import short_spec
from harness.registry import Registry
from harness.streams import Streams
from harness.training.trial import build_recipe, settings
from tasks.data import EpochOrder, MissingData, text, text_prepare
from tasks.sequences import corrupt, raw_length, spans, spread


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_the_standard_library_is_divided_by_files() -> None:
    corpus = text.corpus("stdlib", "bytes", Streams(0))
    files = text.paths("stdlib", "bytes")
    sizes = {len(file.read_bytes()) for file in files}
    assert len(corpus.train) + len(corpus.val) + len(corpus.test) == sum(file.stat().st_size for file in files)
    assert len(sizes) > 50
    again, other = text.corpus("stdlib", "bytes", Streams(0)), text.corpus("stdlib", "bytes", Streams(1))
    assert np.array_equal(again.val, corpus.val)
    assert not np.array_equal(other.val, corpus.val)


def write(file: Path, content: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)


def test_words_and_bytes(folder: Path) -> None:
    for part, content in (("train", "the cat\nsat\n"), ("valid", "the mat\n"), ("test", "cat\n")):
        write(folder / "text" / "wikitext-2" / f"{part}.txt", content)
    words = text.corpus("wikitext2", "words", Streams(0))
    assert words.train.tolist() == [0, 1, 2, 3, 2]
    assert words.val.tolist() == [0, 4, 2]
    assert words.vocabulary == 5 == text.vocabulary("wikitext2", "words")
    assert bytes(text.corpus("wikitext2", "bytes", Streams(0)).test.tolist()) == b"cat\n"
    with pytest.raises(ValueError, match="tokens: found 'words', allowed for shakespeare: bytes"):
        text.paths("shakespeare", "words")


def test_the_real_wikitext2_has_the_published_counts() -> None:
    try:
        words = text.corpus("wikitext2", "words", Streams(0))
    except MissingData as error:
        pytest.skip(str(error))
    assert [len(words[part]) for part in ("train", "val", "test")] == [2_088_628, 217_646, 245_569]
    assert words.vocabulary == 33_278


def test_windows_are_spread_and_do_not_overlap() -> None:
    assert spread(101, 10, None).tolist() == list(range(0, 100, 10))
    assert spread(101, 10, 40).tolist() == [0, 20, 50, 70]
    assert spread(10, 10, None).tolist() == []


def test_a_training_part_without_a_whole_sample_is_refused(registry: Registry) -> None:
    with pytest.raises(ValueError, match="train_tokens: found 64, allowed: more than 64, the context"):
        registry.build_task("stdlib/gpt_tiny", {"train_tokens": 64})
    task = registry.build_task("stdlib/gpt_tiny", {"train_tokens": 65})
    workload = task.workload(build_recipe(task, {"steps": 1}), Streams(0), torch.device("cpu"))
    assert workload.next_batch()["inputs"].shape == (1, 64)
    with pytest.raises(ValueError, match="training part: found 0 samples"):
        EpochOrder(0, 4, torch.Generator())


def test_a_language_model_s_targets_are_the_next_tokens(registry: Registry) -> None:
    task = registry.build_task("stdlib/gpt_tiny", {"context": 16, "eval_tokens": 64})
    workload = task.workload(build_recipe(task, {"steps": 3, "batch": 4}), Streams(0), torch.device("cpu"))
    batch = workload.next_batch()
    assert torch.equal(batch["inputs"][:, 1:], batch["targets"][:, :-1])
    with torch.no_grad():
        scores = workload.evaluate(workload.model, "val")
        logits = workload.model(workload.probe_inputs).log_softmax(-1)
    row = text.corpus("stdlib", "bytes", Streams(0)).val.astype(np.int64)
    starts = spread(len(row), 16, 64).tolist()
    expected = -np.mean(
        [float(logits[i, j, int(row[start + j + 1])]) for i, start in enumerate(starts) for j in range(16)]
    )
    assert scores["loss"] == pytest.approx(expected, abs=1e-5)
    assert scores["perplexity"] == pytest.approx(np.exp(expected), rel=1e-5)


def test_float64_is_float64_in_the_loss(registry: Registry) -> None:
    with settings(short_spec(registry, "stdlib/gpt_tiny", [], precision="float64")):
        task = registry.build_task("stdlib/gpt_tiny", {"context": 16, "eval_tokens": 64})
        workload = task.workload(build_recipe(task, {"steps": 1, "batch": 4}), Streams(0), torch.device("cpu"))
        batch = workload.next_batch()
        loss = workload.objective(workload.model, batch).value
        expected = cross_entropy(workload.model(batch["inputs"]).flatten(0, -2), batch["targets"].flatten())
    assert loss.dtype == torch.float64 and loss.item() == expected.item()


def test_span_corruption_loses_nothing() -> None:
    # T5's code gives 568 and a target of 114: it keeps one place in each for an end of text, which is left out here
    assert raw_length(512) == 569 and raw_length(511) == 568
    masked, count = spans(568)
    assert (568 - masked + count, masked + count) == (512 - 1, 114 - 1)
    generator = torch.Generator().manual_seed(0)
    row = torch.arange(1000, 1568)
    for _ in range(20):
        source, target = corrupt(row, 32_100, generator)
        rebuilt: list[int] = []
        pieces: dict[int, list[int]] = {}
        for token in target.tolist():
            if token > 32_000:
                pieces[last := token] = []
            else:
                pieces[last].append(token)
        for token in source.tolist():
            rebuilt += pieces.pop(token) if token > 32_000 else [token]
        assert rebuilt == row.tolist() and not pieces


def test_documents_become_rows_of_tokens(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2, "<end>": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    documents = ["a b", "", *["b"] * 299]
    root = folder / "tokens" / "wikitext103-gpt2"
    text_prepare.write_tokens([documents], tokenizer.encode_batch, 4, root)
    corpus = text.corpus("wikitext103", "gpt2", Streams(0))
    assert corpus.train[:5].tolist() == [0, 1, 3, 1, 3]
    assert (len(corpus.train), len(corpus.val), len(corpus.test)) == (3 + 2 * 295, 4, 4)
    assert corpus.vocabulary == 4
    assert text.training_tokens("wikitext103", "gpt2") == len(corpus.train)
    with pytest.raises(ValueError, match="vocabulary: found 70000"):
        text_prepare.write_tokens([documents], tokenizer.encode_batch, 70_000, root)


def test_datasets_reads_files_that_are_there(folder: Path) -> None:
    pytest.importorskip("datasets", reason="needs the extra `text`: pip install 'training-harness[text]'")
    write(folder / "raw" / "train.jsonl", '{"text": "one"}\n{"text": "two"}\n')
    rows = text_prepare.stream(text_prepare.CORPORA["openwebtext"], "train", folder / "raw")
    assert [row["text"] for row in rows] == ["one", "two"]


def test_what_is_missing_says_how_to_get_it(folder: Path) -> None:
    with pytest.raises(
        MissingData, match=r"openwebtext: found no tokens/openwebtext-gpt2/meta.json .* --tokenizer gpt2"
    ):
        text.digest("openwebtext", "gpt2")
    with pytest.raises(MissingData, match=r"python -m tasks.data ag_news"):
        text.sentences("ag_news", 8, Streams(0))


def test_sentences_are_read_padded_and_learned(folder: Path, registry: Registry) -> None:
    lines = [f"{'ENTY' if i % 2 else 'NUM'}:x {'what' if i % 2 else 'how many'} {i}" for i in range(200)]
    write(folder / "text" / "trec" / "TREC.train", "\n".join(lines) + "\n")
    write(folder / "text" / "trec" / "TREC.test", "\n".join(lines[:20]) + "\n")
    splits = text.sentences("trec", 6, Streams(0))
    assert splits.test.inputs[1].tolist() == [byte + 1 for byte in b"what 1"]
    assert splits.test.inputs[0].tolist() == [byte + 1 for byte in b"how ma"]
    assert (len(splits.train), len(splits.val), len(splits.test)) == (180, 20, 20)
    assert text.sentences("trec", 9, Streams(0)).test.inputs[1].tolist()[-3:] == [0, 0, 0]
    task = registry.build_task("trec/encoder_tiny", {"context": 16, "width": 16, "depth": 1})
    recipe = build_recipe(task, {"steps": 30, "batch": 16, "lr": 1e-2})
    workload = task.workload(recipe, Streams(0), torch.device("cpu"))
    optimizer = recipe.build_optimizer([{"params": list(workload.model.parameters())}])
    for _ in range(30):
        optimizer.zero_grad()
        workload.objective(workload.model, workload.next_batch()).value.backward()
        optimizer.step()
    with torch.no_grad():
        assert workload.evaluate(workload.model, "test")["accuracy"] == 1.0


LARGE = {
    "wikitext2/gpt2": ("gpt2", {}),
    "wikitext103/gpt2": ("gpt2", {}),
    "c4/llama60m": ("llama", {}),
    "bookcorpus/t5_small": ("t5", {}),
    "squad/t5_small": ("", {}),
}
PARAMETERS = {"wikitext2/gpt2": (124_439_808, 1024), "c4/llama60m": (58_073_600, 256)}
"""Published or computed by hand, with the context that they are for: GPT-2's 124M; the Llama of GaLore's 60M."""


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_one_step_at_full_size(name: str, folder: Path, registry: Registry) -> None:
    tokens, options = LARGE[name]
    if tokens:
        write_corpus(folder, name.split("/")[0], tokens)
    else:
        write_answers(folder, "squad")
    _, model = take_one_step(registry, name, batch=1, **options)
    if name in PARAMETERS:
        expected, context = PARAMETERS[name]
        counted = sum(parameter.numel() for parameter in model.parameters())
        if "gpt2" in name:
            counted += (context - 256) * 768  # the task's context is 256, the published one 1,024
        assert counted == expected
    assert gates(model)
