"""`python -m bumblecore_core` imports libraries, not files of the working directory that have their names."""

import subprocess
import sys

TRAPS = ("random", "queue", "pluggy", "pydantic", "click", "yaml", "decimal")


def call(folder, *arguments):
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_files_of_the_working_directory_do_not_hide_libraries(tmp_path):
    for name in TRAPS:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} of the working directory')")
    for module in (("-m", "bumblecore_core"), ("-mbumblecore_core",), ("-u", "-m", "bumblecore_core")):
        assert call(tmp_path, *module, "--version").startswith("bumble ")


def test_a_local_plugin_is_still_found_and_other_programs_keep_their_path(tmp_path):
    (tmp_path / "mine.py").write_text("import helper\n")
    (tmp_path / "helper.py").write_text("print('the helper of mine')\n")
    assert "the helper of mine" in call(
        tmp_path, "-m", "bumblecore_core", "--no-plugins", "-p", "mine", "plugins", "list"
    )
    package = tmp_path / "program"
    package.mkdir()
    (package / "__init__.py").write_text("import bumblecore_core\n")
    (package / "__main__.py").write_text("import os, sys\nprint(sys.path[0] == os.getcwd())\n")
    assert call(tmp_path, "-m", "program", "bumblecore_core") == "True\n"
