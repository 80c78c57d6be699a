"""Make the API reference, the public names with their docstrings: `python docs/api.py [FOLDER]`.

It goes to build/api unless a folder is named, and needs pdoc: `pip install -e ".[docs]"`.
"""

import sys
from pathlib import Path

import cvkit

try:
    import pdoc
except ImportError:
    sys.exit('pdoc is not installed: pip install -e ".[docs]"')


def main(folder: Path) -> None:
    for name in cvkit.__all__:
        # Names are imported when they are asked for; pdoc only looks at what is there.
        setattr(cvkit, name, getattr(cvkit, name))
    pdoc.render.configure(docformat="google", show_source=False, search=False,
                          footer_text=f"cvkit {cvkit.__version__}")
    pdoc.pdoc("cvkit", output_directory=folder)
    print(folder / "cvkit.html")


if __name__ == "__main__":
    main(Path(*sys.argv[1:2]) if sys.argv[1:] else Path(__file__).parents[1] / "build" / "api")
