"""Convolutions and max-pooling in the form that is fastest on the device.

A GPU and a TPU have their own programs for each of them. On a CPU those of XLA are good at dense convolutions only. So
here a depthwise one is a sum of shifted, weighted copies, and so is its gradient; a 1×1 one is a matrix product, whose
gradient is two more; and a maximum is taken of shifted copies, one after the other. A 3×3 one at stride 1 takes fewer
products by Winograd's way (`winograd`), where it is large enough.
"""

import operator
from collections.abc import Iterator, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from afa_jax.compilation import on_cpu
from afa_jax.models.winograd import pays, winograd

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]


def convolve(
    x: Array, kernel: Array, strides: Sequence[int], padding: Any, *, feature_group_count: int = 1, **options: Any
) -> Array:
    """What `lax.conv_general_dilated` gives, whose place it takes in `nn.Conv`.

    Args:
      x: `[B, H, W, C]`.
      kernel: `[h, w, C / feature_group_count, features]`.
      padding: the word for one, or by axis the rows of zeros before and after.
      options: the others of `lax.conv_general_dilated`.
    """
    if on_cpu() and x.ndim == 4 and not isinstance(padding, str) and not _dilated(options):
        if feature_group_count == x.shape[-1] == kernel.shape[-1] > 1:
            return depthwise(x, kernel, _pair(strides), (_pair(padding[0]), _pair(padding[1])))
        if feature_group_count == 1 and kernel.shape[:2] == (1, 1) and not any(map(any, padding)):
            return _product(x[:, :: strides[0], :: strides[1]], kernel[0, 0])
        if feature_group_count == 1 and _pair(strides) == (1, 1):
            pads = _pair(padding[0]), _pair(padding[1])
            if pays(x, kernel, pads):
                return winograd(x, kernel, pads)
    return lax.conv_general_dilated(x, kernel, strides, padding, feature_group_count=feature_group_count, **options)


def _product(x: Array, matrix: Array) -> Array:
    """Along the channels; as one matrix, because XLA would turn the axes of a larger product for its gradient."""
    return (x.reshape(-1, x.shape[-1]) @ matrix).reshape(*x.shape[:-1], matrix.shape[-1])


def largest_of_shifts(x: Array, side: int, stride: int, padding: int) -> Array:
    """The maximum of side×side positions, and NaN where one is; the gradient goes to the first that is largest.

    `lax.reduce_window`, which it equals, looks for that place anew in the backward pass, which is slower on a CPU.
    """
    height, width = ((size + 2 * padding - side) // stride + 1 for size in x.shape[1:3])
    edge = (padding, padding, 0)
    padded = lax.pad(x, jnp.array(-jnp.inf, x.dtype), ((0, 0, 0), edge, edge, (0, 0, 0)))
    shifts = []
    for i in range(side):
        for j in range(side):
            end = i + (height - 1) * stride + 1, j + (width - 1) * stride + 1
            shifts.append(lax.slice(padded, (0, i, j, 0), (x.shape[0], *end, x.shape[3]), (1, stride, stride, 1)))
    return reduce(lambda largest, here: jnp.where((here > largest) | jnp.isnan(here), here, largest), shifts)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise(x: Array, kernel: Array, strides: Pair, padding: Padding) -> Array:
    """A convolution of each channel with a kernel of its own: `[B, H, W, C]` and `[h, w, 1, C]`."""
    return _forward(x, kernel, strides, padding)[0]


def _forward(x: Array, kernel: Array, strides: Pair, padding: Padding) -> tuple[Array, tuple[Array, Array]]:
    y = _sum_of_slices(x, kernel, padding) if strides == (1, 1) else _sum_of_shifts(x, kernel, strides, padding)
    return y.astype(x.dtype), (x, kernel)


def _backward(strides: Pair, padding: Padding, kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = kept
    if strides == (1, 1):
        # Each value goes to where it was read from: the same sum again, with the kernel turned round.
        far = [(side - 1 - low, side - 1 - high) for side, (low, high) in zip(kernel.shape, padding, strict=False)]
        of_x = _sum_of_slices(gradient, kernel[::-1, ::-1], (far[0], far[1]))
    else:
        exact = jax.ShapeDtypeStruct(x.shape, _exact(x))
        transpose = jax.linear_transpose(lambda x: _sum_of_shifts(x, kernel, strides, padding), exact)
        of_x = transpose(gradient.astype(exact.dtype))[0]
    return of_x.astype(x.dtype), _kernel_gradient(x, gradient, kernel, strides, padding)


depthwise.defvjp(_forward, _backward)


def _sum_of_slices(x: Array, kernel: Array, padding: Padding) -> Array:
    """At stride 1, of what is padded first, which keeps XLA from computing x anew for each slice of it.

    Sums, and what is given, are of at least float32.
    """
    padded = _padded(x, padding)
    rows, columns = _outputs(x, kernel, (1, 1), padding)
    slices = (
        padded[:, i : i + rows, j : j + columns].astype(_exact(x)) * kernel[i, j, 0].astype(_exact(x))
        for i in range(kernel.shape[0])
        for j in range(kernel.shape[1])
    )
    return reduce(operator.add, slices)


def _padded(x: Array, padding: Padding) -> Array:
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((*pads, 0) for pads in padding), (0, 0, 0)))


class _Reach(NamedTuple):
    """What one position of the kernel reads along one axis: output `first`, `first` + 1, … `last` reads input `begin`,
    `begin` + stride, …; the outputs before and after would read padding."""

    position: int
    first: int
    last: int
    begin: int
    end: int


def _reaches(kernel: int, stride: int, padding: Pair, inputs: int, outputs: int) -> Iterator[_Reach]:
    for position in range(kernel):
        offset = position - padding[0]
        first = max(0, -(offset // stride))
        last = min(outputs - 1, (inputs - 1 - offset) // stride)
        if first <= last:
            yield _Reach(position, first, last, first * stride + offset, last * stride + offset + 1)


def _outputs(x: Array, kernel: Array, strides: Pair, padding: Padding) -> Pair:
    rows, columns = (
        (size + sum(pads) - side) // stride + 1
        for size, pads, side, stride in zip(x.shape[1:3], padding, kernel.shape, strides, strict=False)
    )
    return rows, columns


def _sum_of_shifts(x: Array, kernel: Array, strides: Pair, padding: Padding) -> Array:
    """Only what lies inside is read and weighted, and the edges are put around the product: one pass over memory.

    Sums, and what is given, are of at least float32.
    """
    height, width = _outputs(x, kernel, strides, padding)
    exact = _exact(x)
    zero, terms = jnp.zeros((), exact), []
    for down in _reaches(kernel.shape[0], strides[0], padding[0], x.shape[1], height):
        for right in _reaches(kernel.shape[1], strides[1], padding[1], x.shape[2], width):
            begin, end = (0, down.begin, right.begin, 0), (x.shape[0], down.end, right.end, x.shape[3])
            inside = lax.slice(x, begin, end, (1, *strides, 1))
            weighted = inside.astype(exact) * kernel[down.position, right.position, 0].astype(exact)
            edges = (down.first, height - 1 - down.last, 0), (right.first, width - 1 - right.last, 0)
            terms.append(lax.pad(weighted, zero, ((0, 0, 0), *edges, (0, 0, 0))))
    return reduce(operator.add, terms)


def _kernel_gradient(x: Array, gradient: Array, kernel: Array, strides: Pair, padding: Padding) -> Array:
    """Sums of products of the shifted input and the gradient, all of them at once for a few rows of the output.

    As sums over whole maps each would read both from memory again.
    """
    height, columns = gradient.shape[1:3]
    down, right = strides
    positions = [(i, j) for i in range(kernel.shape[0]) for j in range(kernel.shape[1])]
    exact, padded = _exact(x), _padded(x, padding)
    rows = next(number for number in (4, 3, 2, 1) if height % number == 0)

    def add(turn: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        here = lax.dynamic_slice_in_dim(gradient, turn * rows, rows, axis=1).astype(exact)
        first, count = turn * rows * down, (rows - 1) * down + kernel.shape[0]
        read = lax.dynamic_slice_in_dim(padded, first, count, axis=1).astype(exact)
        spans = ((_span(i, rows, down), _span(j, columns, right)) for i, j in positions)
        products = tuple(read[:, down, right] * here for down, right in spans)
        parts = lax.reduce(products, (np.zeros((), exact),) * len(products), _add_each, (1, 2))
        return _add_each(sums, parts)

    sums = lax.fori_loop(0, height // rows, add, (jnp.zeros((len(x), x.shape[3]), exact),) * len(positions))
    return jnp.stack([part.sum(0) for part in sums]).reshape(kernel.shape).astype(kernel.dtype)


def _add_each(first: tuple[Array, ...], second: tuple[Array, ...]) -> tuple[Array, ...]:
    return tuple(map(operator.add, first, second))


def _span(first: int, count: int, stride: int) -> slice:
    return slice(first, first + (count - 1) * stride + 1, stride)


def _exact(x: Array) -> Any:
    return jnp.promote_types(x.dtype, jnp.float32)


def _pair(values: Sequence[int]) -> Pair:
    first, second = values
    return int(first), int(second)


def _dilated(options: dict[str, Any]) -> bool:
    dilations = (options.get(name) or () for name in ("lhs_dilation", "rhs_dilation"))
    return any(factor != 1 for dilation in dilations for factor in dilation)
