import pytest

from cvkit.cli import run_tool
from cvkit.errors import ConfigError, UserError, raise_together
from cvkit.system.text import in_columns, plural, suggest


def test_message_has_place_problem_and_hint():
    error = ConfigError("no model named 'x'", where="a.yaml:3 MODEL.NAME", hint="Did you mean y?")
    assert str(error) == "a.yaml:3 MODEL.NAME: no model named 'x'\n  Did you mean y?"


@pytest.mark.parametrize("name, nearest", [
    ("resnet81", "resnet18"), ("RESNET18", "resnet18"), ("resnet-34", "resnet34")])
def test_suggest_names_the_nearest_first(name, nearest):
    text = suggest(name, ["alexnet", "resnet34", "resnet18"])
    assert text == f"Did you mean {nearest}? Allowed: alexnet, resnet34, resnet18."


def test_suggest_does_not_guess_wildly_and_keeps_long_lists_short():
    text = suggest("zebra", [f"model{number}" for number in range(40)])
    assert "Did you mean" not in text
    assert text.endswith("and 28 more.")


def test_a_word_that_fills_the_screen_is_shortened_in_its_middle():
    text = str(ConfigError(f"unknown key {'key' * 5000}", hint="Did you mean KEY?"))
    assert text.startswith("unknown key keykey") and "…" in text and len(text) < 300
    assert text.endswith("\n  Did you mean KEY?")


@pytest.mark.parametrize("count, word, expected", [
    (1, "epoch", "1 epoch"), (2, "epoch", "2 epochs"), (0, "image", "0 images"),
    (1, "class", "1 class"), (10, "class", "10 classes"), (1563, "batch", "1,563 batches"),
    (2, "worker process", "2 worker processes")])
def test_one_is_singular(count, word, expected):
    assert plural(count, word) == expected


def test_problems_are_raised_as_one_message():
    raise_together([])
    with pytest.raises(ConfigError) as caught:
        raise_together([ConfigError("first"), ConfigError("second")])
    assert str(caught.value) == "2 problems\nfirst\nsecond"
    with pytest.raises(ConfigError) as caught:
        raise_together([ConfigError(f"problem {number}") for number in range(18)])
    lines = str(caught.value).splitlines()
    assert lines == ["18 problems", *(f"problem {number}" for number in range(10)), "… and 8 more"]


def test_run_tool_turns_user_errors_into_a_message_and_code_2(capsys):
    def main():
        raise UserError("nothing there", hint="put something there")

    with pytest.raises(SystemExit) as caught:
        run_tool(main)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: nothing there\n  put something there\n"


def test_run_tool_lets_bugs_through():
    with pytest.raises(ZeroDivisionError):
        run_tool(lambda: 1 / 0)


def test_cells_stand_below_each_other_whatever_their_length():
    assert in_columns([("class", "images", "name"), (7, 1234567, "cat"), ["alone"], (12, 5, "")],
                      ">", ">6") == ["class   images  name", "    7  1234567  cat", "alone", "   12        5"]
    assert in_columns([], ">8") == []
