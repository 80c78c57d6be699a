"""Images are normalised as those that the weights were trained on, unless the config says otherwise."""

import dataclasses

import numpy as np
import pytest
import torch

from cvkit.config import load_config
from cvkit.models.pretrained import has_pretrained, trained_on
from cvkit.registry import MODELS
from cvkit.runs.experiment import Experiment
from cvkit.runs.folder import Run
from cvkit.session import train

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(autouse=True)
def published(monkeypatch):
    """torchvision's weights are what a model of its own begins with."""
    import torchvision.models

    def state(self, **options):
        return torchvision.models.get_model("mobilenet_v3_small").state_dict()

    monkeypatch.setattr(torchvision.models.MobileNet_V3_Small_Weights, "get_state_dict", state)


PRETRAINED = {"MODEL": {"NAME": "mobilenet_v3_small", "weights": "DEFAULT"}, "TRAIN.EPOCHS": 1}


def constants(path, **settings):
    loaders = Experiment(load_config(path, {**PRETRAINED, **settings})).loaders
    return tuple(loaders.mean), tuple(loaders.std), loaders.is_usual


def test_what_torchvision_s_weights_were_trained_on():
    assert trained_on({"NAME": "mobilenet_v3_small", "weights": "DEFAULT"}) == ("IMAGENET1K_V1", *IMAGENET, (224, 224))
    assert trained_on({"NAME": "torchvision.models.vit_b_16", "weights": "IMAGENET1K_SWAG_E2E_V1"}).size == (384, 384)
    assert trained_on({"NAME": "inception_v3", "weights": "DEFAULT"}).size == (299, 299)
    for node in ({"NAME": "mobilenet_v3_small"}, {"NAME": "resnet18"}, {"NAME": "alexnet", "weights": "V9"}):
        assert trained_on(node) is None
    assert has_pretrained({"weights": "DEFAULT"}) and not has_pretrained({"weights": None, "pretrained": False})


@pytest.mark.parametrize("name", MODELS.library[1])
def test_every_published_weight_is_known(name):
    import torchvision.models

    for weights in torchvision.models.get_model_weights(name).__members__:
        found = trained_on({"NAME": name, "weights": weights})
        assert len(found.mean) == len(found.std) == 3 and min(found.size) >= 200


def test_the_weights_constants_hold_unless_the_config_sets_its_own(tiny):
    assert constants(tiny) == (*IMAGENET, True)
    own = Experiment(load_config(tiny)).data
    assert constants(tiny, MODEL={"NAME": "resnet18", "width": 4}) == (own.mean, own.std, False)
    transforms = [{"NAME": "Normalize", "mean": [0.5] * 3, "std": [0.25] * 3}]
    assert constants(tiny, **{"DATA.TEST_TRANSFORMS": transforms}) == ((0.5,) * 3, (0.25,) * 3, False)
    # Named without constants it stands for the data's own.
    assert constants(tiny, **{"DATA.TEST_TRANSFORMS": [{"NAME": "Normalize"}]}) == (own.mean, own.std, False)


def test_a_mean_of_the_data_set_that_the_config_sets_holds(tmp_path, tiny):
    from conftest import paint
    paint(tmp_path, "train", 4, np.random.default_rng(0))
    paint(tmp_path, "test", 4, np.random.default_rng(1))
    node = {"NAME": "ImageFolder", "root": str(tmp_path)}
    assert constants(tiny, **{"DATA.DATASET": {**node, "mean": [0.1, 0.2, 0.3], "std": [0.4] * 3}}) == (
        (0.1, 0.2, 0.3), (0.4,) * 3, False)
    assert constants(tiny, **{"DATA.DATASET": node}) == (*IMAGENET, True)


def test_grey_images_get_the_mean_over_the_channels(tiny, run):
    mean, std, is_usual = constants(tiny, MODEL={"NAME": "resnet18", "width": 4, "INIT_FROM": str(run.folder)},
                                    **{"DATA.DATASET": {"NAME": "Digits", "channels": 1}})
    checkpoint = run.checkpoint()
    assert is_usual and mean == pytest.approx([np.mean(checkpoint.mean)]) and std == pytest.approx([np.mean(checkpoint.std)])


def test_the_constants_of_a_run_are_taken_with_its_weights_and_resumed_without_the_file(tiny, run, capsys):
    checkpoint = dataclasses.replace(run.checkpoint(), mean=[0.3, 0.2, 0.1], std=[0.5, 0.6, 0.7], image_shape=[3, 64, 64])
    checkpoint.save(run.folder.parent / "begin.pt")
    settings = {"MODEL.INIT_FROM": str(run.folder.parent / "begin.pt"), "TRAIN.EPOCHS": 1}
    first = train(load_config(tiny, settings))
    out = capsys.readouterr().out
    assert "images     normalised with mean 0.3 0.2 0.1 and std 0.5 0.6 0.7, as those that the weights were trained on\n" in out
    assert ("note       the weights were trained on 64×64 pixels, these images have 32×32: {NAME: Resize, height: 64, "
            "width: 64} in both lists of transforms makes them alike\n") in out
    whole = train(load_config(tiny, {**settings, "TRAIN.EPOCHS": 2}))
    (run.folder.parent / "begin.pt").unlink()
    again = train(load_config(tiny, {**settings, "TRAIN.EPOCHS": 2}), resume=first.folder)
    assert len(again.metrics) == 2 and again.checkpoint("last").mean == [0.3, 0.2, 0.1]
    assert tuple(Run(again.folder).loaders.mean) == (0.3, 0.2, 0.1)
    for name, weight in whole.checkpoint("last").model.items():
        assert torch.equal(weight, again.checkpoint("last").model[name]), name


def test_pretrained_weights_are_told_with_their_images(tiny, capsys):
    train(load_config(tiny, {**PRETRAINED, "DATA.TEST_TRANSFORMS": [], "DATA.LIMIT": 40}))
    out = capsys.readouterr().out
    assert "images     normalised with mean 0.485 0.456 0.406 and std 0.229 0.224 0.225" in out
    assert "the weights were trained on 224×224 pixels, these images have 32×32" in out
