"""Convolutions in the form that is fastest on the device.

A GPU and a TPU have their own programs for them, which want more channels than an image has: a strided one of those is
one on blocks of pixels. On a CPU those of XLA are good at dense convolutions only. So here a depthwise one is a sum of
shifted, weighted copies, and so is its gradient; a 1×1 one is a matrix product, whose gradient is two more. Those of
some other kernels at stride 1 take fewer products by Winograd's way (`winograd`), where they are large enough.
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
from afa_jax.models.once import gradient_once, once
from afa_jax.models.winograd import pays, winograd

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]
_FEW = 4  # channels, below what the units of a GPU take at once
_NHWC = ("NHWC", "HWIO", "NHWC")


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
    if x.ndim == 4 and not isinstance(padding, str) and not _dilated(options):
        stride, pads = _pair(strides), (_pair(padding[0]), _pair(padding[1]))
        if not on_cpu():
            if feature_group_count == 1 and x.shape[-1] <= _FEW and stride[0] == stride[1] > 1:
                return _on_blocks(x, kernel, stride[0], pads)
        elif feature_group_count == x.shape[-1] == kernel.shape[-1] > 1:
            return gradient_once(depthwise(x, kernel, stride, pads))
        elif feature_group_count == 1 and kernel.shape[:2] == (1, 1) and not any(map(any, pads)):
            return _product(x[:, :: stride[0], :: stride[1]], kernel[0, 0])
        elif feature_group_count == 1 and stride == (1, 1) and pays(x, kernel, pads):
            return winograd(x, kernel, pads)
    return lax.conv_general_dilated(x, kernel, strides, padding, feature_group_count=feature_group_count, **options)


def _product(x: Array, matrix: Array) -> Array:
    """Along the channels; as one matrix, because XLA would turn the axes of a larger product for its gradient."""
    return _multiply(x.reshape(-1, x.shape[-1]), matrix).reshape(*x.shape[:-1], matrix.shape[-1])


@jax.custom_vjp
def _multiply(x: Array, matrix: Array) -> Array:
    """`[M, C]` times `[C, K]`.

    Eigen transposes value by value while it reads: of xᵀ · gradient the left side, of gradient · matrixᵀ the right one.
    So the narrower map is put on the left, and the matrix is transposed beforehand.
    """
    return x @ matrix


def _multiply_backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, matrix = kept
    # Without the barriers XLA would make either transpose a part of the product.
    of_x = gradient @ lax.optimization_barrier(matrix.T)
    if x.shape[1] <= gradient.shape[1]:
        return of_x, x.T @ gradient
    return of_x, once(lax.optimization_barrier(gradient.T @ x).T)


_multiply.defvjp(lambda x, matrix: (x @ matrix, (x, matrix)), _multiply_backward)


def _on_blocks(x: Array, kernel: Array, stride: int, padding: Padding) -> Array:
    """The same on blocks of stride×stride pixels, whose pixels are channels, at stride 1.

    A kernel that is no multiple of the stride gets zeros at its end.
    """
    sides = [-(-side // stride) for side in kernel.shape[:2]]
    rows, columns = _outputs(x, kernel, (stride, stride), padding)
    blocks = rows - 1 + sides[0], columns - 1 + sides[1]
    # What the last window does not reach is cut off.
    pads = [(low, stride * n - low - size, 0) for n, (low, _), size in zip(blocks, padding, x.shape[1:3], strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *pads, (0, 0, 0)))
    x = x.reshape(x.shape[0], blocks[0], stride, blocks[1], stride, x.shape[3])
    ends = [(0, stride * n - side) for n, side in zip(sides, kernel.shape[:2], strict=True)]
    kernel = jnp.pad(kernel, [*ends, (0, 0), (0, 0)])
    kernel = kernel.reshape(sides[0], stride, sides[1], stride, *kernel.shape[2:])
    x, kernel = x.transpose(0, 1, 3, 2, 4, 5), kernel.transpose(0, 2, 1, 3, 4, 5)
    x, kernel = lax.collapse(x, 3), lax.collapse(kernel, 2, 5)
    return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=_NHWC)


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
    return once(of_x.astype(x.dtype)), _kernel_gradient(x, gradient, kernel, strides, padding)


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
    """Sums of products of the shifted input and the gradient, all of them in one reading.

    First over up to eight rows of the output, which XLA unrolls. As sums over whole maps each would read both from
    memory again.
    """
    height, columns = gradient.shape[1:3]
    parts = -(-height // 8)
    rows = -(-height // parts)
    more = parts * rows - height  # of zeros, where it does not come out even
    (down, right), exact = strides, _exact(x)
    here = _padded(gradient, ((0, more), (0, 0))).astype(exact)
    read = _padded(x, ((padding[0][0], padding[0][1] + more * down), padding[1])).astype(exact)
    spans = [
        (_span(i, height + more, down), _span(j, columns, right))
        for i in range(kernel.shape[0])
        for j in range(kernel.shape[1])
    ]
    products = tuple(
        (read[:, down, right] * here).reshape(len(x), parts, rows, *here.shape[2:]) for down, right in spans
    )
    sums = lax.reduce(products, (np.zeros((), exact),) * len(products), _add_each, (2,))
    return jnp.stack([each.sum((0, 1, 2)) for each in sums]).reshape(kernel.shape).astype(kernel.dtype)


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
