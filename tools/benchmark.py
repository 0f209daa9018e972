"""Measures speed, always against something in the same run; writes the figures with device, versions and date.

    python tools/benchmark.py delta --network resnet50     # DELTA's channel weights against one whole pass a filter
    python tools/benchmark.py data --photos photos         # reading images: decoded each time, and from the cache
    python tools/benchmark.py step --networks resnet50     # the training step against PyTorch and against the machine
    python tools/benchmark.py growth                       # how cost grows with batch, modules, devices and images
    python tools/benchmark.py changes                      # the step without each of the changes that made it faster
    python tools/benchmark.py profile                      # where the time of a step goes
    python tools/benchmark.py starts                       # from the command to the first step

`delta` leaves out a share of each tap's filters, on one batch at the network's own size, and works out the time of all
of them: what is done once (up to the tap) is told apart from what each filter costs by measuring two numbers of them.
It is set against what is measured right beside it: whole passes of the same network, and whole passes in PyTorch, eager
and in float32, by which the released code finds the weights; with freed memory kept, as ours is, and without. Writes
docs/results/delta_weights_<network>_<cpu or gpu>.json.

`data` takes photos from a folder (`train/<class>/*`, `test/<class>/*`), brings copies of some to 500 × 375 pixels, the
size of an ImageNet photo, and reads batches of them: decoded anew as most loaders do in each epoch, then from the cache
of decoded images, first with nothing of it in memory, then again. Then it trains a network on the photos as a run does,
and reports the share of the time in which the next batch was not there yet. Writes docs/results/data_<cpu or gpu>.json;
tools/publish_comparison.py puts its table into the README.

`growth` measures how a step's cost grows with the batch, the attentive modules and the devices, and that of reading
with the number of images. Writes docs/results/growth_<cpu or gpu>.json.

`changes` makes steps in turn with and without one of the changes that docs/speed.md lists. `starts` measures the
command from its beginning: `--help`, the quickstart's first step, two whole stages; with nothing compiled, and again.
`profile` traces one step. They write docs/results/changes_<cpu or gpu>.json, starts_… and profile_….

`step` makes whole training steps on random images, as a run does (on a GPU in bfloat16 too), and in turn with them
steps in PyTorch that do the same work: eager, channels-last, bfloat16 autocast and compiled, where they run (`pip
install torch torchvision`). It sets the step against what the device was measured to reach in a matrix product and a
copy. Writes docs/results/step_<cpu or gpu>.json after every row.
"""

import argparse
import io
import itertools
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import changes
import delta_speed
import growth
import jax
import numpy as np
import publish_comparison
import starts
import step_process
import step_profile
import step_speed
from flax.core import FrozenDict
from PIL import Image

from afa_jax.data.cache import Encoded, Files, Source, cached
from afa_jax.data.images import decode, resize
from afa_jax.errors import UserError
from afa_jax.experiment import run
from afa_jax.files import write_json
from afa_jax.models import weights, zoo
from afa_jax.provenance import device, versions
from afa_jax.settings import Data, Experiment
from afa_jax.settings import Source as SourceNetwork
from afa_jax.transfer.methods import METHODS

RESULTS = Path(__file__).parents[1] / "docs" / "results"


def data(photos: Path, network: str, batch: int, steps: int, count: int, repeats: int) -> dict[str, Any]:
    """Images a second by way of reading, and the share of a training step that waits for data."""
    files = sorted(file for file in photos.glob("train/*/*") if file.suffix.lower() in Image.registered_extensions())
    if not files:
        raise UserError(f"{photos} has no photos under train/<class>/.")
    files = files[:: max(1, len(files) // count)][:count]
    with TemporaryDirectory() as folder:
        os.environ["AFA_JAX_CACHE"] = folder
        readings = [_read([_like_imagenet(file) for file in files], Path(folder)) for _ in range(repeats)]
        size = zoo.NETWORKS[network].image_size
        source = zoo.initialise(zoo.create(network, 1000), jax.random.key(0), size)
        weights.save(Path(folder) / "source", network, source)
        experiment = Experiment(
            data=Data("image_folder", str(photos)),
            source=SourceNetwork(str(Path(folder) / "source")),
            network=network,
            recipe="ast",
            convention="paper",
            batch_size=batch,
            steps=steps,
            methods=FrozenDict({name: FrozenDict({**m.settings, "alpha": 1e-6}) for name, m in METHODS.items()}),
        )
        summary = run(experiment, Path(folder) / "run")
    medians = [(name, statistics.median(reading[name] for reading in readings)) for name in readings[0]]
    return {
        "images": len(files),
        "images_per_second": readings,
        "training": {"network": network, "batch": batch, "steps": steps},
        "table": [
            ["reading photos of 500 × 375 pixels at 256 × 256", "images/s"],
            *([name, f"{rate:,.0f}"] for name, rate in medians),
            [f"training {network} by `ast`, batches of {batch}", f"{summary['train_images_per_second']:,.1f}"],
            ["share of the training spent waiting for data", f"{100 * summary['waiting_for_data_share']:.2f} %"],
        ],
    }


def _read(encoded: list[bytes], cache: Path) -> dict[str, float]:
    """Images a second in each way."""
    count = len(encoded)
    files = Files(("photos",), count, lambda i: Encoded(str(i), encoded[i], 0))
    source = Source("benchmark", {}, lambda: files)
    shutil.rmtree(cache / "images", ignore_errors=True)
    fill = partial(cached, source, "square", 256, skip_damaged=False)
    rates = {
        "decoded anew, one thread": _rate(lambda: [resize(decode(image), 256, "square") for image in encoded], count),
        "the cache is filled, all cores": _rate(fill, count),
    }
    images = fill().split.images
    batches = np.array_split(np.random.default_rng(0).permutation(count), -(-count // 64))
    _forget(next(cache.rglob("images.npy")))
    for name in ("from the cache, nothing of it in memory", "from the cache, again"):
        rates[name] = _rate(lambda: [images[batch] for batch in batches], count)
    return rates


def _rate(read: Callable[[], Any], count: int) -> float:
    begun = time.perf_counter()
    read()
    return count / (time.perf_counter() - begun)


def _like_imagenet(file: Path) -> bytes:
    buffer = io.BytesIO()
    with Image.open(file) as photo:
        photo.convert("RGB").resize((500, 375), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _forget(file: Path) -> None:
    """Asks the system to drop what it has of the file in memory."""
    os.sync()
    descriptor = os.open(file, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def _keep(name: str, result: dict[str, Any]) -> None:
    result |= {"device": device(), "versions": versions(), "finished": datetime.now(UTC).date().isoformat()}
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_json(RESULTS / f"{name}.json", result)


def _delta(options: argparse.Namespace) -> dict[str, Any]:
    result = delta_speed.delta(options.network, options.batch, options.share, options.repeats)
    hours, ratio = result["ours_hours_a_batch"], result["ratio"]
    print(f"all filters of a batch: {hours:.2f} h, {ratio:.1f} times as fast as whole passes")
    return result


def _data(options: argparse.Namespace) -> dict[str, Any]:
    return data(options.photos, options.network, options.batch, options.steps, options.count, options.repeats)


def _step(options: argparse.Namespace) -> dict[str, Any]:
    networks, methods = _listed(options.networks, zoo.NETWORKS), _listed(options.methods, METHODS)
    there = step_process.variants()
    variants = options.variants.split(",") if options.variants else there
    if not set(variants) <= set(there) or not set(variants) & set(step_process.ours_here()):
        hint = "" if step_process.has_torch() else ", or pip install torch torchvision"
        choice = f"choose from {', '.join(there)}, at least one of ours{hint}"
        raise UserError(f"the step cannot be run as {options.variants!r}: {choice}.")
    if not step_process.has_torch():
        print("PyTorch is not compared with: pip install torch torchvision", file=sys.stderr)
    if options.processes < 1:
        raise UserError(f"--processes is {options.processes}: it must be at least 1.")
    if jax.device_count() > 1:
        raise UserError("PyTorch's step runs on one device: hide the others (CUDA_VISIBLE_DEVICES=0).")
    rows = list(itertools.product(methods, networks))
    earlier = _earlier(options) if options.add else []
    keep = partial(_keep, _file(options))
    how = step_speed.Measure(
        options.batch, variants, options.repeats, options.processes, compile_times=options.compile_times
    )
    return step_speed.step(rows, how, earlier, keep)


def _earlier(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows that the file has."""
    file = RESULTS / f"{_file(options)}.json"
    if not file.exists():
        return []
    result = json.loads(file.read_text(encoding="utf-8"))
    alike = (result["device"], result["versions"]) == (device(), versions())
    if not alike or not all("best" in row for row in result["rows"]):
        raise UserError(f"{file} is of another device or other versions: leave out --add to measure all rows anew.")
    return result["rows"]


def _listed(text: str, known: Collection[str]) -> list[str]:
    for name in (names := text.split(",")):
        if name not in known:
            raise UserError(f"there is no {name!r}; choose from {', '.join(known)}.")
    return names


def _growth(options: argparse.Namespace) -> dict[str, Any]:
    return growth.growth(options.network, options.batch, options.repeats)


def _changes(options: argparse.Namespace) -> dict[str, Any]:
    return changes.changes(_listed(options.networks, zoo.NETWORKS), options.batch, options.repeats)


def _starts(options: argparse.Namespace) -> dict[str, Any]:
    return starts.starts(options.network, options.repeats, options.before)


def _profile(options: argparse.Namespace) -> dict[str, Any]:
    return step_profile.profile(options.network, options.method, options.batch, options.dtype)


def _file(options: argparse.Namespace) -> str:
    """Under which name the result is kept."""
    what = f"delta_weights_{options.network}" if options.what == "delta" else options.what
    return f"{what}_{jax.default_backend()}"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], dict[str, Any]], about: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=about)
        made.set_defaults(run=run)
        return made

    one = command("delta", _delta, "DELTA's channel weights against one whole pass a filter")
    one.add_argument("--network", choices=zoo.NETWORKS, default="resnet50")
    one.add_argument("--batch", type=int, default=32, help="images; the released code takes 32")
    one.add_argument("--share", type=int, default=16, help="of the filters of each tap, one in so many is left out")
    two = command("data", _data, "reading images: decoded each time, and from the cache")
    two.add_argument("--photos", type=Path, required=True, help="a folder with train/<class>/* and test/<class>/*")
    two.add_argument("--network", choices=zoo.NETWORKS, default="resnet50")
    two.add_argument("--batch", type=int, default=64)
    two.add_argument("--steps", type=int, default=100)
    two.add_argument("--count", type=int, default=2000, help="photos that are read, at most")
    three = command("step", _step, "the training step against PyTorch and against the machine")
    three.add_argument("--networks", default="resnet50,resnet101,inception_v3,mobilenet_v2", help="joined by commas")
    three.add_argument("--methods", default="ast,act,delta", help="joined by commas")
    three.add_argument("--batch", type=int, default=16)
    three.add_argument("--variants", help="of the step, joined by commas; all without this")
    three.add_argument(
        "--add", action="store_true", help="keep the rows that the file has of other networks and methods"
    )
    three.add_argument("--processes", type=int, default=1, help="of each variant, one after the other")
    three.add_argument("--compile-times", action="store_true", help="start each twice in processes of their own")
    four = command("growth", _growth, "how cost grows with the batch, the modules, the devices and the images")
    four.add_argument("--network", choices=zoo.NETWORKS, default="mobilenet_v2")
    four.add_argument("--batch", type=int, default=16, help="where it is not what grows")
    five = command("changes", _changes, "the step with and without each of the changes in docs/speed.md")
    five.add_argument("--networks", default="mobilenet_v2,resnet50", help="joined by commas")
    five.add_argument("--batch", type=int, default=16)
    six = command("starts", _starts, "from the command to the first step, and to the end of two stages")
    six.add_argument("--network", choices=starts.NETWORKS, default="resnet101")
    six.add_argument("--before", type=Path, help="another checkout of this repository, measured in turn")
    seven = command("profile", _profile, "where the time of a step goes")
    seven.add_argument("--network", choices=zoo.NETWORKS, default="resnet50")
    seven.add_argument("--method", choices=METHODS, default="ast")
    seven.add_argument("--batch", type=int, default=16)
    seven.add_argument("--dtype", choices=step_process.DTYPES.values(), default="float32")
    for each in (one, two, three, four, five, six):
        each.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(argv)
    try:
        result = options.run(options)
    except UserError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 2
    _keep(_file(options), result)
    print(publish_comparison.table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
