"""The API reference that docs/api.py makes."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT

import cvkit


@pytest.mark.slow
def test_the_reference_holds_every_public_name_and_its_docstring(tmp_path):
    pytest.importorskip("pdoc", reason='pdoc makes the reference: pip install -e ".[dev]"')
    done = subprocess.run([sys.executable, ROOT / "docs/api.py", "reference"],
                          capture_output=True, text=True)
    assert done.returncode == 0 and "does not resolve" not in done.stderr, done.stderr
    page = (tmp_path / done.stdout.strip()).read_text(encoding="utf-8")
    sections = dict(re.findall(r'<section id="(\w+)">(.*?)</section>', page, re.DOTALL))
    assert sections.keys() == set(cvkit.__all__)
    for name, section in sections.items():
        if callable(getattr(cvkit, name)):
            assert 'class="docstring"' in section, name


def test_without_pdoc_the_command_says_what_to_install():
    code = f"""
import runpy, sys
sys.modules["pdoc"] = None
runpy.run_path({str(ROOT / "docs/api.py")!r}, run_name="__main__")"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == 'pdoc is not installed: pip install -e ".[docs]"\n'
