"""Every program in the README runs as it is printed."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
PROGRAMS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_readme_has_programs():
    assert len(PROGRAMS) == 5


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=["idea", "gibbs", "bounds", "programs", "images"])
def test_a_program_runs_as_printed(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(program, str(README), "exec"), {"__name__": "__main__"})
