"""Converts a network's weights, and shows what went where.

    python tools/convert_weights.py resnet50 resnet50-0676ba61.pth source/           # a torch file to our saved model
    python tools/convert_weights.py resnet50 runs/dogs/afa/seed0/model afa.pth       # a trained target for PyTorch
    python tools/convert_weights.py resnet50 imagenet1k_v1 resnet50.safetensors      # published weights as safetensors
    python tools/convert_weights.py lresnet34e_ir model-0000.params faces/           # MXNet's file to our saved model

The input is whatever `source.weights` may be: a published name, a torch, MXNet (`.params`) or safetensors file, or a
saved model. The output is a torch `state_dict` (`.pth`), a safetensors file in the same key names, or else a folder
with our saved model. Weights that do not fit are refused, with a list of every key that is missing, unexpected or of
another shape.

The key names are torchvision's; for faces `blocks.N.conv.M` (mobilefacenet), arcface_torch's (iresnet34), and those of
MXNet's file with dots between stage, unit, layer and word (lresnet34e_ir: `stage1.unit1.bn1.running_var`).
Inception-V3 here takes images normalised by 0.5 and 0.5, which torchvision calls `transform_input=True`.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict

from afa_jax.errors import UserError
from afa_jax.models import weights
from afa_jax.models.convert import Converted, MisfitError, file_key, torch_key
from afa_jax.models.zoo import NETWORKS


def table(network: str, found: Converted) -> str:
    """One line an array: torch's key, ours, our shape; then what was kept beside them or left out."""
    spec = NETWORKS[network]
    flat: dict[tuple[str, ...], Any] = flatten_dict(dict(found.variables))
    rows = [
        (file_key(spec, spec.layouts[0], torch_key(path)), "/".join(path), " × ".join(map(str, array.shape)))
        for path, array in flat.items()
    ]
    wide = [max(len(row[i]) for row in rows) for i in (0, 1)]
    lines = [f"{key:<{wide[0]}}  {path:<{wide[1]}}  {shape}" for key, path, shape in sorted(rows)]
    lines.append(f"{len(rows)} arrays, {sum(leaf.size for leaf in jax.tree.leaves(found.variables)):,} numbers")
    if found.counters:
        lines.append(f"{len(found.counters)} counters (num_batches_tracked), kept beside the arrays")
    if not found.num_classes:
        lines.append("no classification layer: it is made new when the classes are known")
    if found.dropped:
        lines.append(f"{len(found.dropped)} left out, which this network is defined without: {found.dropped[0]}, …")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("source")
    parser.add_argument("output", type=Path)
    options = parser.parse_args(arguments)
    try:
        found = weights.read(options.network, options.source)
        if options.output.suffix and not options.output.is_dir():
            weights.export(options.output, found.variables, found.counters, options.network)
        else:
            weights.save(options.output, options.network, found.variables, counters=found.counters)
    except UserError as error:
        print(f"convert_weights: {error}", file=sys.stderr)
        for fault, keys in error.faults.items() if isinstance(error, MisfitError) else ():
            print("\n".join([f"{fault}:", *(f"  {key}" for key in keys)]))
        return 2
    except OSError as error:
        print(f"convert_weights: {options.output} cannot be written: {error.strerror}.", file=sys.stderr)
        return 2
    print(table(options.network, found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
