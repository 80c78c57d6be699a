import random
import sys
import types
from functools import partial

import numpy as np
import pytest
import torch

from cvkit.errors import ConfigError
from cvkit.models.probing import choose_layout, pads_average_pools
from cvkit.system import distributed
from cvkit.system.device import autocast, choose_device, choose_precision, compile_model
from cvkit.system.environment import environment, public_url, runs_folder
from cvkit.system.saving import reread
from cvkit.system.seeds import (
    random_numbers_kept,
    random_state,
    seed_everything,
    seed_random_numbers,
    set_random_state,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("has_gpu, expected", [(True, "cuda"), (False, "cpu")])
def test_auto_takes_a_gpu_where_there_is_one(monkeypatch, has_gpu, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(has_gpu))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto").type == expected


@pytest.mark.parametrize("name, expected", [
    ("gpu", "auto, cpu, cuda, cuda:1 or mps are possible"), ("meta", "no device"),
    ("cuda:7", "DEVICE auto takes what there is"), ("mps", "not on this machine")])
def test_absent_devices_are_refused(monkeypatch, name, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=expected):
        choose_device(name)


@pytest.mark.parametrize("capability, expected", [((9, 0), "bf16"), ((8, 0), "bf16"),
                                                  ((7, 5), "fp16"), ((6, 1), "fp32")])
def test_precision_follows_the_gpu(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_precision("auto", CUDA) == expected


@pytest.mark.parametrize("has_bf16, expected", [(True, "bf16"), (False, "fp32")])
def test_precision_follows_the_processor(monkeypatch, has_bf16, expected):
    for question in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, question, lambda: has_bf16, raising=False)
    assert choose_precision("auto", CPU) == expected


def test_a_given_precision_is_kept_but_fp16_is_for_gpus():
    assert choose_precision("fp32", CUDA) == "fp32" and choose_precision("bf16", CPU) == "bf16"
    with pytest.raises(ConfigError, match="fp16 is for GPUs"):
        choose_precision("fp16", CPU)


def of_torchrun(monkeypatch, processes, local):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": local,
                        "LOCAL_RANK": local - 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_each_process_has_a_gpu_of_its_own_and_none_that_is_another_s(monkeypatch):
    of_torchrun(monkeypatch, 2, 2)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda:1")
    with pytest.raises(ConfigError, match="several processes cannot share cuda:0\n  DEVICE cuda gives each"):
        choose_device("cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # what started them shows each one its own
    assert choose_device("cuda:0") == torch.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match="cuda:0 is not on this machine"):
        choose_device("cuda:0")
    of_torchrun(monkeypatch, 2, 1)  # one on each of two machines
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert distributed.launched() == 2 and distributed.local_size() == 1


def test_one_gpu_on_each_of_two_machines_is_set_by_its_number(monkeypatch):
    """As torch asks; "cuda" is none for it."""
    of_torchrun(monkeypatch, 2, 1)
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(torch.device("cuda", device)))
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda *_, **__: iter(()))
    with pytest.raises(StopIteration):
        distributed.start(choose_device("cuda"))
    assert chosen == [torch.device("cuda:0")]


def test_autocast_computes_in_its_precision():
    x = torch.randn(4, 4)
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        with autocast(CPU, precision):
            assert (x @ x).dtype == dtype


def test_a_seed_repeats_and_its_parts_matter():
    draws = []
    for key in ((0, 1), (0, 1), (1, 0), (0, 2)):
        seed_everything(*key)
        draws.append(float(torch.rand(())))
    assert draws[0] == draws[1] and len(set(draws)) == 3


def test_a_state_of_all_random_numbers_is_taken_up_again():
    def drawn():
        return [torch.rand(()).item(), random.random(), random.gauss(0, 1), np.random.rand(),
                np.random.randn()]

    cpu = torch.device("cpu")
    seed_random_numbers(1, 2)
    drawn()  # the second of a pair of normal numbers is kept for the next call
    state = reread(random_state(cpu))
    expected = [drawn() for _ in range(3)]
    set_random_state(state, cpu)
    assert [drawn() for _ in range(3)] == expected
    with random_numbers_kept(cpu):
        first = drawn()
    assert drawn() == first
    set_random_state({"cpu": state["cpu"]}, cpu)  # as older versions saved it


def test_a_password_in_the_command_is_not_kept(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cvkit", "SWEEP.STORAGE", "postgresql://me:s3cret@host:5432/runs",
                                      "WRITERS", "[{NAME: MLflow, tracking_uri: 'https://me:s3cret@host'}]"])
    line = environment(torch.device("cpu")).split("\n")[0]
    assert "postgresql://me:***@host:5432/runs" in line and "https://me:***@host" in line
    assert "s3cret" not in line
    for word in ("postgresql://me:s3/cret@host/db", "postgresql://host/db?user=me&password=s3/cret&x=1"):
        monkeypatch.setattr(sys, "argv", ["cvkit", "SWEEP.STORAGE", word])
        line = environment(torch.device("cpu")).split("\n")[0]
        assert word.replace("s3/cret", "***") in line
    monkeypatch.setattr(sys, "argv", ["cvkit", "http://localhost:5000/path", "a@b"])
    assert "http://localhost:5000/path a@b" in environment(torch.device("cpu")).split("\n")[0]


def test_the_environment_names_what_matters():
    text = environment(CPU)
    for word in ("command: ", "python: 3.", f"torch: {torch.__version__.split('+')[0]}",
                 "albumentations: 2.0.8", "cvkit: ", "thread"):
        assert word in text


def test_channels_last_is_chosen_where_it_is_wanted_and_safe():
    from cvkit.models import build_model

    for width, wanted, expected in ((64, True, torch.channels_last), (8, True, None),
                                    (64, False, None)):
        model = build_model({"NAME": "resnet18", "width": width}, 10, (3, 32, 32))
        layout = choose_layout(wanted, model, CPU)
        assert layout == (expected or torch.contiguous_format)
    assert choose_layout(True, model, CUDA) == torch.channels_last
    assert choose_layout(True, model, torch.device("mps")) == torch.contiguous_format


@pytest.mark.parametrize("pool, pads", [
    (torch.nn.AvgPool2d(3, 1, padding=1), True), (torch.nn.AvgPool2d(2), False),
    (torch.nn.MaxPool2d(3, 1, padding=1), False), (torch.nn.AdaptiveAvgPool2d(2), False)])
def test_average_pools_over_a_padding_are_found(pool, pads):
    """torch before 2.14 trains them on wrong gradients in channels_last on a GPU."""
    class Pooled(torch.nn.Module):
        def forward(self, images):
            return torch.nn.functional.avg_pool2d(pool(images), 2)

    assert pads_average_pools(Pooled(), (3, 8, 8), CPU) is pads


@pytest.mark.parametrize("remote", [
    "git@github.com:me/course.git", "ssh://git@github.com/me/course.git",
    "https://github.com/me/course", "https://me:ghp_token@github.com/me/course.git"])
def test_a_remote_is_an_address_without_secrets(remote):
    assert public_url(remote) == "https://github.com/me/course"


def test_runs_are_kept_in_google_drive_on_colab_and_here_elsewhere(monkeypatch, capsys):
    assert runs_folder() == "runs" and "runs/" in capsys.readouterr().out
    mounted = []
    colab = types.ModuleType("google.colab")
    colab.drive = types.SimpleNamespace(mount=mounted.append)
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    monkeypatch.setitem(sys.modules, "google", sys.modules.get("google", types.ModuleType("google")))
    assert runs_folder("mine") == "/content/drive/MyDrive/mine"
    assert mounted == ["/content/drive"] and "Google Drive, in mine/" in capsys.readouterr().out


def test_models_of_one_class_are_compiled_however_many_there_were_before(monkeypatch):
    """torch keeps eight forms of a class's forward, and leaves what comes then uncompiled."""
    class Scaled(torch.nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def forward(self, images):
            return images * self.factor

    graphs = []

    def compiler(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=compiler))
    for factor in range(12):
        before = len(graphs)
        model = compile_model(Scaled(float(factor)), torch.device("cpu"))
        assert torch.equal(model(torch.ones(3)), torch.full((3,), float(factor)))
        assert len(graphs) == before + 2  # what is tried, and the model
