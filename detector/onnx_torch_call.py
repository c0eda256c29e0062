"""One ONNX node on its way to torch: what it reads, and how it calls a torch function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from .errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class Dynamic:
    """A value that depends on the images: the call that makes it, and an example without content."""

    node: fx.Node
    example: Tensor


Value = Dynamic | Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One ONNX node to be written in torch.

    Attributes:
        name: Of the node.
        op_type: Such as `Conv`.
        opset: Version of the operator set.
        attributes: By name; tensors among them as torch's.
        inputs: By position; None where one is left out.
        num_outputs: How many the node has.
        emit: Calls a torch function (function, arguments, keyword arguments).
    """

    name: str
    op_type: str
    opset: int
    attributes: Mapping[str, Any]
    inputs: tuple[Value | None, ...]
    num_outputs: int
    emit: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]

    @property
    def x(self) -> Value:
        """The first input."""
        return self.given(0)

    def given(self, position: int) -> Value:
        """An input that has to be there."""
        value = self.input(position)
        if value is None:
            raise self.refuse(f"has no input {position}")
        return value

    def input(self, position: int) -> Value | None:
        """An input that may be left out."""
        return self.inputs[position] if position < len(self.inputs) else None

    def get(self, name: str, default: Any = None) -> Any:  # noqa: ANN401
        """An attribute, text decoded."""
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def constant(self, position: int, attribute: str | None = None) -> list[Any] | None:
        """Numbers that older operator sets give as an attribute and newer ones as an input; None if left out."""
        value = self.input(position)
        if value is None:
            given = self.attributes.get(attribute) if attribute else None
            return None if given is None else [given] if isinstance(given, int | float) else list(given)
        if isinstance(value, Dynamic):
            raise self.refuse(f"has an input {position} that depends on the images")
        return value.reshape(-1).tolist()

    def refuse(self, reason: str) -> InputError:
        """An error that says what about this node is not known; the reader adds the file."""
        return InputError(f"node {self.name!r}, a {self.op_type}, {reason}: torch has no form of that here")

    def __call__(self, function: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Call a torch function."""
        return self.emit(function, args, kwargs)


def shape_of(value: Value) -> tuple[int, ...]:
    """Its lengths."""
    return tuple((value.example if isinstance(value, Dynamic) else value).shape)
