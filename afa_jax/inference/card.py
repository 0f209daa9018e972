"""The model card: what a network was made of, how good it is, and how to use its files."""

from collections.abc import Mapping, Sequence

from afa_jax.inference.classifier import Classifier
from afa_jax.inference.files import CLASSES, PLATFORMS, PTH, SAFETENSORS, STABLEHLO
from afa_jax.inference.finished import Finished
from afa_jax.measures import measure, told
from afa_jax.models import own
from afa_jax.models.zoo import NETWORKS
from afa_jax.plan import planned_stages
from afa_jax.report.runs import Run
from afa_jax.report.tables import provenance

CARD = "README.md"
_NAMED = 20  # classes that the card lists; more are in the file


def card(run: Finished, classifier: Classifier) -> str:
    """Markdown."""
    name = f"{run.experiment.network}, {run.summary['recipe']}, {Run(run.folder, run.summary).dataset}"
    sections = {
        "Data": _data(run, classifier),
        "Training": _training(run),
        "Results": _results(run),
        "Pictures": _pictures(classifier),
        "Use": _use(run, classifier),
        "Licence": _licence(run),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"# {name}\n\nAn image classifier of {len(classifier.classes)} classes, fine-tuned with afa_jax.\n\n{body}\n"


def _data(run: Finished, classifier: Classifier) -> str:
    data, summary, classes = run.experiment.data, run.summary, classifier.classes
    kind = f"{data.per_class} labelled images a class, drawn by the seed" if data.per_class else "all labelled images"
    names = ", ".join(classes[:_NAMED]) + (", …" if len(classes) > _NAMED else "")
    return (
        f"`{data.name}`: {summary['train_images']} training images ({kind}), {summary['test_images']} test images. "
        f"{len(classes)} classes, in the order of the outputs: {names} (`{CLASSES}`)."
    )


def _training(run: Finished) -> str:
    e, source = run.experiment, run.experiment.source
    start = {"train": f"a source network trained for {source.steps} steps on `{source.dataset}`"}.get(
        source.weights, f"the weights `{source.weights}`"
    )
    if run.summary["recipe"] == "scratch":
        start = "random weights"
    lines = [
        f"Network `{e.network}`, begun from {start}; recipe `{e.recipe}`, seed {e.seed}; batches of {e.batch_size}, "
        f"learning rate {e.learning_rate:g}, momentum {e.momentum:g}, convention `{e.convention}`.",
        "",
        "| stage | steps | alpha | beta | weight decay |",
        "|---|---|---|---|---|",
    ]
    for stage in planned_stages(e):
        values = " | ".join(f"{stage.settings[key]:g}" for key in ("alpha", "beta", "weight_decay"))
        lines.append(f"| `{stage.name}` | {stage.steps} | {values} |")
    command = run.summary["command"]
    return "\n".join([*lines, *(["", "```", command, "```"] if command else [])])


def _results(run: Finished) -> str:
    summary = run.summary
    best = 100 * summary[f"best_test_{measure(summary)}"]
    said = told(summary)
    return (
        f"{said[0].upper()}{said[1:]} on the {summary['test_images']} test images after the last step "
        f"(the best during training was {best:.1f} %, which was chosen on the test images). "
        f"One run with seed {summary['seed']}; other seeds differ.\n\n{provenance(summary)}"
    )


def _pictures(classifier: Classifier) -> str:
    side, crop, p = classifier.resize, classifier.preprocess.size, classifier.preprocess
    form = "the short side resized to" if classifier.ten_crop else "both sides resized, whatever the aspect ratio, to"
    ten = " The results above are of the mean logits of ten crops, the files give those of one." * classifier.ten_crop
    return (
        f"RGB, {form} {side} pixels with Pillow's bilinear filter, the {crop} × {crop} pixels in the middle, divided "
        f"by 255, less the mean {_numbers(p.mean)}, divided by {_numbers(p.std)}, channel by channel.{ten}"
    )


def _numbers(values: Sequence[float]) -> str:
    return f"({', '.join(f'{value:g}' for value in values)})"


def _use(run: Finished, classifier: Classifier) -> str:
    size, bilinear = f"({classifier.resize}, {classifier.resize})", "Image.Resampling.BILINEAR"
    fit = f"ImageOps.fit(picture, {size}, {bilinear})" if classifier.ten_crop else f"picture.resize({size}, {bilinear})"
    return f"""\
`{STABLEHLO}` needs jax and flatbuffers, and nothing else; it takes any number of images, and crops and normalises them
itself (made for {", ".join(PLATFORMS)}):

```python
import json
from pathlib import Path
import jax.export, numpy as np
from PIL import Image{", ImageOps" * classifier.ten_crop}

network = jax.export.deserialize(bytearray(Path("{STABLEHLO}").read_bytes()))
classes = json.loads(Path("{CLASSES}").read_text(encoding="utf-8"))
picture = Image.open("photo.jpg").convert("RGB")
said = network.call(np.asarray({fit})[None])  # "logits" and "probabilities", [1, {len(classifier.classes)}]
print(classes[int(said["probabilities"][0].argmax())])
```

{_for_torch(run, classifier)}

With afa_jax, from the run's folder: `python -m afa_jax.predict {run.folder} photo.jpg`."""


def _for_torch(run: Finished, classifier: Classifier) -> str:
    name, number, side = run.experiment.network, len(classifier.classes), classifier.preprocess.size
    if name in own.NAMES:
        return f"`{SAFETENSORS}` has the weights under the paths of Flax's layers."
    files, loss = f"`{PTH}` and `{SAFETENSORS}` are the weights for PyTorch", run.experiment.loss
    if loss.by_angle:
        files += f" (the head is read by angle: logits are {loss.scale:g}·cos of its input and its rows, without bias)"
    if not any("pytorch.org" in address for address in NETWORKS[name].weights.values()):
        return f"{files}; torchvision has no such network, and the keys are the paths of the layers."
    options, name = ("", name) if not name.startswith("inception") else (_inception(name), "inception_v3")
    return f"""\
{files}, in torchvision's names (for ONNX: `torch.onnx.export` of this):

```python
import torch, torchvision

network = torchvision.models.{name}(num_classes={number}{options})
network.load_state_dict(torch.load("{PTH}"))
network.eval()  # takes float32 [batch, 3, {side}, {side}], normalised as above
```"""


def _inception(name: str) -> str:
    return f", aux_logits={not name.endswith('no_aux')}, transform_input=False, init_weights=False"


def _licence(run: Finished) -> str:
    e = run.experiment
    published: Mapping[str, str] = NETWORKS[e.network].weights
    if run.summary["recipe"] == "scratch":
        return "No weights of others went into this network; the data set has terms of its own."
    if e.source.weights == "train":
        return f"The source network was trained with afa_jax on `{e.source.dataset}`, which has terms of its own."
    where = f", published at {published[e.source.weights]}" if e.source.weights in published else ""
    return (
        f"Of the source weights (`{e.source.weights}`{where}): unknown; ask where they come from. The weights here are "
        "derived from them, and from the data set, which has terms of its own."
    )
