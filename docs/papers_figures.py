"""What each paper's page shows: the figures that its claims are about, and learning curves where a paper has none of its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from papers_panels import Panel, Points, drawn, early, final, known, line, over, strip, strips_figure, tracks_of, values
from papers_regimes import REGIMES, regimes

from harness.judging.calibration_runs import runs_of_grid
from harness.judging.drawing import SERIES
from harness.judging.evidence import Evidence
from harness.judging.figures import Figure, Line, Strip
from harness.judging.report_curves import Track
from harness.judging.report_curves import curve as seed_curve
from harness.judging.report_data import Findings
from harness.judging.report_figures import learning_curves
from harness.judging.report_rules import precision_over_recall
from harness.judging.report_tasks import TaskTable, cell_trials
from harness.probes.curves import ema
from harness.recording.results import Results


def task_curves(findings: Findings, memory: Results) -> Iterator[Figure]:
    """Learning curves of every task: what a paper gets that has no figures of its own."""
    for index, table in enumerate(findings.tables):
        yield from curves_of(findings, memory, table, f"c{index}")


def curves_of(findings: Findings, memory: Results, table: TaskTable, key: str) -> Iterator[Figure]:
    """Learning curves of the methods on one task, over steps and seconds."""
    evidence, task = findings.evidence, table.task
    own = evidence.own(task)[0]
    unit = "rounds" if evidence.trial(task, table.rows[0].cell).spec.recipe.get("rounds") else "steps"
    shown = [row for row in table.rows if row.finished or row.worst][:SERIES]
    tracks = {row.label: tracks_of(memory, evidence, task, row.cell, own) for row in shown}
    if found := learning_curves(shown, tracks, (own, unit), key, f"Learning curves: {task}"):
        yield found


def weight_decay_sweep(findings: Findings, memory: Results) -> Iterator[Figure]:
    """Loss and OUI over weight decay, by the regimes that the grid defines."""
    evidence, decay = findings.evidence, "weight_decay"
    for index, task in enumerate(evidence.tasks("*")):
        found = regimes(evidence, task)
        if found is None:
            continue
        losses = [
            line(regime, place, over(evidence, task, found.cells[regime], decay, final(evidence, "val/loss")))
            for place, regime in enumerate(REGIMES.values())
        ]
        yield from drawn(
            f"Validation loss and OUI over weight decay: {task}",
            [
                Panel("validation loss", (decay, "val/loss"), known(losses)),
                Panel("OUI", (decay, "probe/oui/mean"), known(oui_lines(evidence, task, "*", decay, 3))),
            ],
            f"w{index}",
        )


def oui_lines(evidence: Evidence, task: str, method: str, axis: str, colour: int = 0) -> Iterator[Line | None]:
    """OUI at a tenth of the training and at its end, over an axis."""
    cells = evidence.cells(task, method)
    yield line("OUI at 10 %", colour, over(evidence, task, cells, axis, early(evidence, "probe/oui/mean")))
    yield line("OUI at the end", colour + 1, over(evidence, task, cells, axis, final(evidence, "probe/oui/mean")))


def oui_observable(findings: Findings, memory: Results) -> Iterator[Figure]:
    """OUI early and at the end beside the loss, over the axes that the grid varies."""
    evidence = findings.evidence
    for index, task in enumerate(evidence.tasks("*")):
        for method, axis in (("sgd", "weight_decay"), ("adamw", "lr")):
            cells = evidence.cells(task, method)
            loss = line("test loss", 2, over(evidence, task, cells, axis, final(evidence, "test/loss")))
            yield from drawn(
                f"OUI and test loss over {axis}: {method} on {task}",
                [
                    Panel("OUI", (axis, "probe/oui/mean"), known(oui_lines(evidence, task, method, axis))),
                    Panel("test loss", (axis, "test/loss"), known([loss])),
                ],
                f"o{index}{method}",
            )


def two_timescales(findings: Findings, memory: Results) -> Iterator[Figure]:
    """Flips and update norms over training, each as a share of its largest value, smoothed as the probe does it."""
    evidence = findings.evidence
    for index, task in enumerate(evidence.tasks("*")):
        panels = []
        for schedule in ("cosine", "constant"):
            lines = []
            for cell in evidence.cells(task, "adamw", f"schedule={schedule}"):
                for place, (name, metric) in enumerate((("flips", "rate"), ("update norm", "update_norm"))):
                    tracks = tracks_of(memory, evidence, task, cell, f"probe/activation_flips/{metric}")
                    if found := seed_curve([share_of_largest(track) for track in tracks]):
                        lines.append(Line(name, found.steps, found.mean, found.low, found.high, place))
            panels.append(Panel(f"{schedule} learning rate", (f"steps, {schedule}", "share of the largest"), lines))
        yield from drawn(f"Flips and update norms over training: {task}", panels, f"f{index}", curves=True)


def share_of_largest(track: Track) -> Track:
    """A curve smoothed over max(20, n/200) of its n values, divided by its largest."""
    smooth = ema([value for _, value in track.values()], max(20, len(track) // 200))
    largest = max(smooth, default=0.0) or 1.0
    return {step: (pair[0], value / largest) for (step, pair), value in zip(track.items(), smooth, strict=True)}


def balanced_adam(findings: Findings, memory: Results) -> Iterator[Figure]:
    """Roughness and loss over the grid of betas."""
    evidence, betas = findings.evidence, (0.9, 0.99, 0.999)
    for index, task in enumerate(evidence.tasks("*")):
        panels = []
        for metric in ("probe/gradient_scale/omega1", "val/loss"):
            lines = [
                line(
                    f"β1 = {beta}",
                    place,
                    over(
                        evidence,
                        task,
                        evidence.cells(task, "adamw(*)", f"beta1={beta}"),
                        "beta2",
                        final(evidence, metric),
                    ),
                    betas,
                )
                for place, beta in enumerate(betas)
            ]
            panels.append(Panel(metric, ("β2", metric), known(lines), [str(beta) for beta in betas]))
        yield from drawn(f"Roughness ω1 and validation loss over the betas: {task}", panels, f"b{index}")


def refresh(findings: Findings, memory: Results) -> Iterator[Figure]:
    """How far each fixed beta, and the rule, lies above the best mean of a task."""
    evidence, label = findings.evidence, "% above the best mean"
    read = final(evidence, "val/loss")
    found: dict[str, tuple[Points, list[float]]] = {}
    for task in evidence.tasks("*"):
        fixed = over(evidence, task, evidence.cells(task, "balanced_adam(beta=*)"), "beta", read)
        rule = over(evidence, task, evidence.cells(task, "balanced_adam(refr*)"), "refreshes", read)
        found[task] = fixed, [value for values_ in rule.values() for value in values_]
    places: list[Any] = [*sorted({beta for fixed, _ in found.values() for beta in fixed}), "rule"]
    lines = []
    for index, (task, (fixed, ruled)) in enumerate(found.items()):
        means = [sum(values_) / len(values_) for values_ in (*fixed.values(), ruled) if values_]
        best = min(means, default=1.0)
        shares = {
            place: [100 * (v / best - 1) for v in values_] for place, values_ in (fixed | {"rule": ruled}).items()
        }
        at_rule = {"rule": shares.pop("rule")}
        lines += [line(task, index, shares, places), line(f"{task}, rule", index + len(found), at_rule, places)]
    names = [f"{place:.3g}".lstrip("0") or "0" for place in places[:-1]] + ["rule"]
    shown = [name if (n % 2 == 0 and n < len(names) - 2) or name == "rule" else "" for n, name in enumerate(names)]
    panel = Panel(label, ("β", label), known(lines), shown)
    yield from drawn("Validation loss above that of the best beta", [panel], "r")


def lambda_gelu(findings: Findings, memory: Results) -> Iterator[Figure]:
    """What the substitution by ReLU costs each arm, and the profiles of λ over the layers."""
    evidence = findings.evidence
    arms = {
        "GELU": "gelu",
        "learned": "lambda_gelu(hardness=1.693*",
        "hardened": "lambda_gelu(switch=0.25)",
        "hardened late": "lambda_gelu(switch=0.75)",
    }
    metric = "test/relu/loss_change"
    rows = [
        strip(
            f"{arm}, {task.partition('/')[2]}",
            [v for cell in evidence.cells(task, method) for v in values(evidence, task, cell, metric)],
        )
        for task in evidence.tasks("*")
        for arm, method in arms.items()
    ]
    yield from strips_figure(
        "Loss after the substitution by ReLU minus loss before", rows, "change of the test loss", "s"
    )
    for index, task in enumerate(evidence.tasks("*")):
        lines = []
        layers: list[str] = []
        for place, cell in enumerate(evidence.cells(task, "lambda_gelu(hardness=*)")):
            start = next(iter(evidence.trial(task, cell).axes.values()))
            points = profile(evidence, task, cell)
            layers = layers or list(points)
            lines.append(line(f"λ from {start:.3g}", place, points, layers))
        panel = Panel("λ by layer", ("layer", "λ"), known(lines), [name.removeprefix("act") for name in layers])
        yield from drawn(f"λ by layer at the end, by where it started: {task}", [panel], f"l{index}")


def profile(evidence: Evidence, task: str, cell: str, prefix: str = "probe/gate_hardness/lambda/") -> Points:
    """A final measure by layer."""
    found: Points = defaultdict(list)
    for trial in cell_trials(evidence, task, cell):
        result = evidence.results.get(trial.hash)
        for name, value in (result.metrics if result else {}).items():
            if name.startswith(prefix):
                found[name.removeprefix(prefix)].append(value)
    return dict(found)


def oui_decay(findings: Findings, memory: Results) -> Iterator[Figure]:
    """How much lower the test loss of OUIDecay is than that of each arm that it is compared with, seed by seed."""
    found: list[Figure] = []
    for index, table in enumerate(findings.tables):
        rows = [
            Strip(
                str(verdict.fields["than"]),
                [d for d in part.differences if d is not None],
                part.paired.mean,
                *part.paired.interval,
            )
            for verdict in findings.verdicts
            if verdict.fields.get("better") == "oui_decay"
            for part in verdict.parts
            if part.label.startswith(table.task) and part.paired
        ]
        found += strips_figure(table.task, rows, f"test/loss, {table.task}", f"d{index}")
    if found:
        text = ". ".join(figure.text for figure in found)
        svgs = [svg for figure in found for svg in figure.svgs]
        data = [row for figure in found for row in figure.rows]
        yield Figure("Test loss of the others minus that of OUIDecay", text, svgs, found[0].columns, data, [])


def oui_screening(findings: Findings, memory: Results) -> Iterator[Figure]:
    """Precision over recall of the early rules, in sample; return and OUI over the learning rate."""
    evidence = findings.evidence
    runs = runs_of_grid(memory, findings.plan.name, at=0.1)
    for index, task in enumerate(evidence.tasks("*")):
        cells = evidence.cells(task, findings.plan.methods[0])  # the others are controls
        returns = line("return", 0, over(evidence, task, cells, "lr", final(evidence, "train/return_last_tenth")))
        signals = [
            line(name, place, over(evidence, task, cells, "lr", early(evidence, f"train/oui_{name}")))
            for place, name in enumerate(("critic", "actor"))
        ]
        yield from drawn(
            f"Return and early OUI over the learning rate: {task}",
            [
                Panel("return of the last tenth", ("lr", "train/return_last_tenth"), known([returns])),
                Panel("OUI at 10 %", ("lr", "OUI at 10 %"), known(signals)),
            ],
            f"p{index}",
        )
        yield from precision_over_recall(task, [run for run in runs if run.task == task], f"q{index}")


FIGURES: Mapping[str, Callable[[Findings, Results], Iterator[Figure]]] = {
    "weight_decay_sweep": weight_decay_sweep,
    "oui_observable": oui_observable,
    "two_timescales": two_timescales,
    "balanced_adam": balanced_adam,
    "refresh": refresh,
    "lambda_gelu": lambda_gelu,
    "oui_decay": oui_decay,
    "oui_screening": oui_screening,
    "oui_screening_lunarlander": oui_screening,
}
"""By name of the proxy grid; learning curves of every task where there is none."""


def figures_of(name: str, findings: Findings, memory: Results) -> list[Figure]:
    """The figures of a grid's page."""
    return list(FIGURES.get(name, task_curves)(findings, memory))
