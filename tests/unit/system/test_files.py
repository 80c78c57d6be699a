import os
import sys

import pytest

from cvkit.system.files import write_whole


def test_a_file_that_windows_keeps_for_a_moment_is_waited_for(tmp_path, monkeypatch):
    """A virus scanner has it open, or another process reads a checkpoint."""
    path, tries, replace = tmp_path / "last.pt", [], os.replace

    def refused_twice(old, new):
        tries.append(new)
        if len(tries) < 3:
            raise PermissionError(13, "Access is denied")
        replace(old, new)

    write_whole(path, "before")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(os, "replace", refused_twice)
    monkeypatch.setattr(sys, "platform", "win32")
    write_whole(path, "after")
    assert path.read_text() == "after" and len(tries) == 3
    monkeypatch.setattr(sys, "platform", "linux")
    tries.clear()
    with pytest.raises(Exception, match="cannot write .*Access is denied"):
        write_whole(path, "later")
    assert path.read_text() == "after" and len(tries) == 1
    assert [each.name for each in tmp_path.iterdir() if each.is_file()] == ["last.pt"]
