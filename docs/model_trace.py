"""Data flow through a model, traced while a small build scores a small batch.

Every operator is recorded as it runs. Operators inside a module belong to its box. Operators outside any module pass on
the origin of their inputs. So a line between two boxes is an actual data flow, and a box without operations
(concatenation of columns) disappears into the lines. Shapes are written in letters, because the batch has numbers of
candidates and events that occur nowhere else in a model.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from model_batches import one_request, ragged_rows, score, small
from model_boxes import Box, Entry, Figure, by_rate, events_of, rate_of, shape_of, tidy
from model_cost import BAGS, cost, tensors
from model_origins import NONE, Origins, store_of
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from longrec.features.batch import Batch, Jagged
from longrec.features.fields import Fields
from longrec.models.core.base import Model
from longrec.models.core.kinds import Encoder, Retriever
from longrec.nn.embedding import Embedded, Embeddings

LISTS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict, Model)


def trace(name: str) -> Figure:
    """Trace a model: a ranker or retriever on one request, an encoder on rows of several users."""
    model, fields = small(name)
    ragged = isinstance(model, Encoder)
    batch = ragged_rows(fields) if ragged else one_request(fields)
    clear: set[str] = set()
    while True:
        watch = _Watch(model, fields, ragged, clear)
        watch.enter(batch)
        with torch.no_grad(), watch.hooks(), watch:
            if isinstance(model, Encoder):
                watch.leave("vector", model.encode(batch))
                watch.again()
            watch.leave("score" if isinstance(model, Retriever) else "logit", score(model, batch))
        # A box without operations passes its inputs on one by one, which needs another trace to follow.
        idle = {key for key, number in watch.of.items() if watch.boxes[number].idle()} - clear
        if not idle:
            return tidy(Figure(name, ragged, _count_learned(model), watch.boxes, watch.lines))
        clear |= idle


def _count_learned(model: Model) -> int:
    tables = {
        id(table) for module in model.modules() if isinstance(module, Embeddings) for table in module.parameters()
    }
    return sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in tables)


class _Watch(TorchDispatchMode):
    """Origins of every tensor of a run.

    Attributes:
        clear: keys of boxes without operations, which are removed.
        inside: boxes whose code runs, the innermost last; None inside embeddings, whose tables are assigned afterwards.
        calls: paths of the modules that run.
    """

    def __init__(self, model: Model, fields: Fields, ragged: bool, clear: set[str]) -> None:
        super().__init__()
        self.clear = clear
        self.model, self.fields, self.ragged = model, fields, ragged
        self.boxes: dict[int, Box] = {}
        self.lines: set[tuple[int, int]] = set()
        self.inside: list[int | None] = []
        self.calls: list[str] = []
        self.origins = Origins()
        self.named, self.called = False, 0
        self.of: dict[str, int] = {}
        self.columns: set[int] = set()
        self.counted: set[str] = set()
        self.path = {module: name for name, module in model.named_modules()}
        self.owner = {store_of(parameter): name for name, parameter in model.named_parameters()}

    # ---- boxes

    def add(self, key: str, make: Callable[[], Box]) -> int:
        """Return the number of a box, and create it if its key is new."""
        if key not in self.of:
            self.of[key] = len(self.boxes)
            self.boxes[self.of[key]] = make()
        return self.of[key]

    def find_box(self, name: str) -> str | None:
        """Return the path of the box of a module: the outermost module around it that is no mere container."""
        steps = name.split(".") if name else []
        for end in range(1, len(steps) + 1):
            path = ".".join(steps[:end])
            if path not in self.clear and not _holds(self.model.get_submodule(path)):
                return path
        return None

    def holds(self, path: str, module: nn.Module) -> bool:
        """Return True if the operators of a module run outside any box."""
        return not isinstance(module, Embeddings) and self.find_box(path) is None

    def box_of(self, path: str) -> int:
        """Return the number of the box of a module."""
        module = self.model.get_submodule(path)
        count = sum(parameter.numel() for parameter in module.parameters())
        return self.add(path, lambda: Box(path, type(module).__name__, count, times=0))

    def by_parameter(self, inputs: Iterable[Tensor]) -> int | None:
        """Return the box whose parameter an operator reads outside any call. A matrix of the model itself is a box
        too.
        """
        for one in inputs:
            name = self.owner.get(store_of(one))
            if name is None:
                continue
            path_of_box = self.find_box(name.rpartition(".")[0])
            if path_of_box is not None:
                return self.box_of(path_of_box)
            parameter = self.model.get_parameter(name)
            if parameter.ndim > 1:
                return self.add(name, functools.partial(Box, name, "parameter", parameter.numel()))
        return None

    def again(self) -> None:
        """Mark all boxes and entries as counted before a second pass."""
        self.called = 0
        self.counted = {*self.of, *(f"{box}/{entry.name}" for box in self.boxes for entry in self.boxes[box].entries)}

    # ---- tensors

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and record the origins of its inputs."""
        out = func(*args, **(kwargs or {}))
        inputs, outputs = list(tensors([args, kwargs or {}])), list(tensors(out))
        if func.is_view and store_of(inputs[0]) in self.owner:
            return out
        if self.inside and self.inside[-1] is None:
            self.origins.kept += outputs
            return out
        here = self.inside[-1] if self.inside else self.by_parameter(inputs)
        name = func._overloadpacket.__name__
        looks_up = {store_of(one) for one in inputs if name == "embedding" or name in BAGS or self.selects(name, one)}
        floats = any(one.is_floating_point() for one in outputs)
        relevant = [one for one in inputs if store_of(one) in looks_up or one.is_floating_point() or not floats]
        sources = NONE.union(*map(self.origins.sources, relevant))
        if here is not None and floats:
            here = self.apart(here, sources)
            self.lines |= {(source, here) for source in sources if source != here}
            self.count(here, func, args, kwargs, out, outputs)
            sources = frozenset([here])
        if here is None and func._overloadpacket.__name__ == "cat":
            self.origins.note_columns(args, outputs[0])
        for one in outputs:
            if here is None and func.is_view:
                sources = self.origins.find_columns(one, sources)
            if func._schema.is_mutable and any(store_of(one) == store_of(tensor) for tensor in inputs):
                self.origins.write(one, sources)
            self.origins.put(one, sources)
        return out

    def selects(self, name: str, one: Tensor) -> bool:
        """Return True if an operator selects entries by a column of the batch."""
        return name == "index_select" and store_of(one) in self.columns

    def apart(self, here: int, sources: frozenset[int]) -> int:
        """Return the box itself, or a new one for a later run of a module, so that no line runs backward.

        A module runs in a box of its own if its inputs came from a later output of the first box.
        """
        after = {here}
        while more := {b for a, b in self.lines if a in after} - after:
            after |= more
        if not (after - {here}) & sources or not self.inside or self.inside[-1] is None:
            return here
        box = self.boxes[here]
        steps = box.name.count(".") + 2
        inner = [call for call in self.calls if call.startswith(f"{box.name}.")]
        name = ".".join(inner[0].split(".")[:steps]) if inner else box.name
        inner_module = self.model.get_submodule(name) if inner and name in self.path.values() else None
        if inner_module is None or isinstance(inner_module, LISTS):
            name, inner_module = (inner[0], self.model.get_submodule(inner[0])) if inner else (box.name, None)
        count = sum(parameter.numel() for parameter in inner_module.parameters()) if inner_module is not None else 0
        kind = type(inner_module).__name__ if inner_module is not None else box.kind
        number = self.add(f"{name} again", functools.partial(Box, name, kind, count, times=0))
        if number == len(self.boxes) - 1 and not self.boxes[number].rates:
            box.parameters -= count
        self.inside = [number if one == here else one for one in self.inside]
        return number

    def count(self, here: int, func: Any, args: Any, kwargs: Any, out: Any, outputs: list[Tensor]) -> None:
        """Add the operations of an operator to its box, and set the shape of the box by its result."""
        largest = max(outputs, key=Tensor.numel)
        operations = cost(func, args, kwargs, out)
        if operations:
            rate = rate_of(largest, self.ragged)
            self.boxes[here].rates[rate] = self.boxes[here].rates.get(rate, 0) + operations
        if not self.inside:
            self.boxes[here].shape = shape_of(largest, self.ragged)

    # ---- what enters and leaves

    def enter(self, batch: Batch) -> None:
        """Create the boxes of the inputs."""
        entries = by_rate(self.fields.features, self.ragged)
        box = self.add("impression", lambda: Box("impression", "input", entries=entries))
        for name in batch.features:
            self.hand(batch.features[name], box)
        for history, columns in self.fields.histories.items():
            make = functools.partial(Box, history, "input", entries=[events_of(history, columns)])
            box = self.add(f"history {history}", make)
            for column in batch.histories[history].columns.values():
                self.hand(column, box)

    def hand(self, column: Tensor | Jagged, box: int) -> None:
        """Record that a column of the batch comes from a box."""
        values = column.values if isinstance(column, Jagged) else column
        self.columns.add(store_of(values))
        self.origins.put(values, frozenset([box]))

    def leave(self, name: str, out: Tensor) -> None:
        """Create the box of a result."""
        rate = {rate_of(out, self.ragged): 0}
        box = self.add(name, lambda: Box(name, "output", shape=shape_of(out, self.ragged), rates=rate))
        self.lines |= {(source, box) for source in self.origins.sources(out)}

    def embedded(self, path: str, module: Embeddings, batch: Batch, out: Embedded) -> None:
        """Create one box for the fields of the impression and one per history, although they share tables."""
        columns = {
            "impression": {**batch.features, **batch.computed},
            **{name: events.columns for name, events in batch.histories.items()},
        }
        vectors = {"impression": out.features, **out.histories}
        fields = {"impression": module.fields.features, **module.fields.histories}
        for group, group_vectors in vectors.items():
            if not any(map(len, group_vectors.values())):
                continue
            shapes = dict.fromkeys(shape_of(vector, self.ragged) for vector in group_vectors.values())
            shape = f"{len(group_vectors)} × {' '.join(shapes)}" if len(group_vectors) > 1 else " ".join(shapes)
            entries = (
                by_rate(fields[group], self.ragged) if group == "impression" else [events_of(group, fields[group])]
            )
            under = "tables" if type(module) is Embeddings else type(module).__name__
            make = functools.partial(Box, path, "embeddings", under=under, entries=entries, shape=shape)
            number = self.add(f"{path} of {group}", make)
            for name, vector in group_vectors.items():
                column = columns[group][name]
                came = self.origins.sources(column.values if isinstance(column, Jagged) else column)
                self.lines |= {(source, number) for source in came}
                self.origins.put(vector, frozenset([number]))

    # ---- calls

    def before(self, module: nn.Module, args: Any) -> None:
        """Record the start of a module call."""
        path = self.path[module]
        self.calls.append(path)
        if isinstance(module, Embeddings):
            self.inside.append(None)
        elif not self.holds(path, module):
            path_of_box = self.find_box(path)
            hidden = bool(self.inside) and self.inside[-1] is None
            self.inside.append(None if hidden or path_of_box is None else self.box_of(path_of_box))

    def after(self, module: nn.Module, args: Any, out: Any) -> None:
        """Record the end of a module call."""
        path = self.calls.pop()
        if self.holds(path, module):
            return
        here = self.inside.pop()
        if isinstance(module, Embeddings):
            self.embedded(path, module, args[0], out)
        elif here is not None:
            self.ran(here, path, type(module).__name__, out)

    def ran(self, here: int, path: str, kind: str, out: Any) -> None:
        """Record a call in its box: of the box itself, or of an entry that no other entry called."""
        box = self.boxes[here]
        outputs = [one for one in tensors(out) if one.is_floating_point()]
        within = path in self.calls or any(call.startswith(f"{box.name}.") for call in self.calls)
        if not outputs or kind == "Dropout" or within:
            return
        box.shape = " ".join(dict.fromkeys(shape_of(one, self.ragged) for one in outputs))
        if path == box.name:
            box.times += path not in self.counted
            return
        name = path[len(box.name) + 1 :]
        rate = rate_of(outputs[0], self.ragged)
        for entry in box.entries:
            if (entry.name, entry.shape) == (name, box.shape):
                entry.times += f"{here}/{name}" not in self.counted
                return
        box.entries.append(Entry(name, kind, box.shape, rate))

    def function(self, name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function so that it gets a box of its own if no module calls it."""

        @functools.wraps(run)
        def watched(*args: Any, **kwargs: Any) -> Any:
            texts = [one for one in (*args, *kwargs.values()) if isinstance(one, str)]
            label = f"{name} ({', '.join(texts)})" if texts else name
            if self.inside:
                return self.add_entry(label, functools.partial(run, *args, **kwargs))
            self.called += 1
            key = f"call {self.called} of {label}"
            if key in self.clear:
                return run(*args, **kwargs)
            here = self.add(key, lambda: Box(label, "function"))
            self.inside.append(here)
            out = run(*args, **kwargs)
            self.inside.pop()
            outputs = [one for one in tensors(out) if one.is_floating_point()]
            self.boxes[here].shape = " ".join(dict.fromkeys(shape_of(one, self.ragged) for one in outputs))
            return out

        return watched

    def method(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a method of a module so that it counts as a call, as ``forward`` does."""

        @functools.wraps(run)
        def watched(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if module not in self.path:
                return run(module, *args, **kwargs)
            self.before(module, args)
            out = run(module, *args, **kwargs)
            self.after(module, args, out)
            return out

        return watched

    def add_entry(self, name: str, run: Callable[[], Any]) -> Any:
        """Run a function called by a box, and list it as an entry if it computes something."""
        here = self.inside[-1]
        box = self.boxes[here] if here is not None else None
        if (
            box is None
            or self.named
            or any(call != box.name and call.startswith(f"{box.name}.") for call in self.calls)
        ):
            return run()
        self.named, before = True, sum(box.rates.values())
        out = run()
        self.named = False
        outputs = [one for one in tensors(out) if one.is_floating_point()]
        if outputs and box.kind != "function" and sum(box.rates.values()) > before:
            new = Entry(name, "function", shape_of(outputs[0], self.ragged), rate_of(outputs[0], self.ragged))
            like = [one for one in box.entries if (one.name, one.shape) == (new.name, new.shape)]
            for one in like:
                one.times += f"{here}/{name}" not in self.counted
            box.entries += [] if like else [new]
        return out

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Hook every module, and the functions and plain classes of ``nn`` and of the model's own file."""
        with ExitStack() as stack:
            for module in self.path:
                stack.callback(module.register_forward_pre_hook(self.before).remove)
                stack.callback(module.register_forward_hook(self.after, always_call=False).remove)
            files = {type(module).__module__ for module in self.path if isinstance(module, Model)}
            for file in sorted(files):
                for name, member in sorted(vars(sys.modules[file]).items()):
                    if inspect.isfunction(member) and (member.__module__ == file or _of_nn(member.__module__)):
                        wrapped = self.function(member.__name__.strip("_").replace("_", " "), member)
                        stack.enter_context(mock.patch.object(sys.modules[file], name, wrapped))
            for cls in _plain_classes():
                for name, member in _methods(cls):
                    wrapped = self.function(name.replace("_", " "), member)
                    stack.enter_context(mock.patch.object(cls, name, wrapped))
            for cls in {type(module): None for module in self.path if not isinstance(module, Model | Embeddings)}:
                for name, member in _methods(cls):
                    if name != "forward":
                        stack.enter_context(mock.patch.object(cls, name, self.method(member)))
            yield


def _holds(module: nn.Module) -> bool:
    """Return True for a module that is a mere container: a list, or one with a model or embeddings inside."""
    if isinstance(module, Embeddings):
        return False
    return isinstance(module, LISTS) or any(isinstance(inner, Model | Embeddings) for inner in module.modules())


def _of_nn(module: str) -> bool:
    return module.startswith("longrec.nn.")


def _plain_classes() -> list[type]:
    """Return the classes of ``nn`` that are no modules, such as segments and buckets."""
    classes = {}
    for name, module in sorted(sys.modules.items()):
        own = (one for one in vars(module).values() if inspect.isclass(one) and one.__module__ == name)
        for cls in own if _of_nn(name) else ():
            if not issubclass(cls, nn.Module | torch.autograd.Function | torch.optim.Optimizer | Exception):
                classes[f"{name}.{cls.__name__}"] = cls
    return list(classes.values())


def _methods(cls: type) -> list[tuple[str, Any]]:
    """Return the public functions of a class of this package."""
    own = vars(cls).items() if cls.__module__.startswith("longrec.") else ()
    return sorted((name, member) for name, member in own if inspect.isfunction(member) and not name.startswith("_"))
