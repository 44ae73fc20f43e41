"""Registries: entry points, plugin files, the cached index, and what goes wrong with them."""

import subprocess
import sys
from pathlib import Path

import pytest
from support import plugin

from harness import sources
from harness.options import OptionError, check, check_all, schema_of
from harness.registry import KINDS, Collision, Kind, Registry, RegistryError


def test_options_are_dataclass_fields(tmp_path: Path) -> None:
    registry = Registry(
        [
            plugin(
                tmp_path,
                """
                from typing import Literal

                @register_method("many_options")
                class ManyOptions(Method):
                    '''Has options of every kind.'''
                    owns = frozenset({"decay"})
                    scale: float = 1.0
                    count: int = 2
                    mode: Literal["a", "b"] = "a"
                    sizes: tuple[int, ...] = (1, 2)
                    limit: float | None = None
                    on: bool = False
                """,
            )
        ]
    )
    item = registry.item("method", "many_options")
    assert item.summary == "Has options of every kind."
    assert item.owns == ["decay"]
    assert item.options == {
        "scale": {"type": "float", "default": 1.0},
        "count": {"type": "int", "default": 2},
        "mode": {"type": "enum", "allowed": ["a", "b"], "default": "a"},
        "sizes": {"type": "list", "items": {"type": "int"}, "default": [1, 2]},
        "limit": {"type": "float", "optional": True, "default": None},
        "on": {"type": "bool", "default": False},
    }
    built = registry.build_method("many_options", {"scale": 3, "sizes": [4]})
    assert (built.scale, built.sizes, built.count) == (3.0, [4], 2)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("value", "kind", "said"),
    [
        (True, "int", "found True, allowed: an integer"),
        (1.5, "int", "found 1.5, allowed: an integer"),
        ("1", "float", "found '1', allowed: a finite number"),
        (float("inf"), "float", "found inf, allowed: a finite number"),
        ([1], "float", "found [1], allowed: a finite number; an axis is written {each: [...]}"),
        (1, "bool", "found 1, allowed: true or false"),
        (None, "str", "found None, allowed: a text"),
    ],
)
def test_values_are_checked(value: object, kind: str, said: str) -> None:
    with pytest.raises(OptionError) as caught:
        check(value, {"type": kind}, "x")
    assert str(caught.value) == f"x: {said}"


def test_unknown_options_get_the_nearest_name() -> None:
    with pytest.raises(OptionError, match="weight_decy: adamw has no such option, allowed: weight_decay; did you mean"):
        check_all({"weight_decy": 1}, {"weight_decay": {"type": "float"}}, "adamw")


def test_an_option_of_another_type_is_refused() -> None:
    from dataclasses import dataclass

    @dataclass
    class Odd:
        table: dict[str, int] | None = None

    with pytest.raises(OptionError, match=r"Odd\.table: found the type dict"):
        schema_of(Odd)


def test_unknown_names_name_broken_plugins(tmp_path: Path) -> None:
    registry = Registry([plugin(tmp_path, "raise RuntimeError('broken')")])
    with pytest.raises(RegistryError, match=r"did you mean 'adamw'.*plugin plugin\.py did not load.*broken"):
        registry.item("method", "adamww")


@pytest.mark.parametrize("kind", KINDS)
def test_of_many_names_the_nearest_are_listed_first(registry: Registry, kind: Kind) -> None:
    known = [item.name for item in registry.items(kind)]
    for name in known:
        wrong = f"{name[:-1]}_"
        with pytest.raises(RegistryError) as raised:
            registry.item(kind, wrong)
        said = str(raised.value)
        listed, _, rest = said.removeprefix(f"found {wrong!r}, which is no {kind}, allowed: ").partition(
            "; did you mean "
        )
        names, _, more = listed.partition(" and ")
        assert rest == f"{names.split(', ')[0]!r}?"
        assert set(names.split(", ")) <= set(known) and len(names.split(", ")) == 6
        assert more == (f"{len(known) - 6} more (harness list)" if len(known) > 6 else "")


def test_a_missing_plugin_file_is_reported(tmp_path: Path) -> None:
    assert "no such file" in Registry([tmp_path / "nothing.py"]).broken["plugin nothing.py"]


def test_two_plugins_may_not_share_a_name(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    files = []
    for folder in folders:
        folder.mkdir()
        files.append(plugin(folder, f'@register_method("same")\nclass Same(Method):\n    """{folder.name}"""\n'))
    with pytest.raises(Collision, match="method 'same' is registered twice"):
        Registry(files)
    assert Registry(files[:1]).item("method", "same").summary == "a"
    assert Registry(files[1:]).item("method", "same").summary == "b"


def test_the_index_answers_without_torch(tmp_path: Path) -> None:
    Registry()
    code = "import sys; sys.modules['torch'] = None\nfrom harness.registry import Registry\nprint(len(Registry().items('task')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 5


def test_comments_do_not_change_the_code_numbers_do(tmp_path: Path) -> None:
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    texts = ['"""Doc."""\nx = 1\n', "# why\nx  =  1\n", "x = 2\n"]
    for folder, text in zip((one, two, three), texts, strict=True):
        folder.mkdir()
        (folder / "m.py").write_text(text)
    digests = [sources.digest([folder / "m.py"]) for folder in (one, two, three)]
    assert digests[0] == digests[1] != digests[2]


def test_the_closure_follows_first_party_imports(tmp_path: Path) -> None:
    (tmp_path / "plug.py").write_text("import torch\nimport helper\nfrom tasks.models import mlp\n")
    (tmp_path / "helper.py").write_text("import math\n")
    names = {path.name for path in sources.closure(tmp_path / "plug.py")}
    models = {path.name for path in sources.closure(sources.PROJECT / "tasks" / "models" / "__init__.py")}
    assert names == {"plug.py", "helper.py"} | models
    supervised = {path.name for path in sources.closure(sources.PROJECT / "tasks" / "supervised.py")}
    assert {"supervised.py", "small.py", "splits.py"} <= supervised
    assert "loop.py" not in supervised


@pytest.mark.parametrize(("hook", "owned"), [("optimizer", "optimizer"), ("aggregate", "aggregation")])
def test_a_hook_that_would_never_be_called_is_refused(hook: str, owned: str, tmp_path: Path) -> None:
    code = f"@register_method('mine')\nclass Mine(Method):\n    {{}}def {hook}(self, *given):\n        return None\n"
    silent = plugin(tmp_path, code.format(""))
    (trouble,) = Registry([silent]).broken.values()
    assert f"{hook} is called on its owner alone; write owns = frozenset({{'{owned}'}})" in trouble
    (tmp_path / "owner").mkdir()
    owner = plugin(tmp_path / "owner", code.format(f"owns = frozenset({{{owned!r}}})\n    "))
    assert not Registry([owner]).broken


def test_what_a_list_shows_is_a_plain_sentence(registry: Registry) -> None:
    shown = [item.summary for kind in (*KINDS, "claim") for item in registry.items(kind)]
    assert not [text for text in shown if "\\" in text or ":math:" in text]


def test_a_name_that_no_grid_could_write_is_refused(tmp_path: Path) -> None:
    for number, name in enumerate(("bad name", "../up", "a + b", "a/b/c", "")):
        (tmp_path / str(number)).mkdir()  # Python takes a file of the same size and second for the same
        file = plugin(tmp_path / str(number), f"@register_method({name!r})\nclass Mine(Method):\n    pass\n")
        (trouble,) = Registry([file]).broken.values()
        assert f"method {name!r}: allowed: letters, digits" in trouble
