import re
from dataclasses import replace

import numpy as np
import pytest
from test_drawing import png_of, shown_pixels

from cvkit.config import Config
from cvkit.errors import ConfigError
from cvkit.registry import VISUALIZERS
from cvkit.visualizers.misclassified import misclassified, select_errors


def errors_of(predictions):
    return np.flatnonzero(predictions.true != predictions.predicted)


def shown(figure):
    """Return the images of a gallery as they were given to matplotlib."""
    return [axes.images[0].get_array() for axes in figure.axes if axes.images]


def titles(figure):
    return [axes.get_title() for axes in figure.axes if axes.images]


def test_the_gallery_shows_the_data_set_s_images_at_the_places_in_predictions(painted):
    predictions, test = painted.predictions, painted.data.test
    wrong = errors_of(predictions)
    assert len(wrong) >= 8
    figure = painted.visualize("misclassified", count=len(wrong), order="index")
    assert figure.caption.startswith(f"{len(wrong)} misclassified test images")
    axes = [axis for axis in figure.axes if axis.images]
    assert len(axes) == len(wrong)  # all of them: the first is not skipped
    names = predictions.classes
    drawn = png_of(figure)
    for axis, row in zip(axes, wrong, strict=True):
        image = test.images[predictions.index[row]]
        assert np.array_equal(axis.images[0].get_array(), image)
        assert (shown_pixels(drawn, axis, 32, 32) == image).all()
        true, predicted = names[predictions.true[row]], names[predictions.predicted[row]]
        assert axis.get_title().startswith(f"{true} → {predicted}\n(")


def test_the_most_confident_come_first(painted):
    predictions = painted.predictions
    rows = select_errors(predictions, 5, "confidence", None, None, 0)
    confidence = predictions.probabilities.max(1)
    wrong = errors_of(predictions)
    assert confidence[rows].tolist() == sorted(confidence[wrong], reverse=True)[:5]
    figure = painted.visualize("misclassified", count=5)
    for image, row in zip(shown(figure), rows, strict=True):
        assert np.array_equal(image, painted.data.test.images[predictions.index[row]])
    assert f"({confidence[rows[0]]:.0%})".replace("%", " %") in titles(figure)[0]


ANY_LETTER = frozenset(range(0x110000))  # as if a font with all of them were installed


def check_titles(figure):
    """Assert that titles lie beside each other and beside images, and within the picture."""
    boxes = [axes.title.get_window_extent() for axes in figure.axes if axes.get_title()]
    boxes += [axes.get_window_extent() for axes in figure.axes if axes.images]
    boxes += [text.get_window_extent() for text in figure.texts]
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[number + 1:])
        assert box.x0 >= -1 and box.x1 <= figure.bbox.width + 1


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("count", [1, 2, 5, 10])
@pytest.mark.parametrize("names", [
    ["n02123045 tabby_cat 16", "long-haired dachshund 13", "Staffordshire_bullterrier_and_more"],
    ["W" * 60, "長毛の犬" * 15, "Staffordshire bullterrier, Staffordshire bull terrier, of a breed"]])
def test_long_names_do_not_run_into_each_other(painted, monkeypatch, names, count):
    monkeypatch.setattr("cvkit.visualizers.drawing._letters", lambda: ANY_LETTER)
    predictions = replace(painted.predictions, classes=names)
    figure = misclassified(predictions, painted.data, count=count)
    check_titles(figure)


def test_names_that_no_font_can_draw_are_numbers_with_a_legend_in_the_txt(painted):
    names = ["\U00012000" * 3, "green", "\U00012001"]
    figure = misclassified(replace(painted.predictions, classes=names), painted.data, count=12)
    words = {word for title in titles(figure) for word in title.split("\n")[0].split(" → ")}
    assert {"class 0", "class 2"} <= words <= {"class 0", "green", "class 2"}
    assert figure.caption.endswith("they are numbers here, and names in the .txt.")
    assert figure.table.splitlines()[-2:] == [f"class 0: {names[0]}", f"class 2: {names[2]}"]


def test_random_order_depends_on_the_seed_alone(painted):
    draws = [select_errors(painted.predictions, 6, "random", None, None, seed).tolist()
             for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert set(draws[2]) <= set(errors_of(painted.predictions))


@pytest.mark.parametrize("true, predicted", [("cat", None), (None, "ox"), ("cat", "dog")])
def test_one_true_class_one_predicted_class_or_one_pair(true, predicted, run):
    labels = np.arange(60)
    predictions = replace(run.predictions, index=labels, true=labels % 3, predicted=labels // 20,
                          probabilities=np.eye(3, dtype=np.float32)[labels // 20],
                          classes=["cat", "dog", "ox"])
    rows = select_errors(predictions, 100, "index", true, predicted, 0)
    names = np.asarray(predictions.classes)
    expected = [row for row in range(60) if predictions.true[row] != predictions.predicted[row]
                and true in (None, names[predictions.true[row]])
                and predicted in (None, names[predictions.predicted[row]])]
    assert rows.tolist() == expected and expected


def test_fewer_than_asked_for_is_said_and_none_is_said(painted):
    wrong = errors_of(painted.predictions)
    figure = painted.visualize("misclassified", count=500)
    assert len(shown(figure)) == len(wrong)
    assert figure.caption.startswith(f"All {len(wrong)} misclassified test images") and (
        "500 were asked for" in figure.caption)
    predictions = painted.predictions
    replace(predictions, predicted=predictions.true).save(painted.folder / "predictions.npz")
    figure = painted.visualize("misclassified", true_class="red")
    assert figure.caption == "No test image of class red was misclassified; 36 of 36 are right"
    assert figure.texts[0].get_text().replace("\n", " ") == figure.caption
    assert painted.visualize("cam").caption == "No test image was misclassified; 36 of 36 are right"


@pytest.mark.parametrize("arguments, problem", [
    ({"count": 0}, "count is 1 or more, not 0"), ({"count": -3}, "count is 1 or more, not -3"),
    ({"count": "ten"}, "count of visualizer misclassified takes int, not 'ten'"),
    ({"order": "confident"}, "Did you mean confidence?"),
    ({"true_class": "rad"}, "no class named 'rad'\n  Did you mean red?"),
    ({"cuont": 3}, "Did you mean count?")])
def test_what_cannot_be_is_refused(painted, arguments, problem):
    with pytest.raises(ConfigError) as caught:
        painted.visualize("misclassified", **arguments)
    assert problem in str(caught.value)


def test_classes_that_are_numbers_can_be_named_as_numbers(run):
    by_number, by_word = (select_errors(run.predictions, 50, "index", name, None, 0)
                          for name in (3, "3"))
    assert by_number.tolist() == by_word.tolist()
    assert (run.predictions.true[by_number] == 3).all()
    named = replace(run.predictions, classes=[f"{number}.0" for number in range(9)] + ["1.50"])
    config = Config({"NAME": "misclassified", "true_class": 3.0})
    VISUALIZERS.check(config)
    assert select_errors(named, 50, "index", config.true_class, None, 0).tolist() == by_word.tolist()
    with pytest.raises(ConfigError, match=re.escape("no class named '1.5'\n  Put it in quotes, as it is written: "
                                                    '"1.50".')):
        select_errors(named, 50, "index", 1.5, None, 0)
    with pytest.raises(ConfigError, match="as it is written: \"3\""):
        select_errors(run.predictions, 50, "index", 3.0, None, 0)


def test_the_table_says_which_image_each_is(painted, run):
    figure = painted.visualize("misclassified", count=4)
    rows = select_errors(painted.predictions, 4, "confidence", None, None, 0)
    for line, row in zip(figure.table.splitlines(), rows, strict=True):
        path = line.split()[-1]
        true = painted.predictions.classes[painted.predictions.true[row]]
        assert f"/test/{true}/" in path and f" {true} → " in line
        index = painted.predictions.index[row]
        assert painted.data.test.images.paths[index] == path
    line = run.visualize("misclassified", count=1).table
    row, = select_errors(run.predictions, 1, "confidence", None, None, 0)
    assert line.split()[-1] == str(run.predictions.index[row])
