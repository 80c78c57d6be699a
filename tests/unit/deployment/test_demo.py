import base64
import contextlib
import errno
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import BROWSER, Browser
from conftest import ROOT
from PIL import Image
from torch import nn

from cvkit import Predictor
from cvkit.config import load_config
from cvkit.deployment.demo import Demo, bars, write_examples
from cvkit.errors import ConfigError, DataError
from cvkit.evaluation.predictor import Prediction
from cvkit.registry import DATASETS, MODELS
from cvkit.runs.checkpoint import Checkpoint
from cvkit.runs.folder import Run
from cvkit.session import train
from cvkit.visualizers.cam import grey, is_empty, overlay, scaled_together
from cvkit.visualizers.explained import explain


def pictures_in(page):
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
            for data in re.findall(r'base64,([^"]+)"', page)]


def test_bars_are_the_five_most_probable_with_their_whole_numbers():
    chances = np.array([0.1, 0.4, 0.05, 0.25, 0.02, 0.18], np.float32)
    page = bars(Prediction("", ["a", "<b>", "c", "${d}", "e", "f"], chances))
    assert re.findall("<span>(.*?)</span>", page) == ["&lt;b&gt;", "${d}", "f", "a", "c"]
    assert re.findall('<data value="(.*?)">(.*?)</data>', page) == [
        ("0.4", "40.0 %"), ("0.25", "25.0 %"), ("0.18", "18.0 %"), ("0.1", "10.0 %"),
        ("0.05", "5.0 %")]
    assert re.findall("width: (.*?)%", page) == ["40.00", "25.00", "18.00", "10.00", "5.00"]


def test_it_says_what_the_model_is(painted):
    demo = Demo([str(painted.folder)])
    found = painted.predictions
    assert demo.title == f"painted/{painted.folder.name}" and demo.run.folder == painted.folder
    assert demo.facts == [
        "resnet18 with 44,391 parameters, 3 classes, pictures of 32×32 pixels, in colour, test "
        f"accuracy {100 * found.accuracy:.2f} % ({found.correct} of 36 images)."]
    (painted.folder / "predictions.npz").unlink()
    for source in (painted.folder, painted.checkpoints / "best.pt"):
        assert Demo([str(source)]).facts[0].endswith("32×32 pixels, in colour.")
    assert Demo([str(painted.checkpoints / "best.pt")]).title == "best.pt"
    assert Demo([str(painted.checkpoints / "best.pt")]).run is None


def test_layers_are_told_of_a_model_whose_transforms_take_larger_pictures(painted, tmp_path):
    checkpoint = Checkpoint.load(painted.checkpoints / "last.pt")
    checkpoint.images["image_size"] = None
    checkpoint.save(tmp_path / "best.pt")
    demo = Demo([str(tmp_path / "best.pt")], ["DATA.TEST_TRANSFORMS", "[{NAME: CenterCrop, height: 48, width: 48}, {NAME: Resize, height: 32, width: 32}]"])
    assert demo.why_no_map == "" and demo.layer == "layer3" and "layer1" in demo.layers


def test_a_run_is_opened_with_the_code_that_is_named(quick, tmp_path):
    code = "from cvkit import DATASETS\n\n@DATASETS.register()\ndef Mine():\n    return DATASETS.build({'NAME': 'Digits'})\n"
    (tmp_path / "mine.py").write_text(code)
    run = train(load_config(quick, {"IMPORTS": ["mine.py"], "DATA.DATASET": {"NAME": "Mine"}, "TRAIN.EPOCHS": 1}))
    (tmp_path / "moved").mkdir()
    moved = shutil.move(tmp_path / "mine.py", tmp_path / "moved")
    del DATASETS._entries["Mine"]  # as in a new process
    demo = Demo([str(run.folder)], ["IMPORTS", f"[{moved}]"])
    assert len(write_examples(demo.run, tmp_path)) == 12


def test_a_small_file_of_too_many_pixels_is_not_decoded(painted, tmp_path):
    Image.new("1", (8000, 7000)).save(tmp_path / "large.png")
    demo = Demo([str(painted.folder)])
    for ask in (demo.predict, lambda path: demo.explain(path, ["red"], "layer1", "GradCAM")):
        with pytest.raises(DataError, match="^large.png has 7000×8000 pixels, more than 50 million$"):
            ask(str(tmp_path / "large.png"))


def test_both_maps_are_those_of_the_classes_on_one_scale(painted):
    demo, path = Demo([str(painted.folder)]), str(painted.data.test.images.paths[0])
    assert demo.layers == ["layer1.0", "layer1.1", "layer1", "layer2.0", "layer2.1", "layer2",
                           "layer3.0", "layer3.1", "layer3"] and demo.layer == "layer3"
    page = demo.explain(path, ["blue", "red"], "layer2", "HiResCAM")
    found = explain(demo.predictor, path, ["blue", "red"], "layer2", "HiResCAM")
    shown = np.asarray(Image.open(path)).repeat(8, 0).repeat(8, 1)
    for picture, values, heat in zip(pictures_in(page), found.maps,
                                     scaled_together(found.maps, (256, 256)), strict=True):
        expected = grey(shown).repeat(3, 2) if is_empty(values) else 255 * overlay(shown, heat)
        np.testing.assert_array_equal(picture, expected.astype(np.uint8))
    of_class = dict(zip(found.prediction.classes, found.prediction.probabilities))
    assert re.findall('<strong>(.*?)</strong> <data value="(.*?)">', page) == [
        (name, str(of_class[name])) for name in ("blue", "red")]
    assert "the map of layer2 16×16 pixels" in page
    assert "EigenCAM does not look at the class" in demo.explain(
        path, ["blue", "red"], "layer2", "EigenCAM")


def test_a_class_without_evidence_is_said_to_have_none(painted):
    demo, path = Demo([str(painted.folder)]), str(painted.data.test.images.paths[0])
    with torch.no_grad():
        demo.predictor.members[0].model.fc.weight.zero_()
    page = demo.explain(path, ["blue", "red"], "layer3", "GradCAM")
    assert page.count("nothing here speaks for it") == 2
    expected = grey(np.asarray(Image.open(path)).repeat(8, 0).repeat(8, 1)).repeat(3, 2)
    for picture in pictures_in(page):
        np.testing.assert_array_equal(picture, expected)


def test_a_model_without_a_map_gives_its_classes_and_says_why(tiny):
    @MODELS.register()
    def flat(num_classes, in_channels, image_size):
        return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))

    run = train(load_config(tiny, {"MODEL": {"NAME": "flat"}, "TRAIN.EPOCHS": 1}))
    demo = Demo([str(run.folder)])
    assert demo.layers == [] and demo.why_no_map.startswith(
        "Where the model looked is not drawn: no block of the model has a map of 5×5 pixels")
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save("a.png")
    expected = Predictor(run)("a.png").probabilities
    np.testing.assert_array_equal(demo.predict("a.png").probabilities, expected)


def test_several_are_averaged_without_a_map(painted):
    best = painted.checkpoints / "best.pt"
    shutil.copy(best, "other.pt")
    demo, path = Demo([str(painted.folder), "other.pt"]), str(painted.data.test.images.paths[0])
    expected = Predictor([painted, "other.pt"])(path).probabilities
    np.testing.assert_array_equal(demo.predict(path).probabilities, expected)
    assert demo.title == "2 models together" and demo.run is None and not demo.layers
    assert demo.facts[1].startswith("other.pt: resnet18 with")
    assert demo.why_no_map.endswith("averaged over several models")


def test_examples_are_mistakes_first_and_the_files_themselves(painted, tmp_path):
    found, names = painted.predictions, painted.predictions.classes
    examples = write_examples(painted, tmp_path)
    wrong = found.true != found.predicted
    sure = sorted(np.flatnonzero(wrong), key=lambda row: (-found.probabilities[row].max(),
                                                          found.index[row]))[:8]
    assert len(sure) == 8 and len(examples) == 12
    files = [painted.data.test.images.paths[found.index[row]] for row in sure]
    for (path, caption), row, file in zip(examples, sure, files):
        assert caption == f"{names[found.true[row]]} → {names[found.predicted[row]]}"
        assert Path(path).read_bytes() == Path(file).read_bytes()
        assert Demo([str(painted.folder)]).predict(path).label == names[found.predicted[row]]
    assert {caption for _, caption in examples[8:]} <= set(names)


def test_examples_of_arrays_are_written_without_loss(run, tmp_path):
    found = run.predictions
    for path, caption in write_examples(run, tmp_path):
        pixels = np.asarray(Image.open(path))
        places = [place for place, index in enumerate(found.index)
                  if (run.data.test.images[index].squeeze() == pixels).all()]
        assert caption.split(" → ")[0] in {found.classes[found.true[place]] for place in places}


def test_examples_are_not_downloaded(run, tmp_path, monkeypatch):
    asked = []

    def absent(root, train, download):
        asked.append(download)
        raise RuntimeError("Dataset not found or corrupted.")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", absent)
    path = run.folder / "config.yaml"
    path.write_text(path.read_text().replace("NAME: Digits", "NAME: CIFAR10"))
    with pytest.raises(DataError, match="download is false"):
        write_examples(Run(run.folder), tmp_path)
    assert asked == [False]


def uploads(folder):
    """Write pictures that are easily read otherwise, and files that are none; return both."""
    pixels = np.zeros((24, 40, 3), np.uint8)
    pixels[:10, :, 0], pixels[10:, :15, 2], pixels[:, 30:, 1] = 220, 160, 90
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(folder / "turned.jpg", exif=exif)
    opacity = np.repeat(np.arange(0, 240, 6, np.uint8)[None], 24, 0)
    Image.fromarray(np.dstack([pixels, opacity])).save(folder / "clear.png")
    Image.fromarray(pixels).save(folder / "moving.gif", save_all=True,
                                 append_images=[Image.fromarray(255 - pixels)])
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 256).save(folder / "deep.png")
    (folder / "cut.png").write_bytes((folder / "clear.png").read_bytes()[:100])
    (folder / "words.png").write_text("no picture")
    (folder / "nothing.png").touch()
    return (["turned.jpg", "clear.png", "moving.gif"],
            {"deep.png": "pixels, more than 8 bits a channel",
             "cut.png": "cut.png cannot be read as an image: image file is truncated",
             "words.png": "words.png cannot be read as an image: its content is no image",
             "nothing.png": "nothing.png cannot be read as an image: its content is no image"})


def test_what_is_no_picture_is_told_by_its_name_alone(painted, tmp_path):
    demo = Demo([str(painted.folder)])
    for name, problem in {**uploads(tmp_path)[1],
                          "gone.png": "gone.png is not kept any longer: drop it again"}.items():
        with pytest.raises(DataError) as caught:
            demo.predict(str(tmp_path / name))
        said = caught.value.problem
        assert said.startswith(name) and said.endswith(problem) and "DATA." not in str(caught.value)
    with pytest.raises(ConfigError, match="no class dog"):
        demo.explain(str(tmp_path / "turned.jpg"), ["dog", "red"], "layer3", "GradCAM")


@pytest.mark.parametrize("arguments, problem", [
    (["--port", "0"], "--port is 0"), (["--port", "70000"], "--port is 70000"),
    (["--max-mb", "0"], "--max-mb is 0"), (["--host", "203.0.113.9"], "no address of this machine"),
    (["--hots", "a"], "no flag --hots"), (["TRAIN.EPOCHS", "3"], "TRAIN.EPOCHS cannot be changed")])
def test_what_cannot_be_served_is_one_message(painted, tool, arguments, problem):
    pytest.importorskip("gradio")
    code, out, err = tool("demo.py", painted.folder, *arguments)
    assert (code, out) == (2, "") and problem in err and err.startswith("error: ")


def test_a_taken_port_is_one_message(painted, tool):
    pytest.importorskip("gradio")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code, out, err = tool("demo.py", painted.folder, "--port", port)
    assert (code, out, err) == (2, "", f"error: port {port} of 127.0.0.1 cannot be had: "
                                f"{os.strerror(errno.EADDRINUSE)}\n  Another one: --port {port + 1}\n")


def test_without_gradio_it_says_how_to_install_it(painted, tool, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    code, _, err = tool("demo.py", painted.folder)
    assert (code, err) == (2, "error: the page needs Gradio, which is not installed\n"
                           "  pip install \"gradio>=6.31,<7\"\n")


# A process that has this file on its path notes whom it asks for.
LISTENER = """
import os, sys
def note(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        place = arguments[1] if event == "socket.connect" else arguments[0]
        host = place[0] if isinstance(place, tuple) else place
        with open(os.environ["ASKED"], "a") as file:
            file.write(f"{host}\\n")
sys.addaudithook(note)
"""


@contextlib.contextmanager
def served(folder, source, *arguments):
    """Run the tool in a process of its own; yield it, its address and the file of whom it asks."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    (folder / "sitecustomize.py").write_text(LISTENER)
    # As in a terminal: what a shell starts in the background ignores Ctrl-C, and so do its children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tools" / "demo.py"), str(source), "--port", str(port),
         *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "ASKED": str(folder / "asked"),
             "TMPDIR": str(folder), "GRADIO_SHARE": "True", "http_proxy": "http://127.0.0.1:9"})
    signal.signal(signal.SIGINT, before)
    try:
        first = process.stdout.readline()
        assert first == f"Open http://127.0.0.1:{port}\n", first + process.stdout.read()
        yield process, f"http://127.0.0.1:{port}", folder / "asked"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
def test_in_a_browser_a_dropped_file_has_the_probabilities_of_the_predictor(painted, tmp_path):
    """To the last digit, whatever came before, and without a word to any other host."""
    pytest.importorskip("gradio")
    folder = tmp_path / "served"
    folder.mkdir()
    good, bad = uploads(tmp_path)
    (tmp_path / "large.png").write_bytes(bytes(1_100_000))
    predictor = Predictor(painted)
    with served(folder, painted.folder, "--max-mb", "1") as (process, address, asked):
        with Browser(tmp_path / "profile") as browser:
            browser.call("Page.navigate", url=address)
            browser.wait("!!document.querySelector('#picture input[type=file]')")
            assert browser.value("document.title") == f"painted/{painted.folder.name}"
            # One after the other, so that each good one follows a bad one.
            for name in (good[0], *bad, "large.png", *good[1:]):
                browser.upload(tmp_path / name, "#picture input[type=file]")
                if name in good:
                    expected = predictor(tmp_path / name)
                    first = f"{expected.label} {np.float32(expected.probability)!s}"
                    browser.wait(
                        "[...document.querySelectorAll('#classes li')].map(item => "
                        "item.querySelector('span').innerText + ' ' + item.querySelector('data')"
                        f".value)[0] === {first!r} && document.querySelectorAll('#maps img')"
                        ".length === 2")
                    shown = browser.value("[...document.querySelectorAll('#classes data')]"
                                          ".map(item => item.value)")
                    assert shown == [str(np.float32(value)) for _, value in expected.top()]
                else:
                    message = bad.get(name, "exceed the maximum allowed size of 1.0 Mb")
                    browser.wait("[...document.querySelectorAll('.toast-body')].some(item => "
                                 f"item.innerText.includes({message!r}))")
                browser.value("document.querySelector('button[aria-label=\"Remove Image\"]')?.click()")
                browser.wait("!document.querySelector('#classes').innerText")
            browser.value("document.querySelector('#examples button').click()")
            browser.wait("document.querySelectorAll('#maps img').length === 2")
            for label, choice, shown in (
                    ("Layer", "layer2", "the map of layer2 16×16 pixels"),
                    ("Method", "EigenCAM", "EigenCAM does not look at the class"),
                    ("Why this class", "red", "red"), ("Why that one", "red", "red")):
                browser.value(f"document.querySelector('input[aria-label=\"{label}\"]').focus()")
                browser.wait(f"!!document.querySelector('li[aria-label=\"{choice}\"]')")
                browser.value(f"document.querySelector('li[aria-label=\"{choice}\"]').dispatchEvent("
                              "new MouseEvent('mousedown', {bubbles: true}))")
                place = "#maps figure:last-child" if label == "Why that one" else "#maps"
                browser.wait(f"document.querySelector('{place}').innerText.includes({shown!r})")
            strangers = [url for url in browser.requests
                         if not url.startswith((f"{address}/", "data:", f"blob:{address}/"))]
            assert len(browser.requests) > 20 and strangers == []
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with pytest.raises(urllib.error.HTTPError, match="404"):  # past the queue
            opener.open(urllib.request.Request(
                f"{address}/gradio_api/run/look", b'{"data": [null, "layer3", "GradCAM"]}',
                {"Content-Type": "application/json"}))
        left = [path for path in folder.rglob("*") if path.name in good]
        assert len(left) == 3
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130 and process.stdout.read() == ""
        assert not any(path.exists() for path in left)
        hosts = set(asked.read_text().split()) if asked.exists() else set()
        assert hosts <= {"127.0.0.1"}
