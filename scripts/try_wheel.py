"""Build the sdist and the wheel; the wheel alone, in an empty environment beside torch, runs the README's example.

    python scripts/try_wheel.py [--keep FOLDER]

Needs the package `build`. Ends with status 1 if a step fails, after its output.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, folder: Path = ROOT) -> str:
    """Run a command in `folder` and return what it printed; its output and status 1 if it fails."""
    done = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def readme_example() -> str:
    """Return the first Python example of the README."""
    found = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert found, "README.md has no Python example"
    return found[1]


def main() -> None:
    """Build, install, run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", type=Path, help="where the sdist and the wheel are left; else nowhere")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        built = (options.keep or folder / "dist").resolve()
        run(sys.executable, "-m", "build", "--outdir", built, ROOT)
        (wheel,), (sdist,) = sorted(built.glob("*.whl")), sorted(built.glob("*.tar.gz"))
        venv.create(folder / "venv", with_pip=True)
        python = folder / "venv" / "bin" / "python"
        quiet = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", ROOT / "constraints.txt")
        run(python, *quiet, "torch", "numpy")
        run(python, *quiet, wheel)
        (folder / "example.py").write_text(readme_example())
        printed = run(python, "-I", "example.py", folder=folder)
        run(python, "-I", "-m", "tritongru", "info", folder=folder)
        print(f"{wheel.name} and {sdist.name} build; the wheel alone runs the README's example: {printed.strip()}")


if __name__ == "__main__":
    main()
