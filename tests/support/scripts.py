"""Scripts as modules, so that tests call their functions."""

import importlib.util
from types import ModuleType

from tests.support.places import SCRIPTS


def load_script(name: str) -> ModuleType:
    """The module `scripts/NAME.py`, executed anew."""
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
