"""torchvision's side of the parity cases; `torch_faces` is that of the networks which torchvision does not have.

Needs torch and torchvision; nothing else in the repository does.
"""

import sys
from pathlib import Path

import torch

from tests.models import parity_cases as cases
from tests.models import torch_faces

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from torchvision_networks import torchvision


def build(name):
    """The network with the case's weights and without dropout, whose random numbers are no part of parity."""
    options = {}
    if name.startswith("inception"):
        options = {"init_weights": False, "aux_logits": name == "inception_v3"}
    if name in cases.FACES:
        model = torch_faces.build(name, cases.CLASSES)
    else:
        factory = getattr(torchvision.models, name.removesuffix("_no_aux"))
        model = factory(weights=None, num_classes=cases.CLASSES, **options)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    arrays = {key: torch.from_numpy(value) for key, value in cases.state(name).items()}
    missing, unexpected = model.load_state_dict(arrays, strict=False)
    fixed = cases.fixed_at_one(name)
    assert not unexpected and all(key in fixed or key.endswith("num_batches_tracked") for key in missing)
    return model


def evaluated(name, taps):
    """Logits and taps in eval mode; float32."""
    model, results = build(name).eval(), {}

    def keep(tap):
        def hook(module, arguments, output):
            results[f"tap {tap}"] = output.permute(0, 2, 3, 1).numpy()

        return hook

    def keep_input(tap):
        def hook(module, arguments):
            results[f"tap {tap}"] = arguments[0].numpy()

        return hook

    for tap in taps:
        layer, _, what = tap.partition(":")
        module = model.get_submodule(layer)
        module.register_forward_pre_hook(keep_input(tap)) if what else module.register_forward_hook(keep(tap))
    with torch.no_grad():
        results["eval logits"] = model(torch.from_numpy(cases.inputs(name)[0]).permute(0, 3, 1, 2)).numpy()
    return results


def trained(name):
    """Logits, new statistics, gradient and the parameters after one step of SGD, in train mode; float64."""
    model = build(name).double().train()
    images, labels = (torch.from_numpy(array) for array in cases.inputs(name))
    output = model(images.permute(0, 3, 1, 2).double())
    logits = output if isinstance(output, torch.Tensor) else output.logits  # the second head's have no weight
    torch.nn.functional.cross_entropy(logits, labels).backward()
    results = {"train logits": logits.detach().numpy()}
    moved = {key: value for key, value in model.named_parameters() if value.grad is not None}
    results |= {f"gradient {key}": value.grad.numpy().copy() for key, value in moved.items()}
    torch.optim.SGD(moved.values(), lr=cases.RATE).step()
    results |= {f"after {key}": value.detach().numpy() for key, value in moved.items()}
    return results | {key: value.numpy() for key, value in model.state_dict().items() if ".running_" in key}
