import math

import pytest
import torch
from torch import nn

from cvkit.errors import CheckpointError, ConfigError
from cvkit.models import build_model
from cvkit.models.features import head_of
from cvkit.models.weights import fit_weights, load_fit

SHAPE = (3, 32, 32)
COUNTERS = 20  # of the norms of a resnet18; no file has to have them


def small(classes=10, seed=0, shape=SHAPE, **arguments):
    torch.manual_seed(seed)
    return build_model({"NAME": "resnet18", "width": 4, **arguments}, classes, shape)


def moved(model):
    """Return its weights once every tensor has other values."""
    with torch.no_grad():
        for value in model.state_dict().values():
            value.add_(1)
    return model.state_dict()


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module._orig_mod.", "backbone.encoder."])
def test_all_but_the_head_is_loaded_whatever_stands_before_the_names(prefix):
    theirs, model = moved(small()), small(5, seed=1)
    fit = fit_weights(model, {prefix + name: value for name, value in theirs.items()})
    head = model.fc.weight.clone()
    load_fit(model, fit, "fc", (), "the file")
    assert fit.new == {"fc.weight": "10×32 in the file, 5×32 here", "fc.bias": "10 in the file, 5 here"}
    assert fit.unused == [] and torch.equal(model.fc.weight, head)
    for name, value in model.state_dict().items():
        assert name.startswith("fc.") or torch.equal(value, theirs[name]), name


def test_of_several_that_fit_alike_the_file_s_first_is_taken_and_the_others_are_told():
    query, key, model = moved(small()), moved(small(seed=2)), small()
    fit = fit_weights(model, {f"module.encoder_q.{name}": value for name, value in query.items()} | {
        f"module.encoder_k.{name}": value for name, value in key.items()} | {"module.queue": torch.zeros(4, 4)})
    assert torch.equal(fit.loaded["fc.weight"], query["fc.weight"])
    assert fit.lines(model)[0].endswith(", called module.encoder_q.… in it; what is called module.encoder_k.… in it "
                                        "fits as well")


def test_compiled_parts_and_a_model_that_is_wrapped_itself():
    theirs, inner = moved(small()), small(seed=1)
    model = nn.Sequential()
    model.add_module("net", inner)
    names = {name.replace("layer1.", "layer1._orig_mod."): value for name, value in theirs.items()}
    fit = fit_weights(model, names)
    assert fit.lines(model) == [
        f"loaded     122 of 122 tensors, {sum(map(torch.numel, theirs.values())):,} of "
        f"{sum(map(torch.numel, theirs.values())):,} numbers, called without net. in it"]
    load_fit(model, fit, "net.fc", (), "the file")
    assert all(torch.equal(value, theirs[name]) for name, value in inner.state_dict().items())


def test_the_head_of_other_classes_is_left_out_though_it_would_fit():
    fit = fit_weights(small(), moved(small()), "fc")
    assert fit.new == dict.fromkeys(["fc.weight", "fc.bias"], "the file's are of other classes")


def test_counts_of_batches_may_be_missing_and_half_precision_is_taken():
    theirs = {name: value.half() for name, value in moved(small()).items() if "num_batches" not in name}
    model = small(seed=1)
    load_fit(model, fit_weights(model, theirs), "fc", (), "the file")
    assert model.fc.weight.dtype == torch.float32
    assert torch.equal(model.fc.weight, theirs["fc.weight"].float())


@pytest.mark.parametrize("given, wanted", [(3, 1), (1, 3), (3, 4), (3, 2), (4, 3)])
def test_a_first_convolution_is_fitted_to_other_channels(given, wanted):
    theirs, model = moved(small(shape=(given, 32, 32))), small(5, seed=1, shape=(wanted, 32, 32))
    load_fit(model, fit_weights(model, theirs), "fc", (), "the file")
    old, new = theirs["conv1.weight"], model.conv1.weight
    if wanted == 1:
        assert torch.equal(new[:, 0], old.sum(1))
    else:
        expected = torch.stack([old[:, channel % given] * given / wanted for channel in range(wanted)], 1)
        assert torch.allclose(new, expected)
    # The same grey image in every channel says the same.
    grey = torch.randn(1, 1, 8, 8)
    if wanted == 1 or given == 1:
        maps = [nn.functional.conv2d(grey.expand(-1, weight.shape[1], -1, -1), weight) for weight in (old, new)]
        assert torch.allclose(*maps, atol=1e-4)


def test_position_embeddings_are_interpolated():
    theirs = build_model({"NAME": "vit", "width": 16, "depth": 1}, 10, SHAPE)
    side = torch.linspace(0, 1, 8)
    with torch.no_grad():  # a plane, which any interpolation keeps but at the edges
        theirs.encoder.pos_embedding[0, 1:] = (side[:, None] + 2 * side[None]).reshape(64, 1)
    model = build_model({"NAME": "vit", "width": 16, "depth": 1}, 10, (3, 64, 64))
    fit = fit_weights(model, theirs.state_dict())
    assert fit.adapted == {"encoder.pos_embedding": "interpolated from 8×8 to 16×16 patches"} and not fit.new
    load_fit(model, fit, "heads.head", (), "the file")
    positions = model.encoder.pos_embedding.detach()
    assert torch.equal(positions[0, 0], theirs.encoder.pos_embedding[0, 0])
    plane = positions[0, 1:, 0].unflatten(0, (16, 16))[3:13, 3:13]
    place = (torch.arange(16) + 0.5) / 16 * 8 / 7 - 0.5 / 7  # half pixels, from corner to corner
    assert torch.allclose(plane, (place[:, None] + 2 * place[None])[3:13, 3:13], atol=0.02)


def test_what_does_not_fit_is_refused_unless_it_may_be_new():
    theirs = moved(small())
    model = small(5, seed=1, strides=[1, 2, 2, 2])
    for name in [name for name in theirs if name.startswith("layer4.")]:
        del theirs[name]
    theirs["layer1.0.conv1.weight"] = torch.zeros(4, 4, 5, 5)
    fit = fit_weights(model, theirs)
    with pytest.raises(CheckpointError, match=(
            "my.pt does not fit the model: besides the head, 26 of its 122 tensors are not in it, "
            r"layer1.0.conv1.weight \(4×4×5×5 in the file, 4×4×3×3 here\), layer4.0.conv1.weight \(absent\)")) as caught:
        load_fit(model, fit, "fc", ["layer4"][:0], "my.pt")
    assert caught.value.hint == "INIT_NEW [layer1, layer4] lets them begin anew."
    before = model.layer4[0].conv1.weight.clone()
    load_fit(model, fit, "fc", ["layer4", "layer1.0.*"], "my.pt")
    assert torch.equal(model.layer4[0].conv1.weight, before)
    assert torch.equal(model.layer1[1].conv1.weight, theirs["layer1.1.conv1.weight"])
    with pytest.raises(ConfigError, match="the model has no part 'layr4'\n  Did you mean layer4?"):
        load_fit(model, fit, "fc", ["layr4"], "my.pt")


def test_weights_that_are_no_numbers_are_refused():
    theirs = moved(small())
    theirs["layer2.0.conv1.weight"][0] = math.nan
    with pytest.raises(CheckpointError, match="my.pt is of a training that went wrong: it has NaN in layer2.0.conv1.weight"):
        load_fit(small(), fit_weights(small(), theirs), "fc", (), "my.pt")


def test_another_width_is_told_as_such():
    model = build_model({"NAME": "resnet18", "width": 8}, 10, (3, 32, 32))
    with pytest.raises(CheckpointError, match="\n  Its names are the same, its sizes are not: MODEL.width or the like"):
        load_fit(model, fit_weights(model, moved(small())), "fc", (), "my.pt")


def test_the_weights_of_another_model_are_told_as_such():
    import torchvision.models

    theirs = torchvision.models.mobilenet_v3_small().state_dict()
    with pytest.raises(CheckpointError, match="It seems to be of another model: it has features.0.0.weight"):
        load_fit(small(), fit_weights(small(), theirs), "fc", (), "my.pt")


def test_the_table_tells_what_becomes_of_each_tensor():
    theirs = moved(small())
    theirs["extra.weight"] = torch.zeros(3)
    model = small(5, shape=(1, 32, 32))
    lines = fit_weights(model, theirs).lines(model)
    assert lines[0].startswith("loaded     120 of 122 tensors, ")
    assert lines[1:] == [
        "adapted    conv1.weight: summed over 3 channels", "new        fc.weight: 10×32 in the file, 5×32 here",
        "new        fc.bias: 10 in the file, 5 here", "unused     extra.weight: the model has none of that name"]


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "densenet121", "vit_b_32", "swin_t", "googlenet", "resnet9"])
def test_others_models_begin_with_all_but_their_head(name):
    theirs, model = build_model(name, 7, (3, 64, 64)), build_model(name, 4, (3, 64, 64))
    head = head_of(model, (3, 64, 64))
    fit = fit_weights(model, theirs.state_dict())
    assert set(fit.new) == {f"{head}.weight", f"{head}.bias"} and not fit.adapted and not fit.unused
    load_fit(model, fit, head, (), "the file")
    assert math.isclose(sum(float(p.detach().double().sum()) for n, p in model.named_parameters() if not n.startswith(head)),
                        sum(float(p.detach().double().sum()) for n, p in theirs.named_parameters() if not n.startswith(head)))


def test_a_new_head_begins_no_larger_than_torch_s_own_beside_loaded_weights():
    whole = build_model("efficientnet_b0", 10, (3, 32, 32))
    assert whole.classifier[1].weight.std() > 5 * 1280**-0.5  # which training from scratch begins with
    model = build_model("efficientnet_b0", 4, (3, 32, 32))
    load_fit(model, fit_weights(model, whole.state_dict()), "classifier.1", (), "the file")
    assert 0.4 < float(model.classifier[1].weight.detach().std()) * 1280**0.5 < 0.7
    same = build_model("efficientnet_b0", 10, (3, 32, 32))
    load_fit(same, fit_weights(same, whole.state_dict()), "classifier.1", (), "the file")
    assert torch.equal(same.classifier[1].weight, whole.classifier[1].weight)  # loaded, not new
    smaller = build_model("vit_b_32", 4, (3, 64, 64))
    load_fit(smaller, fit_weights(smaller, build_model("vit_b_32", 5, (3, 64, 64)).state_dict()), "heads.head", (), "it")
    assert not smaller.heads.head.weight.any()  # its authors begin with zeros
