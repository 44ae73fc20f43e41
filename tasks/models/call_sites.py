"""One activation module per place where an activation is called, for any model.

Libraries use one module at several places (torchvision's ResNet block calls one ReLU two or three times) or call a function
(its DenseNet). Then a hook cannot tell the places apart, and nothing can be learned per place. `split_call_sites` rewrites
the few modules whose forward pass does so, by tracing each of them alone with everything below it left as it is.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from harness.activations import gates, is_gate

FUNCTIONS: dict[Callable[..., Any], type[nn.Module]] = {
    functional.relu: nn.ReLU,
    functional.relu_: nn.ReLU,
    torch.relu: nn.ReLU,
    torch.relu_: nn.ReLU,
    Tensor.relu: nn.ReLU,
    Tensor.relu_: nn.ReLU,
    functional.gelu: nn.GELU,
    functional.silu: nn.SiLU,
    functional.elu: nn.ELU,
    functional.leaky_relu: nn.LeakyReLU,
    functional.mish: nn.Mish,
    functional.hardswish: nn.Hardswish,
}
"""Functions that are activations wherever they are called. Tanh and sigmoid are left out: they also bound and weigh."""
METHODS = {"relu": nn.ReLU, "relu_": nn.ReLU}


class Squash(nn.Module):
    """The logistic function where it weighs channels (squeeze and excitation) and is no activation: not a gate."""

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.sigmoid(inputs)


def split_call_sites(model: nn.Module, *inputs: Tensor) -> nn.Module:
    """Gives a model one activation module per place where one is called, in place, and returns it.

    The outputs are the library's to the bit, which is checked on `inputs`. No activation works in place afterwards, so that
    a hook sees the pre-activation unchanged.

    Raises:
        ValueError: if the forward pass of a module that has to be rewritten cannot be traced, or depends on its mode.

    >>> class Twice(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.act = nn.ReLU()
    ...     def forward(self, x):
    ...         return self.act(functional.gelu(self.act(x) - 1))
    >>> list(gates(split_call_sites(Twice(), torch.zeros(1, 3))))
    ['act', 'gelu', 'act_2']
    """
    for gate in gates(model).values():
        if hasattr(gate, "inplace"):
            setattr(gate, "inplace", False)  # noqa: B010
    training = model.training
    model.eval()
    with torch.no_grad():
        before = model(*inputs)
        for owner in _owners(model, inputs):
            model = _replace(model, owner, _rewritten(model.get_submodule(owner), owner))
        if not torch.equal(before, model(*inputs)):
            raise ValueError("splitting the call sites changed the outputs")
        if left := _owners(model, inputs):
            raise ValueError(f"activations that are not modules of their own remain in {', '.join(left)}")
    return model.train(training)


class _Watch(TorchFunctionMode):
    """Notes which modules call activations, and how."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._names = {module: name for name, module in model.named_modules()}
        self._stack: list[nn.Module] = []
        self.functions: list[nn.Module] = []
        self.callers: dict[nn.Module, list[nn.Module]] = {}

    def enter(self, module: nn.Module, inputs: Any) -> None:
        if is_gate(module) and self._stack:
            self.callers.setdefault(module, []).append(self._stack[-1])
        self._stack.append(module)

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._stack.pop()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in FUNCTIONS and self._stack and not is_gate(self._stack[-1]):
            self.functions.append(self._stack[-1])
        return function(*args, **(kwargs or {}))


def _owners(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[str]:
    """The modules whose forward pass calls an activation function, or one activation module more than once."""
    watch = _Watch(model)
    handles = []
    for module in model.modules():
        handles.append(module.register_forward_pre_hook(watch.enter))
        handles.append(module.register_forward_hook(watch.leave))
    try:
        with watch:
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    found = {*watch.functions, *_repeated(watch.callers.values())}
    return [name for name, module in model.named_modules() if module in found and not _is_library_leaf(module)]


def _repeated(callers: Iterable[list[nn.Module]]) -> set[nn.Module]:
    return {caller for calls in callers if len(calls) > 1 for caller in Counter(calls)}


def _is_library_leaf(module: nn.Module) -> bool:
    """Torch's own layers are left alone: what they compute inside is theirs."""
    return type(module).__module__.startswith("torch.nn")


class _Shallow(fx.Tracer):
    """Traces one forward pass and nothing below it."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return True


def _rewritten(module: nn.Module, name: str) -> fx.GraphModule:
    try:
        graph = _Shallow().trace(module)
    except Exception as error:
        raise ValueError(f"{name or 'the model'}: its activations cannot be told apart ({error})") from error
    used: Counter[str] = Counter()
    for node in list(graph.nodes):
        if "training" in node.kwargs:
            raise ValueError(f"{name or 'the model'}: {node.target} depends on the mode, which tracing would fix")
        if node.op == "call_module" and is_gate(module.get_submodule(node.target)):
            used[node.target] += 1
            if used[node.target] > 1:
                copied = copy.deepcopy(module.get_submodule(node.target))
                node.target = _add(module, f"{node.target}_{used[node.target]}", copied)
        elif kind := _activation_of(node):
            _to_module(graph, node, _add(module, node.name, _like(kind, node)))
    graph.lint()
    return fx.GraphModule(module, graph, class_name=type(module).__name__)


def _activation_of(node: fx.Node) -> type[nn.Module] | None:
    if node.op == "call_function" and callable(node.target):
        return FUNCTIONS.get(node.target)
    return METHODS.get(str(node.target)) if node.op == "call_method" else None


def _like(kind: type[nn.Module], node: fx.Node) -> nn.Module:
    """The module with the arguments of a call of the function."""
    arguments = {name: value for name, value in node.kwargs.items() if name not in ("inplace", "input")}
    if len(node.args) > 1:
        raise ValueError(f"{node.target} is called with positional arguments {node.args[1:]}")
    return kind(**arguments)


def _add(module: nn.Module, name: str, child: nn.Module) -> str:
    """Adds a child under a free name."""
    while hasattr(module, name):
        name += "_"
    module.add_module(name, child)
    return name


def _to_module(graph: fx.Graph, node: fx.Node, target: str) -> None:
    argument = node.args[0] if node.args else node.kwargs["input"]
    with graph.inserting_before(node):
        new = graph.call_module(target, (argument,))
    node.replace_all_uses_with(new)
    graph.erase_node(node)


def _replace(model: nn.Module, name: str, child: nn.Module) -> nn.Module:
    if not name:
        return child
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, child)
    return model
