"""The results folder: commits, attempts, locks, and what counts after an interruption."""

import dataclasses
import errno
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from harness.recording.attempts import Attempt, end_without_result
from harness.recording.following import Following
from harness.recording.grids import without_password
from harness.recording.records import Locked, RecordsError, Result, Status, TrialRecords, finite, write_atomically
from harness.recording.results import Results


def result(status: Status = Status.FINISHED, **fields: object) -> Result:
    return Result("abc", status, "code", metrics={"test/accuracy": 0.5}, **fields)  # type: ignore[arg-type]


def attempt(results: Path, code: str = "code", wait: float = 0.1) -> Attempt:
    return Attempt(results, "abc", "{}", code, wait=wait)


def steps(results: Path) -> list[int]:
    return [record["step"] for record in TrialRecords(results, "abc").records()]


def test_only_a_commit_counts(results: Path) -> None:
    with attempt(results) as first:
        first.record({"step": 1})
        first.commit(1, b"checkpoint one")
        first.record({"step": 2})
        assert steps(results) == [1]
    assert TrialRecords(results, "abc").result() is None


def test_a_later_attempt_goes_on_from_the_commit(results: Path) -> None:
    with attempt(results) as first:
        first.record({"step": 1})
        first.commit(1, b"one", b"best one")
        first.record({"step": 2})
    with attempt(results) as second:
        assert second.state.attempt == 2
        checkpoint = second.path(second.state.checkpoint)
        assert checkpoint is not None
        assert checkpoint.read_bytes() == b"one"
        second.record({"step": 2})
        second.commit(2, b"two")
        second.record({"step": 3})
        second.finish(result(steps=3))
    assert steps(results) == [1, 2, 3]
    assert TrialRecords(results, "abc").result() == result(steps=3)
    assert not list((results / "trials" / "abc").rglob("*.pt")), "checkpoints go once the result stands"


@pytest.mark.parametrize("kind", [Attempt, Following])
@pytest.mark.parametrize(("rate", "step"), [(0.1, 1), (0.2, 0)])
def test_other_values_taken_from_other_trials_start_anew(
    results: Path, kind: type[Attempt], rate: float, step: int
) -> None:
    """A checkpoint holds what was taken, as an optimizer does its decay: going on from it would mix two trials."""
    taken = {"methods.0.rate": 0.1}
    with Attempt(results, "abc", "{}", "code", values=taken) as first:
        first.record({"step": 1})
        first.commit(1, b"checkpoint")
    with kind(results, "abc", "{}", "code", values={"methods.0.rate": rate}) as second:
        assert second.state.step == step


def test_other_code_starts_anew(results: Path) -> None:
    with attempt(results) as first:
        first.record({"step": 1})
        first.commit(1, b"one")
    with attempt(results, code="other") as second:
        assert second.state.checkpoint is None
        second.record({"step": 1})
        second.commit(1)
    assert steps(results) == [1]


def test_a_result_holds_no_value_that_is_not_finite() -> None:
    assert finite({"a": 1.0, "b": float("nan"), "c": float("inf")}) == {"a": 1.0}


def test_a_record_refuses_nan(results: Path) -> None:
    with attempt(results) as one, pytest.raises(ValueError, match="Out of range"):
        one.record({"step": 1, "metrics": {"loss": float("nan")}})


def _hold(results: str, ready: object) -> None:
    with attempt(Path(results)) as one:
        one.record({"step": 1})
        one.commit(1, b"one")
        ready.set()  # type: ignore[attr-defined]
        time.sleep(60)


def test_one_process_writes_a_trial(results: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(str(results), ready))
    holder.start()
    assert ready.wait(120)
    with pytest.raises(Locked, match=f"process {holder.pid}"), attempt(results):
        pass
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    with attempt(results, wait=5) as next_one:
        assert next_one.state.attempt == 2
        assert next_one.state.step == 1
    holder.join()


def test_an_older_attempt_that_wakes_up_writes_nothing(results: Path) -> None:
    with attempt(results) as old:
        old.record({"step": 1})
        old.commit(1, b"one")
        old._lock.release()  # as after a network split: the lock is gone, the process is not
        with attempt(results) as new:
            new.record({"step": 2})
            new.finish(result(steps=2))
        old.record({"step": 99})
        with pytest.raises(Locked, match="a later attempt"):
            old.finish(result(steps=99))
    assert steps(results) == [1, 2]
    assert TrialRecords(results, "abc").result() == result(steps=2)


class Operations:
    """Counts what is done to the disk and, before one of these operations, does something else."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, act: Callable[[], None]) -> None:
        self.count, self.at, self.act = 0, at, act
        for name in ("mkdir", "unlink", "replace", "read_text", "iterdir"):
            monkeypatch.setattr(Path, name, self.watched(getattr(Path, name)))

    def watched(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self.at:
                self.act()
            return real(*arguments, **options)

        return operation


def sleeper(results: Path, at: int, to_the_end: bool) -> int:
    """A process that commits and then stands still before an operation of what it does next: another commit, or the end."""
    pid = os.fork()
    if pid == 0:
        with attempt(results) as old:
            old.record({"step": 1})
            old.commit(1, b"checkpoint 1", b"best 1")
            with pytest.MonkeyPatch.context() as patch:
                stop = Operations(patch, at, lambda: os.kill(os.getpid(), signal.SIGSTOP))
                old.record({"step": 2})
                with suppress(Locked):
                    old.finish(result(steps=2)) if to_the_end else old.commit(2, b"checkpoint 2", b"best 2")
        os._exit(0 if stop.count >= at else 1)
    return pid


def wake(pid: int) -> None:
    os.kill(pid, signal.SIGCONT)
    os.waitpid(pid, 0)


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.parametrize("to_the_end", [False, True])
def test_an_attempt_that_wakes_up_in_a_commit_deletes_nothing_that_another_needs(
    results: Path, to_the_end: bool
) -> None:
    """It stands still before each of its operations, and goes on before each of the operations by which another takes over."""
    stood, last = 0, False
    while not last:
        stood, woken, awake = stood + 1, 0, False
        while not awake:
            woken += 1
            shutil.rmtree(results, ignore_errors=True)
            pid = sleeper(results, stood, to_the_end)
            _, status = os.waitpid(pid, os.WUNTRACED)
            if not os.WIFSTOPPED(status):
                last = awake = True
                continue
            (results / "trials" / "abc" / "lock").unlink()
            with pytest.MonkeyPatch.context() as patch:
                taking = Operations(patch, woken, lambda pid=pid: wake(pid))  # type: ignore[misc]
                new = attempt(results).__enter__()
            if awake := taking.count < woken:
                wake(pid)
            at = len(new.state.chunks)  # each step has its own
            for kind, name in (("checkpoint", new.state.checkpoint), ("best", new.state.best)):
                assert bool(name) == bool(at), (stood, woken)
                assert not name or (results / "trials" / "abc" / name).read_bytes() == f"{kind} {at}".encode()
            for step in range(at + 1, 4):
                new.record({"step": step})
            new.commit(3, b"checkpoint 3")
            assert steps(results) == [1, 2, 3], (stood, woken)
            new.finish(result(steps=3))
            new.__exit__()
            assert TrialRecords(results, "abc").result() == result(steps=3)
    assert stood > 5, "it stood still at each"
    assert woken == 1, "and then there was nothing left"


def test_what_is_killed_between_its_last_commit_and_its_result_doubles_nothing(results: Path) -> None:
    """The last records have no checkpoint of their own: what goes on from the one before makes them again."""
    at, stopped = 0, True
    while stopped:
        at += 1
        shutil.rmtree(results, ignore_errors=True)
        pid = sleeper(results, at, to_the_end=True)
        stopped = os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
        if stopped:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        with attempt(results, wait=5) as new:
            assert len(new.state.chunks) == (1 if new.state.checkpoint else 0)
            for step in range(len(new.state.chunks) + 1, 4):
                new.record({"step": step})
            new.finish(result(steps=3))
        assert steps(results) == [1, 2, 3], at
    assert at > 5


def test_a_process_that_left_nothing_gets_its_status(results: Path) -> None:
    with attempt(results) as one:
        one.record({"step": 5})
        one.commit(5, b"five")
    lost = result(Status.LOST, reason="its process was ended by SIGKILL")
    assert end_without_result(results, lost, "{}") == lost
    assert TrialRecords(results, "abc").result() == lost
    with attempt(results) as again:
        assert again.state.step == 5
    assert TrialRecords(results, "abc").result() is None, "a trial that runs again has no result"


def test_a_result_that_this_run_has_left_is_kept(results: Path) -> None:
    with attempt(results) as one:
        one.finish(result(ended=2.0))
    assert end_without_result(results, result(Status.LOST), "{}", since=2.0) == result(ended=2.0)


@pytest.mark.parametrize(("code", "ended"), [("older", 3.0), ("code", 1.0)])
def test_a_result_that_was_to_be_replaced_is_not_taken_for_this_run_s(results: Path, code: str, ended: float) -> None:
    """It is of older code, or from before the run, which does it again as what it takes has changed."""
    with attempt(results, code) as one:
        one.finish(dataclasses.replace(result(ended=ended), code=code))
    blocked = result(Status.BLOCKED, reason="needs what is not there")
    assert end_without_result(results, blocked, "{}", since=2.0) == blocked
    assert TrialRecords(results, "abc").result() == blocked


def test_what_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordsError, match="cannot be written"):
        write_atomically(tmp_path / "file" / "below", "x")


@pytest.mark.chaos
@pytest.mark.parametrize("call", ["mkdir", "iterdir", "unlink", "read_bytes"])
def test_trouble_of_the_storage_is_told_as_such(results: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never as an error of the trial's own code."""
    with attempt(results) as one:
        one.commit(1, b"one")
        checkpoint = one.path(one.state.checkpoint)
    assert checkpoint is not None
    with attempt(results) as two:
        assert two.trial.saved(checkpoint) == b"one"
        folders = Path.mkdir

        def fail(path: Path, *arguments: object, **options: object) -> None:
            if call == "mkdir" and path.name != "3":
                return folders(path, *arguments, **options)  # type: ignore[arg-type]
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

        monkeypatch.setattr(Path, call, fail)
        with pytest.raises(RecordsError, match=os.strerror(errno.ESTALE)):
            if call == "read_bytes":
                two.trial.saved(checkpoint)
            elif call == "mkdir":
                two._begin(two.trial.folder)
            else:
                two.commit(2, b"two")


def test_a_missing_checkpoint_is_told_in_one_line(results: Path) -> None:
    with attempt(results) as one:
        one.commit(1, b"one")
        checkpoint = results / "trials" / "abc" / "1" / "last-1.pt"
        checkpoint.unlink()
        with pytest.raises(RecordsError, match=rf"{checkpoint}: found no such file, which the records name; delete "):
            one.trial.saved(checkpoint)


READERS: dict[str, Callable[[TrialRecords], object]] = {
    "result.json": TrialRecords.result,
    "1/commit.json": TrialRecords.commit,
    "1/chunk-00000.jsonl": lambda trial: list(trial.records()),
    "verdict.json": lambda trial: trial.verdict("mark", "code"),
}
DAMAGE = {
    "empty": (b"", "an empty file"),
    "no JSON": (b"\x00\x00\n", "damaged content (JSONDecodeError: "),
    "cut off": (None, "damaged content ("),
    "no text": (b"\xff\xfe\n", "damaged content (UnicodeDecodeError: "),
    "something else": (b"[1, 2]", "damaged content ("),
}


@pytest.mark.chaos
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", READERS)
def test_damage_is_told_in_one_line(results: Path, name: str, damage: str) -> None:
    with attempt(results) as one:
        one.record({"step": 1, "metrics": {"train/loss": 0.5}})
        one.finish(result())
        one.trial.leave_verdict("mark", "code", "reason")
    trial = TrialRecords(results, "abc")
    for reader in READERS.values():
        assert reader(trial), "what is whole is read"
    content, found = DAMAGE[damage]
    file = trial.folder / name
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(RecordsError) as raised:
        READERS[name](trial)
    (line,) = str(raised.value).splitlines()
    assert line.startswith(f"{file}: found {found}")
    gone = "it" if name == "verdict.json" else trial.folder
    assert f", allowed: what was written there; delete {gone}, and " in line


def test_a_missing_chunk_is_told_in_one_line(results: Path) -> None:
    with attempt(results) as one:
        one.record({"step": 1})
        one.commit(1)
    chunk = results / "trials" / "abc" / "1" / "chunk-00000.jsonl"
    chunk.unlink()
    with pytest.raises(RecordsError, match=rf"{chunk}: found no such file, which a commit names; delete "):
        steps(results)


def test_a_damaged_commit_is_not_gone_on_from_and_nothing_is_lost_by_the_try(results: Path) -> None:
    with attempt(results) as one:
        one.record({"step": 1})
        one.finish(result())
    (results / "trials" / "abc" / "1" / "commit.json").write_text("{")
    for _ in range(2):  # the lock is let go
        with (
            pytest.raises(RecordsError, match=r"1/commit\.json: found damaged content"),
            attempt(results, "other code"),
        ):
            pass
    trial = TrialRecords(results, "abc")
    assert trial.result() == result() and trial.attempts() == [1]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("--tracking=postgresql://me:hid/den@db:5432/runs", "--tracking=postgresql://db:5432/runs"),
        ("postgresql://me:hid@den@db/runs", "postgresql://db/runs"),
        ("postgresql://me:hid?den@db/runs?user=a@b", "postgresql://db/runs?user=a@b"),
        ("postgresql://me:1234@db/runs", "postgresql://db/runs"),
        ("https://hidden@mlflow", "https://mlflow"),
        ("mysql://db/runs?user=me&password=hid&ssl=1", "mysql://db/runs?user=me&password=&ssl=1"),
        ("https://mlflow/?access_token=hid", "https://mlflow/?access_token="),
        ("https://mlflow:5000/me:you@x", "https://mlflow:5000/me:you@x"),
        ("http://[::1]:5000", "http://[::1]:5000"),
        ("sqlite:////runs/a@b.db", "sqlite:////runs/a@b.db"),
        ("token=plain", "token=plain"),
    ],
)
def test_addresses_are_shown_without_what_is_secret(text: str, shown: str) -> None:
    assert without_password(text) == shown


@pytest.mark.parametrize("folder", ["s3://bucket", Path("s3://bucket/x"), Path("abfs+ssl://bucket/x")])
def test_object_stores_are_refused(folder: Path | str) -> None:
    with pytest.raises(RecordsError, match=r"--results: found \S+:/\S+, allowed: a folder"):
        Results(folder)


@pytest.mark.parametrize("status", Status)
def test_statuses_are_one_table(status: Status) -> None:
    assert status.done == (status.value in {"finished", "diverged", "screened", "failed"})
    assert json.loads(json.dumps(dataclasses.asdict(result(status))))["status"] == status.value
