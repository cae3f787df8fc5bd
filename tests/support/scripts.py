"""Scripts of an example as modules, without their names becoming global."""

from __future__ import annotations

import functools
import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

EXAMPLES = Path(__file__).parents[2] / "examples"


@functools.cache
def load_scripts(folder: str) -> SimpleNamespace:
    """Every script of a folder of ``examples``, each an attribute: ``load_scripts("dide").data``.

    Scripts import each other by bare names, such as ``data``. Those names exist while the scripts
    are imported; then the modules are kept as ``dide.data``, and ``import data`` fails again.
    """
    path = EXAMPLES / folder
    names = sorted(script.stem for script in path.glob("*.py"))
    hidden = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.path.insert(0, str(path))
    try:
        return SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(str(path))
        for name in names:
            if name in sys.modules:
                sys.modules[f"{folder}.{name}"] = sys.modules.pop(name)
        sys.modules.update(hidden)
