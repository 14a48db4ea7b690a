"""Our parameters as views of torch tensors: one table serves import and export.

A `TensorView` says where one of our arrays lies inside a torch tensor, as a NumPy view of it (rows
of a fused matrix, transposed; rows of the vocabulary). Reading through the view imports; writing
through the same view exports, so there is no inverse to keep in step. Nothing is read before it is
asked for, layer by layer, so conversion needs memory for one tensor, not for one model.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Shaped

from flamingo_jax.errors import UserError
from flamingo_jax.weights.copying import copied, copy_into, fresh

Tensors = dict[str, np.ndarray]  # by torch name; memory-mapped where they come from a file
View = Callable[[np.ndarray], np.ndarray]
Index = tuple[slice, ...]


@dataclass(frozen=True)
class TensorView:
    """Says where one array of ours lies in a torch tensor.

    Attributes:
      name: the tensor; "{i}" stands for the layer.
      shape: of the whole tensor.
      take: gives what is ours of the tensor, with our axes in order. Axes may still be split (heads
        apart from features): what counts is that it reshapes to our shape, and that it is a view.
    """

    name: str
    shape: tuple[int, ...]
    take: View


NameTable = dict[str, TensorView]  # by our path, with the number of the layer left out


def identity(tensor: np.ndarray) -> np.ndarray:
    return tensor


def transpose(tensor: np.ndarray) -> np.ndarray:
    """Turns (out, in) into our (in, out), and (heads, features, in) into (in, heads, features)."""
    return np.moveaxis(tensor, -1, 0)


def rows_between(start: int, stop: int) -> View:
    return lambda tensor: tensor[start:stop]


def nth_block(index: int, count: int) -> View:
    """Takes one of `count` equal blocks of rows: queries, keys or values of a fused matrix."""
    return lambda tensor: tensor.reshape(count, -1, *tensor.shape[1:], copy=False)[index]


def linear(ours: str, name: str, width_out: int, width_in: int, rows: View = identity) -> NameTable:
    """Returns the table of an `nn.Linear`, or of the block `rows` of one.

    The bias stands idle where we have none.
    """
    return {
        f"{ours}/kernel": TensorView(
            f"{name}.weight", (width_out, width_in), lambda t: transpose(rows(t))
        ),
        f"{ours}/bias": TensorView(f"{name}.bias", (width_out,), rows),
    }


def norm(ours: str, name: str, width: int) -> NameTable:
    return {
        f"{ours}/scale": TensorView(f"{name}.weight", (width,), identity),
        f"{ours}/bias": TensorView(f"{name}.bias", (width,), identity),
    }


def array(ours: str, name: str, *shape: int) -> NameTable:
    return {ours: TensorView(name, shape, identity)}


@dataclass(frozen=True)
class ParamSource:
    """Says what one parameter of ours is made of: one view, or one per stacked layer."""

    shape: tuple[int, ...]
    views: tuple[TensorView, ...]
    stacked: bool


Plan = dict[str, ParamSource]  # by our path


def make_plan(
    shapes: Mapping[str, Any],
    rows: NameTable,
    locate: Callable[[str], tuple[str, Iterable[int] | None]],
) -> Plan:
    """Returns where every parameter comes from.

    Args:
      shapes: path → anything with `.shape`, of the model's parameters.
      rows: the table of its family.
      locate: path → (path without the layer, numbers of the layers stacked in it, or None),
        see `ModelConfig.locate`.

    Raises:
      UserError: parameters that this family's table does not have, all named.
    """
    plan, unknown = {}, []
    for path, leaf in shapes.items():
        key, layers = locate(path)
        if key not in rows:
            unknown.append(path)
            continue
        view = rows[key]
        numbers = (None,) if layers is None else layers
        views = tuple(replace(view, name=view.name.replace("{i}", str(i))) for i in numbers)
        plan[path] = ParamSource(tuple(leaf.shape), views, layers is not None)
    if unknown:
        raise UserError(
            f"no torch tensor is known for {listing(unknown)}: these settings of the model have no "
            "counterpart in the original, so it can neither be imported nor exported"
        )
    return plan


def listing(names: Iterable[str]) -> str:
    names = sorted(names)
    return f"{len(names)} {'tensor' if len(names) == 1 else 'tensors'}: {', '.join(names)}"


def torch_shapes(plan: Plan) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every torch tensor that the plan takes from, by name."""
    return {view.name: view.shape for source in plan.values() for view in source.views}


def check(plan: Plan, tensors: Mapping[str, np.ndarray], source: str) -> None:
    """Raises a UserError that names every tensor missing, left over or of a wrong shape."""
    expected = torch_shapes(plan)
    faults = []
    if missing := expected.keys() - tensors.keys():
        faults.append(f"missing {listing(missing)}")
    if extra := tensors.keys() - expected.keys():
        faults.append(f"unexpected {listing(extra)}")
    faults += [
        f"{name} has shape {list(tensors[name].shape)}, expected {list(shape)}"
        for name, shape in sorted(expected.items())
        if name in tensors and tensors[name].shape != shape
    ]
    if faults:
        raise UserError(
            f"{source} does not fit its config: {'; '.join(faults)}. "
            "Give the weights and the config of the same model"
        )


@dataclass(frozen=True)
class LazyArray:
    """Holds one parameter of ours, not read yet."""

    shape: tuple[int, ...]
    views: tuple[np.ndarray, ...]
    stacked: bool

    def read(self, dtype: Any, index: Index | None = None) -> Shaped[np.ndarray, "..."]:
        """Reads what `index` names (default: all) from one torch tensor after another."""
        index = index or (slice(None),) * len(self.shape)
        if not self.stacked:
            return copied(_take(self.views[0], self.shape, index), dtype)
        views = self.views[index[0]]
        out = fresh((len(views), *_shape(self.shape[1:], index[1:])), dtype)
        for layer, view in enumerate(views):
            copy_into(out[layer, ...], _take(view, self.shape[1:], index[1:]))
        return out


def _shape(shape: tuple[int, ...], index: Index) -> tuple[int, ...]:
    return tuple(len(range(*s.indices(n))) for s, n in zip(index, shape, strict=True))


def _take(view: np.ndarray, shape: tuple[int, ...], index: Index) -> np.ndarray:
    """Returns `view.reshape(shape)[index]`, reading no more of the view than needed.

    The leading axes that the two shapes share are indexed before reshaping copies the rest.
    """
    same = next(
        (i for i, (a, b) in enumerate(zip(view.shape, shape, strict=False)) if a != b),
        min(view.ndim, len(shape)),
    )
    view = view[index[:same]]
    if view.shape[same:] == shape[same:]:
        return view[(slice(None),) * same + index[same:]]
    return view.reshape((*view.shape[:same], *shape[same:]))[(slice(None),) * same + index[same:]]


def leaves(plan: Plan, tensors: Mapping[str, np.ndarray]) -> dict[str, LazyArray]:
    """Returns the plan's parameters, each to be read when it is needed."""
    return {
        path: LazyArray(
            source.shape, tuple(v.take(tensors[v.name]) for v in source.views), source.stacked
        )
        for path, source in plan.items()
    }


def export(
    plan: Plan, params: Mapping[str, Any], dtype: Any
) -> dict[str, Callable[[], np.ndarray]]:
    """Returns makers of the torch tensors, by name, from our parameters or from their gradients."""
    pieces: dict[str, list[tuple[TensorView, str, int | None]]] = {}
    for path, source in plan.items():
        for layer, view in enumerate(source.views):
            pieces.setdefault(view.name, []).append((view, path, layer if source.stacked else None))

    def make(pieces: list[tuple[TensorView, str, int | None]]) -> np.ndarray:
        out = np.empty(pieces[0][0].shape, dtype)
        for view, path, layer in pieces:
            ours = np.asarray(params[path] if layer is None else params[path][layer])
            target = view.take(out)
            target[...] = ours.reshape(target.shape)
        return out

    return {name: partial(make, own) for name, own in pieces.items()}
