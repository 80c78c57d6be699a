from cvkit.log import Log, Progress


def test_the_log_file_is_clean_and_has_what_came_before_it(tmp_path, capsys):
    log = Log()
    log.both("first")
    log.attach(tmp_path)
    log.show("on the screen only")
    log.write("in the file only")
    assert (tmp_path / "train.log").read_text() == "first\nin the file only\n"
    assert capsys.readouterr().out == "first\non the screen only\n"


def test_the_bar_reads_as_users_know_it(capsys):
    bar = Progress("Train", 2, is_shown=True)
    for _ in range(2):
        if bar.step():
            bar.update(1.25, 0.5)
    bar.close()
    assert "Train: Loss=1.2500 Accuracy=50.00 2/2 [00:0" in capsys.readouterr().out


def test_no_bar_where_output_is_no_terminal(capsys):
    bar = Progress("Train", 1, is_shown=Log().is_live)
    assert bar.step()
    bar.update(1.0, 1.0)
    bar.close()
    assert capsys.readouterr() == ("", "")
