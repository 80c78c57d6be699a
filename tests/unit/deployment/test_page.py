import base64
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import BROWSER, opened
from PIL import Image

import cvkit
from cvkit.config import load_config
from cvkit.deployment import page
from cvkit.errors import ConfigError, RunError
from cvkit.reporting.report import write_report
from cvkit.runs.folder import MAY_EVALUATE, Run
from cvkit.runs.trained import Trained
from cvkit.session import train

FP16 = 2e-3  # more than fp16 weights move a probability of these models
RESIZED = 1e-2  # more than the page's own resizing does

@pytest.fixture(scope="session")
def archive():
    """The runtime's archive, kept on this machine between test runs."""
    try:
        return page.fetch_runtime()
    except RunError as error:
        pytest.skip(f"onnxruntime-web cannot be had from npm: {error.problem}")


@pytest.fixture
def runtime(archive, tmp_path):
    """The same, in the cache of the test."""
    target = tmp_path / ".cache" / "cvkit" / archive.name
    target.parent.mkdir(parents=True)
    shutil.copy(archive, target)


def drawn(width, height, seed=0, channels=3):
    """An image of soft spots of colour with some grain."""
    random = np.random.default_rng(seed)
    spots = random.integers(0, 256, (5, 6, channels), dtype=np.uint8)
    soft = Image.fromarray(spots.squeeze()).resize((width, height), Image.Resampling.BICUBIC)
    grain = random.integers(-25, 25, np.asarray(soft).shape)
    return Image.fromarray(np.clip(np.asarray(soft) + grain, 0, 255).astype(np.uint8))


def trained_on(pictures, tiny, **changes):
    """Train for a moment on (class, image) pairs, until probabilities are far from equal."""
    for number, (name, image) in enumerate(pictures):
        folder = Path("pictures", "test" if number < len(pictures) // 3 else "train", name)
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{number}.png")
    return train(load_config(tiny, {
        "DATA.DATASET": {"NAME": "ImageFolder", "root": str(Path("pictures").resolve()),
                         **changes.pop("dataset", {})},
        "DATA.LIMIT": 0, "DATA.TRAIN_TRANSFORMS": [], "TRAIN.EPOCHS": 6, **changes}))


class Visitor:
    """Gives pictures to the page of a run, and compares what it shows with what cvkit says."""

    def __init__(self, tab, run):
        self.tab = tab
        self.predictor = cvkit.Predictor(run, {"DEVICE": "cpu", "TRAIN.PRECISION": "fp32"})

    def ask(self, path, way="choose"):
        """Give a file to the page by one of the ways, and return its line when it is done."""
        self.tab.value("document.getElementById('model-status').textContent = ''")
        if way == "choose":
            self.tab.upload(path.resolve())
        else:
            data = base64.b64encode(path.read_bytes()).decode()
            event = {"drop": "DragEvent('drop', {dataTransfer: given, ",
                     "paste": "ClipboardEvent('paste', {clipboardData: given, "}[way]
            self.tab.value(f"""{{
              const bytes = Uint8Array.from(atob("{data}"), letter => letter.charCodeAt(0));
              const given = new DataTransfer();
              given.items.add(new File([bytes], "{path.name}"));
              document.querySelector("h1").dispatchEvent(
                new {event} bubbles: true, cancelable: true}}));
            }}""")
        return self.tab.wait("(line => /computed in your browser|^No answer/.test(line) && line)"
                             "(document.getElementById('model-status').textContent)")

    def agrees(self, path, bound, way="choose"):
        """Ask about a file, and compare what is shown with what cvkit says of that file."""
        line = self.ask(path, way)
        assert re.fullmatch(rf"{path.name}: computed in your browser in \d+\.\d\d s", line), line
        assert self.tab.value("document.getElementById('model-answer').hidden") is False
        rows = self.tab.value("[...document.querySelectorAll('#model-classes li')].map(row => ["
                            "row.children[0].textContent, Number(row.children[1].value), "
                            "row.children[1].textContent, row.children[2].style.backgroundSize])")
        expected = self.predictor(str(path))
        by_name = dict(zip(expected.classes, expected.probabilities))
        assert len(rows) == min(5, len(by_name))
        assert rows == sorted(rows, key=lambda row: -row[1])
        for name, probability, percent, bar in rows:
            assert abs(probability - by_name[name]) <= bound, (path, expected.top(), rows)
            assert percent == f"{100 * probability:.1f} %"
            assert float(bar.split("%")[0]) == pytest.approx(100 * probability, abs=0.01)
        return rows


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
def test_it_names_pictures_as_cvkit_does_without_a_network(runtime, tiny, tmp_path, draws_only):
    run = trained_on([(f"class {seed % 6}", drawn(32, 32, seed % 6)) for seed in range(36)], tiny,
                     dataset={"background": [250, 20, 120]})
    draws_only("curves")
    write_report(run, with_model=True)
    files = {name: tmp_path / name for name in (
        "same.png", "clear.png", "turned.jpg", "large.jpg", "double.png", "small.png", "wide.png")}
    drawn(32, 32, 1).save(files["same.png"])
    clear = drawn(32, 32, 2)
    clear.putalpha(Image.linear_gradient("L").resize((32, 32)))
    clear.save(files["clear.png"])
    exif = Image.Exif()
    exif[0x0112] = 6
    drawn(160, 90, 3).save(files["turned.jpg"], exif=exif, quality=95)
    for name, size in (("large.jpg", (3000, 2000)), ("double.png", (64, 64)),
                       ("small.png", (20, 17)), ("wide.png", (100, 20))):
        drawn(*size, 4).save(files[name])
    (tmp_path / "broken.png").write_bytes(files["same.png"].read_bytes()[:60])
    with opened(run.folder / "report.html", tmp_path / "profile") as tab:
        visitor = Visitor(tab, run)
        rows = visitor.agrees(files["same.png"], FP16)
        assert rows[0][1] > 0.3  # a sixth would say nothing
        # A picture that cannot be read leaves no answer of another one, and the page lives on.
        assert visitor.ask(tmp_path / "broken.png") == (
            "No answer: this browser cannot read broken.png as a picture. Try another picture.")
        assert tab.value("document.getElementById('model-answer').hidden") is True
        assert visitor.agrees(files["same.png"], FP16, "drop") == rows
        assert visitor.agrees(files["clear.png"], RESIZED, "paste")[0] != rows[0]
        for name in ("turned.jpg", "large.jpg", "double.png", "small.png", "wide.png"):
            visitor.agrees(files[name], RESIZED)
        # Of two at once the later one counts, however long the other takes.
        tab.upload(files["large.jpg"])
        visitor.agrees(files["same.png"], FP16)
        tab.value("new Promise(done => setTimeout(done, 1000))")
        assert tab.value("document.getElementById('model-picture').width") == 32
        assert not [event for event in tab.events if event["method"] in (
            "Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")]
        requests = [event["params"]["request"]["url"].split(":")[0] for event in tab.events
                    if event["method"] == "Network.requestWillBeSent"]
        assert requests.count("file") == 1 and set(requests) == {"file", "data", "blob"}
        # The page itself forbids a network, not this browser alone.
        tab.value("fetch('http://127.0.0.1:9/').catch(() => 0)")
        blocked = [event for event in tab.events if event["method"] == "Log.entryAdded"]
        assert "connect-src 'none'" in blocked[0]["params"]["entry"]["text"]


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
def test_grey_pictures_of_any_size_are_cropped_as_in_the_run(runtime, tiny, tmp_path, draws_only):
    run = trained_on([(f"{seed % 3}", drawn(50 + seed, 40, seed % 3, 1)) for seed in range(18)],
                     tiny, dataset={"channels": 1},
                     **{f"DATA.{part}_TRANSFORMS": [{"NAME": "SmallestMaxSize", "max_size": 36},
                                                    {"NAME": "CenterCrop", "height": 32, "width": 40}]
                        for part in ("TRAIN", "TEST")})
    draws_only("curves")
    write_report(run, with_model=True)
    drawn(63, 41, 1, 1).save(tmp_path / "grey.png")
    drawn(300, 211, 2).save(tmp_path / "coloured.jpg")
    drawn(36, 50).save(tmp_path / "narrow.png")
    with opened(run.folder / "report.html", tmp_path / "profile") as tab:
        visitor = Visitor(tab, run)
        visitor.agrees(tmp_path / "grey.png", RESIZED)
        visitor.agrees(tmp_path / "coloured.jpg", RESIZED)
        assert visitor.ask(tmp_path / "narrow.png") == (
            "No answer: the model takes 40×32 pixels, and this picture comes to 36×50. "
            "Try another picture.")


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
def test_with_a_whole_resnet18_the_file_is_below_40_mb(runtime, tiny, tmp_path, draws_only):
    run = train(load_config(tiny, {"MODEL.width": 64, "DATA.LIMIT": 40, "TRAIN.EPOCHS": 1}))
    draws_only("curves")
    html, readme = write_report(run, with_model=True)
    assert 25e6 < html.stat().st_size < 38e6  # with all pictures 2 MB more
    sentence = (f"resnet18 of 11,173,962 parameters, trained to tell 10 classes apart; "
                f"{100 * run.predictions.accuracy:.2f} % of the test images are named rightly.")
    assert sentence in html.read_text() and sentence in readme.read_text().replace("\\", "")
    image = run.data.test.images[0].squeeze()
    Image.fromarray(image).resize((32, 32)).save(tmp_path / "digit.png")
    with opened(html, tmp_path / "profile") as tab:
        Visitor(tab, run).agrees(tmp_path / "digit.png", FP16)
    # A browser that lacks something says so, and offers nothing.
    with opened(html, tmp_path / "profile", "delete self.DecompressionStream") as tab:
        assert tab.value("document.getElementById('model-status').textContent") == (
            "This browser is too old to run the model: it has no DecompressionStream.")
        assert tab.value("document.getElementById('model-drop').hidden") is True


def steps_of(run, transforms, images=None):
    checkpoint = run.checkpoint()
    if images:
        checkpoint = replace(checkpoint, images=checkpoint.images | images)
    return page._steps(Trained(checkpoint, "best.pt", {"DATA.TEST_TRANSFORMS": transforms}))


def test_the_page_does_the_runs_own_transforms(painted):
    resize = {"name": "Resize", "height": 32, "width": 32}
    crop = {"NAME": "CenterCrop", "height": 32, "width": 32}
    assert steps_of(painted, []) == [resize]
    assert steps_of(painted, [crop]) == [resize, {"name": "CenterCrop", "height": 32, "width": 32}]
    assert steps_of(painted, [{"NAME": "SmallestMaxSize", "max_size": 36}, crop],
                    {"image_size": None})[0] == {"name": "SmallestMaxSize", "max_size": 36}


@pytest.mark.parametrize("transform", [
    {"NAME": "ToGray"}, {"NAME": "Resize", "height": 32, "width": 32, "interpolation": 2},
    {"NAME": "CenterCrop", "height": 32, "width": 32, "pad_if_needed": True},
    {"NAME": "Resize", "height": 32, "width": 32, "p": 0.5}])
def test_other_transforms_are_named_and_refused(painted, transform):
    with pytest.raises(ConfigError, match=f"the page cannot do {transform['NAME']} of TEST_TRANSFORMS"):
        steps_of(painted, [transform])


def test_the_page_says_that_the_model_in_it_takes_one_view_of_several(painted, no_runtime, draws_only):
    draws_only()
    run, words = Run(painted.folder, {"TTA": [{"NAME": "HorizontalFlip"}]}, MAY_EVALUATE), "by the mean of 2 views of each"
    html, _ = write_report(run, with_model=True)
    assert f" % of the test images are named rightly {words}; here a picture is taken as it is." in html.read_text()
    html, _ = write_report(painted, with_model=True)
    assert "named rightly." in html.read_text() and words not in html.read_text()


@pytest.mark.slow
def test_what_fp16_is_too_coarse_for_is_kept_in_fp32(painted, no_runtime, monkeypatch):
    made = page.page_model(painted)
    assert made.precision == "fp16"
    monkeypatch.setitem(page.export.__globals__["BOUNDS"], "fp16", -1)
    whole = page.page_model(painted)
    assert whole.precision == "fp32" and whole.exported.difference < 1e-5
    assert len(whole.files["onnx"]) > 1.3 * len(made.files["onnx"])


def test_without_a_network_the_message_says_which_file_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv("npm_config_registry", f"{(tmp_path / 'registry').as_uri()}/")
    url = (tmp_path / "registry" / "onnxruntime-web" / "-" / page._RUNTIME).as_uri()
    target = tmp_path / ".cache" / "cvkit" / page._RUNTIME
    with pytest.raises(RunError, match="cannot be downloaded: ") as caught:
        page.fetch_runtime()
    assert caught.value.hint == f"Download {url} yourself and put it there: {target}"
    file = tmp_path / "registry" / "onnxruntime-web" / "-" / page._RUNTIME
    file.parent.mkdir(parents=True)
    file.write_bytes(b"another")
    with pytest.raises(RunError, match="its SHA-512 differs"):
        page.fetch_runtime()
    assert not target.exists()
    # It is fetched once, and what is damaged since is fetched again.
    monkeypatch.setattr(page, "_SHA512", page.hashlib.sha512(b"another").hexdigest())
    assert page.fetch_runtime().read_bytes() == b"another"
    target.write_bytes(b"damaged")
    assert page.fetch_runtime().read_bytes() == b"another"
    file.unlink()
    assert page.fetch_runtime() == target


def test_the_model_goes_into_a_report_alone(tool, run):
    code, _, err = tool("visualize.py", "--run", run.folder, "--with-model")
    assert code == 2 and "--with-model goes with --report" in err
