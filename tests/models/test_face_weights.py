"""The files in which face networks are published, each made here: every array in its place, and no head in any."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from afa_jax.errors import UserError
from afa_jax.models import convert, torch_file, weights, zoo
from afa_jax.models.layers import PReLU
from tests.models import mxnet_writer
from tests.models import parity_cases as cases
from tests.models.legacy_files import write_stream

EMBEDDING = "head:input"


def images(count=2):
    return np.random.RandomState(0).normal(size=(count, 112, 112, 3)).astype(np.float32)


def forward(name, variables, *taps):
    module = zoo.create(name, variables["params"]["head"]["bias"].size)
    return jax.jit(lambda v, x: zoo.forward(module, v, x, taps=taps))(variables, images())


def mxnet_shapes():
    """The arrays of LResNet34E-IR's file, by the description of the network."""

    def norm(name, width):
        parts = {"arg": ("gamma", "beta"), "aux": ("moving_mean", "moving_var")}
        return {f"{kind}:{name}_{word}": (width,) for kind, words in parts.items() for word in words}

    shapes = {"arg:conv0_weight": (64, 3, 3, 3), **norm("bn0", 64), "arg:relu0_gamma": (64,)}
    inputs = 64
    for stage, (units, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)], start=1):
        for i in range(1, units + 1):
            unit = f"stage{stage}_unit{i}"
            shapes |= norm(f"{unit}_bn1", inputs) | norm(f"{unit}_bn2", width) | norm(f"{unit}_bn3", width)
            shapes[f"arg:{unit}_conv1_weight"] = (width, inputs, 3, 3)
            shapes[f"arg:{unit}_relu1_gamma"] = (width,)
            shapes[f"arg:{unit}_conv2_weight"] = (width, width, 3, 3)
            if i == 1:
                shapes |= {f"arg:{unit}_conv1sc_weight": (width, inputs, 1, 1), **norm(f"{unit}_sc", width)}
            inputs = width
    shapes |= norm("bn1", 512)
    shapes |= {"arg:pre_fc1_weight": (512, 512 * 7 * 7), "arg:pre_fc1_bias": (512,), **norm("fc1", 512)}
    return shapes


@pytest.fixture(scope="module")
def mxnet_state():
    random = np.random.default_rng(0)

    def array(key, shape):
        if key.endswith(("gamma", "var")):
            return random.uniform(0.5, 1.5, shape)
        return random.normal(0, 0.1 if len(shape) == 1 else (2 / np.prod(shape[1:])) ** 0.5, shape)

    return {key: array(key, shape).astype(np.float32) for key, shape in mxnet_shapes().items()}


@pytest.fixture(scope="module")
def mxnet_file(mxnet_state, tmp_path_factory):
    path = tmp_path_factory.mktemp("mxnet") / "model-0000.params"
    mxnet_writer.write(path, mxnet_state)
    return path


@pytest.fixture(scope="module")
def mxnet_loaded(mxnet_file):
    return weights.load("lresnet34e_ir", mxnet_file)


def test_every_array_of_mxnets_file_is_in_its_place(mxnet_state, mxnet_loaded):
    params, stats = mxnet_loaded["params"], mxnet_loaded["batch_stats"]
    unit, moving = params["stage2"]["unit1"], stats["stage2"]["unit1"]
    matrix = mxnet_state["arg:stage2_unit1_conv1sc_weight"][:, :, 0, 0]
    np.testing.assert_array_equal(unit["conv1sc"]["kernel"][0, 0], matrix.T)
    for out, into, row, column in ((0, 0, 0, 0), (5, 63, 2, 1), (127, 7, 0, 2)):
        expected = mxnet_state["arg:stage2_unit1_conv1_weight"][out, into, row, column]
        assert unit["conv1"]["kernel"][row, column, into, out] == expected
    for layer in ("sc", "bn1"):
        for ours, word, theirs in (
            (unit, "scale", "arg:stage2_unit1_{}_gamma"),
            (unit, "bias", "arg:stage2_unit1_{}_beta"),
            (moving, "mean", "aux:stage2_unit1_{}_moving_mean"),
            (moving, "var", "aux:stage2_unit1_{}_moving_var"),
        ):
            np.testing.assert_array_equal(ours[layer][word], mxnet_state[theirs.format(layer)])
    np.testing.assert_array_equal(params["relu0"]["slope"], mxnet_state["arg:relu0_gamma"])
    np.testing.assert_array_equal(params["pre_fc1"]["kernel"], mxnet_state["arg:pre_fc1_weight"].T)
    np.testing.assert_array_equal(params["fc1"]["bias"], mxnet_state["arg:fc1_beta"])
    assert set(params["fc1"]) == {"bias"}, "its gamma is one, whatever the file says"
    counted = sum(leaf.size for leaf in jax.tree.leaves(mxnet_loaded))
    assert counted == sum(array.size for array in mxnet_state.values()) - 512


def test_the_published_count_is_that_of_the_files_parameters(mxnet_state):
    assert sum(array.size for key, array in mxnet_state.items() if key.startswith("arg:")) == 34_139_328


def test_the_fully_connected_layer_takes_channels_first(mxnet_state, mxnet_loaded):
    outputs = forward("lresnet34e_ir", mxnet_loaded, "bn1", "pre_fc1", "fc1", EMBEDDING)
    taken_in = np.asarray(outputs.features["bn1"]).transpose(0, 3, 1, 2).reshape(2, -1)
    expected = taken_in @ mxnet_state["arg:pre_fc1_weight"].T + mxnet_state["arg:pre_fc1_bias"]
    np.testing.assert_allclose(outputs.features["pre_fc1"], expected, rtol=0, atol=1e-4 * abs(expected).max())
    spread = np.sqrt(mxnet_state["aux:fc1_moving_var"] + 2e-5)
    embedding = (expected - mxnet_state["aux:fc1_moving_mean"]) / spread + mxnet_state["arg:fc1_beta"]
    for tap in ("fc1", EMBEDDING):
        np.testing.assert_allclose(outputs.features[tap], embedding, rtol=0, atol=1e-4 * abs(embedding).max())
    assert outputs.logits.shape == (2, 0), "no head, no classes"


def test_what_came_from_mxnet_is_written_for_pytorch_and_read_back(mxnet_loaded, tmp_path):
    """With a weight of the last BatchNorm, which PyTorch wants and is one."""
    weights.export(tmp_path / "net.safetensors", mxnet_loaded, network="lresnet34e_ir")
    written = load_file(tmp_path / "net.safetensors")
    assert (written["fc1.weight"] == np.ones(512)).all() and "head.weight" not in written
    assert written["stage1.unit1.sc.num_batches_tracked"] == 0
    found = weights.load("lresnet34e_ir", tmp_path / "net.safetensors")
    jax.tree.map(np.testing.assert_array_equal, found, mxnet_loaded)


def test_mxnets_file_gives_pytorchs_outputs(mxnet_state, mxnet_loaded):
    torch = pytest.importorskip("torch")
    from tests.models import torch_faces

    words = {"moving_mean": "running_mean", "moving_var": "running_var", "gamma": "weight", "beta": "bias"}
    state = {}
    for key, value in mxnet_state.items():
        layer, word = re.fullmatch(r"...:(.*?)_(moving_mean|moving_var|[a-z]+)", key).groups()
        layer = re.sub(r"(stage\d)_(unit\d)_", r"\1.\2.", layer)
        value = np.ones_like(value) if key == "arg:fc1_gamma" else value
        state[f"{layer}.{words.get(word, word)}"] = torch.from_numpy(value)
    model = torch_faces.LResNet34(3).eval()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all(key.startswith("head.") or "num_batches" in key for key in missing)
    with torch.no_grad():
        expected = model.run[0](torch.from_numpy(images()).permute(0, 3, 1, 2)).numpy()
    found = forward("lresnet34e_ir", mxnet_loaded, EMBEDDING).features[EMBEDDING]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * abs(expected).max())


def torch_embedding(model):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return model.eval()(torch.from_numpy(images()).permute(0, 3, 1, 2)).numpy()


@pytest.fixture(scope="module")
def arcface_torch(tmp_path_factory):
    """(the model, its file); the variances are so small that another epsilon would be noticed."""
    torch = pytest.importorskip("torch")
    from tests.models import torch_faces

    model = torch_faces.randomise(torch_faces.IResNet34())
    for layer in (model.bn1, model.features, model.layer1[0].bn2, model.layer4[2].bn3):
        layer.running_var.mul_(2e-5)
    path = tmp_path_factory.mktemp("arcface") / "backbone.pth"
    torch.save(model.state_dict(), path)
    return model, path


def test_arcface_torchs_file_gives_its_outputs(arcface_torch):
    model, path = arcface_torch
    found = weights.read("iresnet34", path)
    assert found.num_classes == 0 and found.counters["stage2.unit1.sc"] == found.counters["fc1"] == 3
    expected = torch_embedding(model)
    variables = jax.tree.map(jnp.asarray, found.variables)
    close = dict(rtol=0, atol=1e-4 * abs(expected).max())
    np.testing.assert_allclose(forward("iresnet34", variables, EMBEDDING).features[EMBEDDING], expected, **close)
    other = forward("lresnet34e_ir", variables, EMBEDDING).features[EMBEDDING]
    assert abs(other - expected).max() > 0.05 * abs(expected).max(), "the epsilon of the other network"


def test_the_two_networks_files_are_told_apart(arcface_torch, mxnet_file):
    with pytest.raises(convert.MisfitError, match="it looks like iresnet34"):
        weights.load("lresnet34e_ir", arcface_torch[1])
    with pytest.raises(convert.MisfitError, match="it looks like lresnet34e_ir"):
        weights.load("iresnet34", mxnet_file)


def test_a_trained_last_weight_is_refused(arcface_torch):
    state = torch_file.read(arcface_torch[1])
    state["features.weight"][3] = 1.5
    with pytest.raises(UserError, match=r"features\.weight is not 1 everywhere, as iresnet34 has it"):
        convert.from_state_dict("iresnet34", state)
    with pytest.raises(convert.MisfitError, match=r"1 of another shape \(features\.weight: \[3\] for \[512\]\)"):
        convert.from_state_dict("iresnet34", state | {"features.weight": np.ones(3)})


def test_arcface_torchs_file_is_written_as_it_was(arcface_torch, tmp_path):
    """Without the head of no classes, with the weights that are fixed, and torch takes it."""
    _, path = arcface_torch
    found = weights.read("iresnet34", path)
    weights.export(tmp_path / "back.pth", found.variables, found.counters, "iresnet34")
    before, after = torch_file.read(path), torch_file.read(tmp_path / "back.pth")
    assert before.keys() == after.keys()
    for key, value in before.items():
        np.testing.assert_array_equal(after[key], value)


@pytest.fixture(scope="module")
def grouped():
    """(a model of the `conv_23` kind, its `state_dict`)."""
    pytest.importorskip("torch")
    from tests.models import torch_faces

    model = torch_faces.randomise(torch_faces.GroupedMobileFaceNet(512))
    return model, {key: value.numpy() for key, value in model.state_dict().items()}


def test_the_conv_23_layout_gives_its_outputs(grouped, tmp_path):
    model, state = grouped
    assert state["linear.weight"].shape == (512, 512) and "conv_4.model.5.conv_dw.prelu.weight" in state
    torch_file.write(tmp_path / "net.pth", state)
    found = weights.read("mobilefacenet_512", tmp_path / "net.pth")
    assert found.counters["blocks.13.conv.4"] == found.counters["linear1.bn"] == 3
    expected = torch_embedding(model)
    outputs = forward("mobilefacenet_512", found.variables, EMBEDDING)
    np.testing.assert_allclose(outputs.features[EMBEDDING], expected, rtol=0, atol=1e-4 * abs(expected).max())


def test_what_does_not_fit_is_told_in_the_files_words(grouped, mxnet_state):
    state = {key: value for key, value in grouped[1].items() if key != "conv_5.model.1.project.conv.weight"}
    with pytest.raises(convert.MisfitError) as error:
        convert.from_state_dict("mobilefacenet_512", state | {"linear.bias": np.zeros(512, np.float32)})
    told = r"1 missing (conv_5.model.1.project.conv.weight); 1 unexpected (linear.bias)"
    assert told in str(error.value)
    with pytest.raises(convert.MisfitError, match="it looks like mobilefacenet_512"):
        convert.from_state_dict("mobilefacenet", grouped[1])
    stripped = {key[4:]: value for key, value in mxnet_state.items() if key != "arg:stage3_unit2_relu1_gamma"}
    with pytest.raises(
        convert.MisfitError, match=r"1 missing \(stage3_unit2_relu1_gamma\); 1 unexpected \(fc7_weight\)"
    ):
        convert.from_state_dict("lresnet34e_ir", stripped | {"fc7_weight": np.zeros((9, 512), np.float32)})


@pytest.fixture(scope="module")
def headless():
    state = cases.state("mobilefacenet")
    return {key: value for key, value in state.items() if not key.startswith("head.")}


def test_the_legacy_pickle_with_net_state_dict(headless, tmp_path):
    write_stream(tmp_path / "068.ckpt", headless, python2=False, under="net_state_dict", iters=33120)
    loaded = weights.load("mobilefacenet", tmp_path / "068.ckpt")
    with_head = convert.from_state_dict("mobilefacenet", cases.state("mobilefacenet"))
    assert with_head.num_classes == cases.CLASSES
    expected = with_head.variables
    assert loaded["params"]["head"]["kernel"].shape == (128, 0) and loaded["params"]["head"]["bias"].shape == (0,)
    expected["params"]["head"] = loaded["params"]["head"]
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)


def test_a_file_for_112_by_96_is_told(headless):
    state = headless | {"linear7.conv.weight": np.zeros((512, 1, 7, 6), np.float32)}
    with pytest.raises(
        convert.MisfitError, match=r"\[512, 1, 7, 6\] .* images of another size than 112×112, such as 112×96"
    ):
        convert.from_state_dict("mobilefacenet", state)


def test_half_a_head_is_missing_the_other_half(headless):
    with pytest.raises(convert.MisfitError, match=r"1 missing \(head\.bias\)"):
        convert.from_state_dict("mobilefacenet", headless | {"head.weight": np.zeros((4, 128), np.float32)})


def test_a_head_is_made_where_the_file_has_none(headless, tmp_path):
    """As ArcFace's class weights start; the rest stays, and so does all of it on the way through our own file."""
    torch_file.write(tmp_path / "net.pth", headless)
    bare, loaded = (weights.load("mobilefacenet", tmp_path / "net.pth", classes) for classes in (None, 2000))
    head = loaded["params"].pop("head")
    assert head["kernel"].shape == (128, 2000) and not head["bias"].any()
    assert head["kernel"].std() == pytest.approx(0.01, rel=0.01) and abs(head["kernel"].mean()) < 1e-4
    weights.save(tmp_path / "ours", "mobilefacenet", bare)
    jax.tree.map(np.testing.assert_array_equal, weights.load("mobilefacenet", tmp_path / "ours"), bare)
    weights.export(tmp_path / "back.pth", bare, network="mobilefacenet")
    assert {key for key in torch_file.read(tmp_path / "back.pth") if "num_batches" not in key} == set(headless)
    del bare["params"]["head"]
    jax.tree.map(np.testing.assert_array_equal, loaded, bare)


def test_other_networks_need_their_head():
    state = {key: value for key, value in cases.state("resnet10_small").items() if not key.startswith("fc.")}
    with pytest.raises(convert.MisfitError, match=r"2 missing \(fc\.bias, fc\.weight\)"):
        convert.from_state_dict("resnet10_small", state)


@pytest.mark.parametrize(("name", "slopes"), [("mobilefacenet", 33), ("lresnet34e_ir", 17)])
def test_other_sizes_are_refused_and_every_channel_has_a_slope(name, slopes):
    module = zoo.create(name, 10)
    with pytest.raises(UserError, match=r"takes images of 112×112 pixels: set data\.image_size=112"):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 112, 96, 3)))
    paths = [path for _, path in convert.torch_shapes(name, 10).values()]
    assert sum(path[-1] == "slope" for path in paths) == slopes


def test_the_start():
    """Slopes of a quarter; normal weights by the number of outputs, as MXNet's Xavier is set for these networks."""
    module = zoo.create("lresnet34e_ir", 10)

    @jax.jit
    def started(key):
        params = module.init(key, jnp.zeros((1, 112, 112, 3)))["params"]
        unit = params["stage3"]["unit2"]
        return unit["relu1"]["slope"], unit["conv1"]["kernel"], params["pre_fc1"]["kernel"], params["pre_fc1"]["bias"]

    slope, kernel, matrix, bias = started(jax.random.key(0))
    assert slope.shape == (256,) and (slope == 0.25).all() and not bias.any()
    assert kernel.std() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)
    assert matrix.std() == pytest.approx((2 / 512) ** 0.5, rel=0.01)


def test_prelu_by_hand():
    x = jnp.array([[-2.0, 4.0], [3.0, -1.0]])
    found = PReLU().apply({"params": {"slope": jnp.array([0.5, 0.1])}}, x)
    np.testing.assert_allclose(found, [[-1, 4], [3, -0.1]], rtol=1e-6)


def test_bfloat16_activations_give_float32_embeddings():
    half = zoo.create("mobilefacenet", 5, jnp.bfloat16)
    variables = jax.eval_shape(half.init, jax.random.key(0), jnp.zeros((1, 112, 112, 3)))
    taps = ("blocks.4.conv.6", "conv2.prelu", EMBEDDING)
    outputs = jax.eval_shape(lambda v, x: zoo.forward(half, v, x, taps=taps), variables, images())
    assert [outputs.features[tap].dtype for tap in taps] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
    assert outputs.logits.dtype == jnp.float32
