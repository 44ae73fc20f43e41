"""Grids that must be refused: each with the field that the message names, and what else it says."""

from dataclasses import dataclass, field
from pathlib import Path

GOOD = """\
name: good
tasks: [digits/mlp]
methods: [adamw]
seeds: 1
"""
MORE = " more (harness list); did you mean "
"""How the list of the nearest names ends."""


@dataclass(frozen=True)
class Malformed:
    """A grid with something wrong in it."""

    name: str
    text: str | bytes | None
    """The file; None if there is none."""
    field: str
    """The path of the field, or the line, as the message names it."""
    says: tuple[str, ...]
    """What was found, what is allowed, the nearest name."""
    file: str = "grid.yaml"
    overrides: tuple[str, ...] = ()
    others: dict[str, str] = field(default_factory=dict)
    """Further files beside it."""
    heavy: bool = False
    """Only the task or method itself can tell: planning it imports torch."""

    def write(self, folder: Path) -> Path:
        """Writes the files and returns that of the grid."""
        file = folder / "grid.yaml"
        if isinstance(self.text, bytes):
            file.write_bytes(self.text)
        elif self.text is not None:
            file.write_text(self.text)
        for name, text in self.others.items():
            (folder / name).write_text(text)
        return file


def grid(**fields: str) -> str:
    """A good grid with some fields written otherwise, or not at all."""
    content = {"name": "good", "tasks": "[digits/mlp]", "methods": "[adamw]", "seeds": "1"} | fields
    return "".join(f"{name}: {value}\n" for name, value in content.items() if value)


MALFORMED = [
    # The file.
    Malformed("missing file", None, "", ("no file of this name", "a YAML file"), others={"grids.yaml": GOOD}),
    Malformed("misspelt file", None, "", ("did you mean 'grids.yaml'?",), others={"grids.yaml": GOOD}),
    Malformed("empty file", "", "", ("found nothing", "a mapping")),
    Malformed("a list", "- name: x\n", "", ("found [{'name': 'x'}]", "a mapping")),
    Malformed("not UTF-8", b"name: \xff\xfe\n", "", ("UTF-8",)),
    Malformed("too large", GOOD + "#" * 1_000_000, "", ("1,000,000 bytes",)),
    Malformed("bad YAML", "name: [a\ntasks: {\n", "", ("line 2", "not YAML 1.2")),
    Malformed("duplicate key", GOOD + "seeds: 2\n", "", ("line 5", "duplicate key", "seeds")),
    Malformed("python tag", grid(seeds="!!python/object/apply:os.system [true]"), "", ("line 4", "!!python/object")),
    Malformed("date", grid(name="2020-01-01"), "", ("line 1", "!!timestamp", "texts, numbers")),
    Malformed("alias", GOOD + "recipes: [&a {set: {lr: 1.0}}, *a]\n", "", ("line 5", "alias of 'a'", "no aliases")),
    Malformed("merge key", GOOD + "recipes: [{<<: {set: {lr: 1.0}}}]\n", "", ("line 5", "!!merge")),
    Malformed("directive", "%YAML 1.1\n---\n" + GOOD, "", ("%YAML 1.1", "YAML 1.2")),
    Malformed("two documents", GOOD + "---\n" + GOOD, "", ("line 5", "not YAML 1.2")),
    Malformed("endless nesting", grid(seeds="[" * 5000 + "]" * 5000), "", ("50 deep",)),
    Malformed("infinity", GOOD + "recipes: [{set: {lr: .inf}}]\n", "recipes[0].set.lr", ("found inf", "finite")),
    # Fields.
    Malformed("unknown field", grid(tasks="", task="[digits/mlp]"), "task", ("methods", "did you mean 'tasks'?")),
    Malformed("missing field", grid(methods=""), "methods", ("found nothing", "required")),
    Malformed("name is a path", grid(name="../x"), "name", ("found '../x'", "lower-case letters")),
    Malformed("name is a number", grid(name="3"), "name", ("found 3", "a text")),
    Malformed("name too long", grid(name="x" * 101), "name", ("at most 100 characters",)),
    Malformed("empty list", grid(tasks="[]"), "tasks", ("found []", "at least one entry")),
    Malformed("not a list", grid(methods="adamw"), "methods", ("found 'adamw'", "a list")),
    Malformed("two names in one entry", grid(tasks="[{digits/mlp: {}, digits/cnn: {}}]"), "tasks[0]", ("one entry",)),
    Malformed("entry of a wrong type", grid(tasks="[3]"), "tasks[0]", ("found 3", "a text, a mapping")),
    Malformed("tuning", GOOD + "tuning: {trials: 8}\n", "tuning.over", ("required",)),
    Malformed("screening joined", GOOD + "screening: {rule: asha + oui}\n", "screening.rule", ("asha", "alone")),
    Malformed("screening misspelt", GOOD + "screening: {rule: ouy}\n", "screening.rule", ("ouy", "did you mean 'oui'")),
    Malformed("screening unsuited", GOOD + "screening: {rule: oui}\n", "screening.rule", ("'oui'", "policy", "lr")),
    Malformed("screening thresholds", GOOD + "screening: {rule: lr}\n", "screening.thresholds", ("found none",)),
    Malformed("start", GOOD + "start: {from: adamw}\n", "start", ("at: SHARE", "of: TASK")),
    Malformed("stacked", GOOD + "stacked: 8\n", "stacked", ("8", "true or false")),
    Malformed("ranks", GOOD + "resources: {ranks: 0}\n", "resources.ranks", ("found 0", "at least 1")),
    Malformed(
        "batch over ranks", GOOD + "resources: {ranks: 3}\n", "resources.ranks", ("found 3", "64 samples"), heavy=True
    ),
    Malformed(
        "a part of a GPU for each rank",
        GOOD + "resources: {ranks: 2, gpus: 0.5}\n",
        "resources.gpus",
        ("found 0.5 for each of 2 ranks", "0 or 1"),
        heavy=True,
    ),
    Malformed(
        "more ranks than clients",
        grid(tasks="[digits/federated]", methods="[fed_avg]") + "resources: {ranks: 11}\n",
        "resources.ranks",
        ("found 11", "at most the 5 clients of a round"),
        heavy=True,
    ),
    # Names.
    Malformed(
        "unknown task", grid(tasks="[digits/mpl]"), "tasks[0]", ("digits/cnn", MORE, "did you mean 'digits/mlp'?")
    ),
    Malformed(
        "unknown method", grid(methods="[adamw, balanced_adm]"), "methods[1]", (MORE, "did you mean 'balanced_adam'?")
    ),
    Malformed("unknown member", grid(methods="[adamw + fed_agv]"), "methods[0]", ("did you mean 'fed_avg'?",)),
    Malformed(
        "unknown probe", GOOD + "probes: [ouy]\n", "probes[0]", ("no probe", "allowed: oui, ", "did you mean 'oui'?")
    ),
    Malformed("half a composition", grid(methods="[adamw + ]"), "methods[0]", ("found 'adamw +'", "a + b")),
    Malformed("composed with itself", grid(methods="[sgd + sgd]"), "methods[0]", ("different ones",)),
    Malformed("control", grid(methods="[mean_of(adamw)]"), "methods[0]", ("needs runs of", "beside it")),
    Malformed("method twice", grid(methods="[adamw, sgd, adamw: {}]"), "methods[2]", ("'adamw'", "methods[0]")),
    Malformed(
        "task twice",
        grid(tasks="[digits/mlp, digits/mlp: {activation: relu}]"),
        "tasks[1]",
        ("activation=relu", "tasks[0]", "once"),
    ),
    Malformed("probe twice", GOOD + "probes: [oui, oui: {every: 3}]\n", "probes[1]", ("'oui' again", "probes[0]")),
    # Options.
    Malformed(
        "unknown option",
        grid(methods="[balanced_adam: {betta: 0.9}]"),
        "methods[0].betta",
        ("no field of method balanced_adam", "beta, decay", "did you mean 'beta'?"),
    ),
    Malformed("option of a wrong type", grid(tasks="[digits/cnn: {width: wide}]"), "tasks[0].width", ("an integer",)),
    Malformed("truth for a number", grid(tasks="[digits/cnn: {width: true}]"), "tasks[0].width", ("found True",)),
    Malformed(
        "unknown choice",
        grid(tasks="[digits/mlp: {activation: gelo}]"),
        "tasks[0].activation",
        ("found 'gelo'", "relu, gelu", "did you mean 'gelu'?"),
    ),
    Malformed("a list where none may be", grid(tasks="[digits/cnn: {width: [16, 32]}]"), "tasks[0].width", ("{each:",)),
    Malformed("item of a list", grid(tasks="[digits/mlp: {hidden: [64, x]}]"), "tasks[0].hidden[1]", ("an integer",)),
    Malformed("options not a mapping", grid(tasks="[digits/mlp: 3]"), "tasks[0]", ("found 3", "a mapping of options")),
    Malformed(
        "options of no member",
        grid(methods="[adamw + fed_avg: {sgd: {}}]"),
        "methods[0].sgd",
        ("no member of adamw + fed_avg", "adamw, fed_avg"),
    ),
    Malformed("axis of a probe", GOOD + "probes: [oui: {every: {each: [1, 2]}}]\n", "probes[0]", ("no axes",)),
    Malformed(
        "refused by the method",
        grid(methods="[balanced_adam: {beta: 1.5}]"),
        "methods[0].beta",
        ("1.5", "[0, 1)"),
        heavy=True,
    ),
    # Seeds.
    Malformed("no seeds", grid(seeds="0"), "seeds", ("found 0", "at least 1")),
    Malformed("negative seed", grid(seeds="[0, -1]"), "seeds[1]", ("found -1", "at least 0")),
    Malformed("seed twice", grid(seeds="[3, 4, 3]"), "seeds", ("found 3", "once")),
    Malformed(
        "seeds of a wrong type", grid(seeds="many"), "seeds", ("found 'many'", "a whole number, a list, a mapping")
    ),
    Malformed("unknown stream", grid(seeds="{inti: 3}"), "seeds.inti", ("random stream", "did you mean 'init'?")),
    Malformed("too many seeds", grid(seeds="2000000"), "seeds", ("found 2000000", "at most 1000000")),
    # Axes.
    Malformed("empty axis", grid(tasks="[digits/cnn: {width: {each: []}}]"), "tasks[0].width.each", ("at least one",)),
    Malformed("axis not a list", grid(tasks="[digits/cnn: {width: {each: 3}}]"), "tasks[0].width.each", ("found 3",)),
    Malformed("value twice", grid(tasks="[digits/cnn: {width: {each: [8, 8]}}]"), "tasks[0].width.each[1]", ("once",)),
    Malformed("unknown form", grid(tasks="[digits/cnn: {width: {eech: [8]}}]"), "tasks[0].width", ("{each: [...]}",)),
    Malformed(
        "uneven zip",
        GOOD + "recipes: [{set: {zip: {lr: [0.1, 0.2], batch: [8]}}}]\n",
        "recipes[0].set.zip",
        ("'batch': 1", "one length"),
    ),
    Malformed(
        "when without a case",
        GOOD + "recipes: [{set: {optimizer: {each: [sgd, adamw]}, lr: {when: {optimizer: {sgd: 0.1}}}}}]\n",
        "recipes[0].set.lr.when.optimizer",
        ("no case for 'adamw'", '"sgd"'),
    ),
    Malformed(
        "when in a circle",
        GOOD + "recipes: [{set: {lr: {when: {eps: {0.1: 0.1}}}, eps: {when: {lr: {0.1: 0.1}}}}}]\n",
        "recipes[0].set.lr",
        ("circle", "lr → eps → lr"),
    ),
    Malformed(
        "too many trials",
        grid(seeds="1000") + f"recipes: [{{set: {{steps: {{each: {list(range(1, 2001))}}}}}}}]\n",
        "",
        ("2,000,000 trials", "1,000,000"),
    ),
    Malformed(
        "axes that explode",
        GOOD
        + f"recipes: [{{set: {{steps: {{each: {list(range(1, 2001))}}}, batch: {{each: {list(range(1, 2001))}}}}}}}]\n",
        "recipes[0].set.steps",
        ("4,000,000", "1,000,000"),
    ),
    # Recipes.
    Malformed(
        "unknown recipe field", GOOD + "recipes: [{set: {lrr: 0.1}}]\n", "recipes[0].set.lrr", ("did you mean 'lr'?",)
    ),
    Malformed(
        "recipe of a wrong type", GOOD + "recipes: [{set: {lr: fast}}]\n", "recipes[0].set.lr", ("a finite number",)
    ),
    Malformed("misspelt rule", GOOD + "recipes: [{sett: {lr: 0.1}}]\n", "recipes[0].sett", ("did you mean 'set'?",)),
    Malformed("rule that sets nothing", GOOD + "recipes: [{set: {}}]\n", "recipes[0].set", ("at least one entry",)),
    Malformed(
        "glob of no task",
        GOOD + "recipes: [{task: '*/cnn', set: {lr: 0.1}}]\n",
        "recipes[0].task",
        ("matches no task",),
    ),
    Malformed(
        "glob of no method",
        GOOD + "recipes: [{method: adam, set: {lr: 0.1}}]\n",
        "recipes[0].method",
        ("did you mean 'adamw'?",),
    ),
    Malformed(
        "phase of no optimizer",
        GOOD + "recipes: [{set: {phases: [newton 5]}}]\n",
        "recipes[0].set.phases",
        ("'newton 5'", "lbfgs"),
        heavy=True,
    ),
    Malformed(
        "phases shorter than the run",
        GOOD + "recipes: [{set: {steps: 20, phases: [method 5, lbfgs 5]}}]\n",
        "recipes[0].set.phases",
        ("10 steps together", "20 steps"),
        heavy=True,
    ),
    Malformed(
        "refused by the recipe",
        GOOD + "recipes: [{set: {lr: -1.0}}]\n",
        "recipes[0].set.lr",
        ("-1.0", "positive"),
        heavy=True,
    ),
    Malformed(
        "override of the recipe", GOOD, "recipe.lrr", ("did you mean 'lr'?"), file="--set", overrides=("recipe.lrr=1",)
    ),
    Malformed("override of a field", GOOD, "sedes", ("did you mean 'seeds'?"), file="--set", overrides=("sedes=1",)),
    Malformed("override without a value", GOOD, "", ("found 'seeds'", "a.b=c"), file="--set", overrides=("seeds",)),
    Malformed(
        "override out of range",
        GOOD,
        "tasks.4",
        ("no entry '4'", "0 to 0"),
        file="--set",
        overrides=("tasks.4=digits/cnn",),
    ),
    # Values from other trials.
    Malformed(
        "unknown source",
        grid(methods="[adamw, balanced_adam: {beta: {from: adamv, metric: val/loss}}]"),
        "methods[1].beta.from",
        ("no method of this grid", "did you mean 'adamw'?"),
    ),
    Malformed(
        "a circle of trials",
        grid(methods="[adamw, balanced_adam: {beta: {from: balanced_adam, metric: val/loss}}]"),
        "methods[1].beta.from",
        ("circle", "balanced_adam → balanced_adam"),
    ),
    Malformed(
        "several sources",
        grid(methods="[balanced_adam: {beta: {each: [0.5, 0.9]}}, sgd]")
        + "recipes: [{method: sgd, set: {momentum: {from: balanced_adam, metric: val/loss}}}]\n",
        "recipes[0].set.momentum.from",
        ("2 methods", "balanced_adam(beta=0.5)"),
    ),
    Malformed(
        "a metric for a whole number",
        GOOD + "recipes: [{set: {steps: {from: adamw, metric: val/loss}}}]\n",
        "recipes[0].set.steps",
        ("only a float",),
    ),
    Malformed(
        "a metric for a task",
        grid(tasks="[digits/cnn: {width: {from: adamw, metric: val/loss}}]"),
        "tasks[0].width",
        ("only a float",),
    ),
    # Claims.
    Malformed("claims not a list", GOOD + "claims: {better: a}\n", "claims", ("a list",)),
    Malformed("claim not a mapping", GOOD + "claims: [better]\n", "claims[0]", ("found 'better'", "a mapping")),
    Malformed("claim of no kind", GOOD + "claims: [{beter: a, than: b}]\n", "claims[0]", ("did you mean 'better'?",)),
    Malformed("empty claim", GOOD + "claims: [{}]\n", "claims[0]", ("no kind of claim", "ordered")),
    Malformed(
        "claim of two kinds", GOOD + "claims: [{better: a, wins: b}]\n", "claims[0]", ("better, wins", "one kind")
    ),
    Malformed(
        "field of no claim",
        GOOD + "claims: [{better: adamw, thann: sgd}]\n",
        "claims[0].thann",
        ("no field of a claim 'better'", "did you mean 'than'?"),
    ),
    Malformed("half a claim", GOOD + "claims: [{better: adamw}]\n", "claims[0].than", ("found nothing", "needs it")),
    Malformed(
        "claim about nobody",
        grid(methods="[adamw, sgd]") + "claims: [{better: adamv, than: sgd}]\n",
        "claims[0].better",
        ("no method of this grid", "did you mean 'adamw'?"),
    ),
    Malformed(
        "claim about no task",
        grid(methods="[adamw, sgd]") + "claims: [{better: adamw, than: sgd, on: 'digits/cn*'}]\n",
        "claims[0].on",
        ("no task of this grid", "digits/mlp"),
    ),
    Malformed(
        "claim about itself",
        GOOD + "claims: [{better: adamw, than: adamw}]\n",
        "claims[0].than",
        ("found 'adamw'", "something else"),
    ),
    Malformed(
        "claim of a wrong type",
        grid(methods="[adamw, sgd]") + "claims: [{better: adamw, than: sgd, margin: much}]\n",
        "claims[0].margin",
        ("found 'much'", "a finite number"),
    ),
    Malformed(
        "claim without a direction",
        grid(methods="[adamw, sgd]") + "claims: [{better: adamw, than: sgd, by: probe/oui}]\n",
        "claims[0].by",
        ("found 'probe/oui'", "direction: min or max"),
    ),
    Malformed(
        "margin on the wrong side",
        grid(methods="[adamw, sgd]") + "claims: [{not_worse: adamw, than: sgd, margin: -0.1}]\n",
        "claims[0].margin",
        ("found -0.1", "more than 0"),
    ),
    Malformed(
        "claim twice",
        grid(methods="[adamw, sgd]") + "claims: [{better: adamw, than: sgd}, {than: sgd, better: adamw}]\n",
        "claims[1]",
        ("the same claim again",),
    ),
    Malformed("level of a coin", GOOD + "level: 0.5\n", "level", ("found 0.5", "less than 0.5")),
    Malformed("one look", GOOD + "sequential: {looks: 1}\n", "sequential.looks", ("found 1", "at least 2")),
    Malformed("looks back", GOOD + "sequential: {looks: [8, 4]}\n", "sequential.looks", ("[8, 4]", "rising")),
    Malformed("misspelt looks", GOOD + "sequential: {look: 3}\n", "sequential.look", ("did you mean 'looks'?",)),
    # Resources.
    Malformed("negative CPUs", GOOD + "resources: {cpus: -1}\n", "resources.cpus", ("found -1", "more than 0")),
    Malformed("a GPU and a half", GOOD + "resources: {gpus: 1.5}\n", "resources.gpus", ("found 1.5", "whole number")),
    Malformed("memory in words", GOOD + "resources: {memory: lots}\n", "resources.memory", ("found 'lots'", "2GiB")),
    Malformed("time without a unit", GOOD + "resources: {time: '20'}\n", "resources.time", ("found '20'", "20m")),
    Malformed("no time", GOOD + "resources: {time: 0}\n", "resources.time", ("found 0", "more than 0")),
    Malformed("unknown resource", GOOD + "resources: {gpu: 1}\n", "resources.gpu", ("did you mean 'gpus'?",)),
    Malformed(
        "resources of no task", GOOD + "resources: [{task: x, cpus: 1}]\n", "resources[0].task", ("matches no task",)
    ),
    # Extends.
    Malformed(
        "extends nothing",
        GOOD + "extends: bse.yaml\n",
        "extends",
        ("no file", "'base.yaml'"),
        others={"base.yaml": GOOD},
    ),
    Malformed(
        "extends itself",
        GOOD + "extends: base.yaml\n",
        "extends",
        ("circle", "grid.yaml → base.yaml → grid.yaml"),
        file="base.yaml",
        others={"base.yaml": GOOD + "extends: grid.yaml\n"},
    ),
    Malformed(
        "wrong in the extended file",
        "name: x\nextends: base.yaml\nrecipes: [{set: {lr: 0.1}}]\n",
        "recipes[0].set.lrr",
        ("did you mean 'lr'?",),
        file="base.yaml",
        others={"base.yaml": GOOD + "recipes: [{set: {lrr: 0.1}}]\n"},
    ),
    Malformed("a longer path than there can be", f"name: x\nextends: {'a' * 300}\n", "extends", ("is no file",)),
    Malformed(
        "an override of an entry that is not there",
        GOOD,
        "recipes[0].set.lr",
        ("no entry '0'", "the list is empty"),
        file="--set",
        overrides=("recipes[0].set.lr=1",),
    ),
    Malformed(
        "an override of an entry by name",
        GOOD,
        "recipes.foo",
        ("no entry 'foo'",),
        file="--set",
        overrides=("recipes.foo=1",),
    ),
    Malformed(
        "an override of a mapping in the place of a list",
        GOOD + "recipes: {lr: 1}\n",
        "recipes",
        ("allowed: a list",),
        overrides=("recipes.foo=1",),
    ),
    Malformed("an empty zip", GOOD + "recipes: [{set: {zip: {}}}]\n", "recipes[0].set.zip", ("found {}",)),
    Malformed(
        "more than a float holds",
        GOOD + f"recipes: [{{set: {{lr: 1{'0' * 400}}}}}]\n",
        "recipes[0].set.lr",
        ("an integer of 1329 bits", "a finite number"),
    ),
    Malformed(
        "more than torch counts to",
        GOOD + f"recipes: [{{set: {{steps: {2**63}}}}}]\n",
        "recipes[0].set.steps",
        ("an integer of 64 bits",),
    ),
    Malformed(
        "a resource that is a field",
        GOOD + "resources: {custom: {CPU: 2}}\n",
        "resources.custom",
        ("found 'CPU'", "cpus, gpus and memory are fields"),
    ),
    # Cells left out.
    Malformed(
        "left out: no such method",
        GOOD + "leave_out: [{method: adamm, because: slow}]\n",
        "leave_out[0].method",
        ("found 'adamm', which is no method of this grid", "did you mean 'adamw'?"),
    ),
    Malformed(
        "left out without a reason", GOOD + "leave_out: [{method: adamw}]\n", "leave_out[0].because", ("found nothing",)
    ),
    # The plan.
    Malformed(
        "no cell remains", grid(methods="[fed_avg]"), "methods", ("no cell that can run", "needs clients"), heavy=True
    ),
    Malformed(
        "one trial twice",
        GOOD + "recipes: [{set: {steps: 600, evaluate_every: {each: [null, 60]}}}]\n",
        "methods[0]",
        ("evaluate_every=60", "same trial", "evaluate_every=null"),
        heavy=True,
    ),
]
