import json

from cvkit.registry import WRITERS
from cvkit.writers import JsonLines, read_metrics

RECORD = {"epoch": 1, "lr": 0.1, "train/loss": 2.5, "test/accuracy": 0.25}


def test_jsonl_has_one_object_per_epoch(tmp_path):
    writer = WRITERS.build("jsonl", folder=str(tmp_path))
    for epoch in (1, 2, 3):
        writer.write(epoch, {**RECORD, "epoch": epoch})
    writer.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]
    assert json.loads(lines[0]) == RECORD == read_metrics(tmp_path)[0]


def test_a_line_cut_off_by_a_crash_is_left_out_and_later_epochs_are_dropped(tmp_path):
    writer = JsonLines(str(tmp_path))
    for epoch in (1, 2, 3):
        writer.write(epoch, {**RECORD, "epoch": epoch})
    with writer.path.open("a") as file:
        file.write('{"epoch": 4, "lr"')
    assert len(read_metrics(tmp_path)) == 3
    JsonLines.keep_epochs(tmp_path, 2)
    assert [values["epoch"] for values in read_metrics(tmp_path)] == [1, 2]
    writer.write(3, {**RECORD, "epoch": 3})
    assert len(read_metrics(tmp_path)) == 3


def test_no_file_is_no_epochs(tmp_path):
    assert read_metrics(tmp_path) == []


def test_tensorboard_reads_the_scalars_back(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = WRITERS.build("tensorboard", folder=str(tmp_path))
    for epoch in (1, 2):
        writer.write(epoch, {**RECORD, "epoch": epoch, "train/loss": 3.0 - epoch})
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert sorted(events.Tags()["scalars"]) == ["lr", "test/accuracy", "train/loss"]
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        (1, 2.0), (2, 1.0)]
