"""From the text that the user types to the functions of a model file."""

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from autopart.errors import ModelError
from autopart.runtime.models.user_code import user_code
from autopart.zoo.catalogue import zoo_source
from autopart.zoo.source import ModelSource

_PREFIX = "autopart_model_"
_SPELLINGS = "write model.py, model.py:function, package.module:function or zoo:NAME"


def load_model(text: str) -> ModelSource:
    """Load the model that `text` names.

    `text` is ``model.py``, ``path.py:function``, ``package.module:function`` or ``zoo:gpt2-tiny``.
    The default function is ``build_model``. ``example_inputs``, ``example_target`` and ``loss_fn``
    come from the same module. Raises ModelError where the file, module or function does not exist,
    or where the file raises while it is imported.
    """
    if text.startswith("zoo:"):
        return zoo_source(text.removeprefix("zoo:"))
    where, colon, function = text.rpartition(":") if not os.path.exists(text) else (text, "", "")
    if not colon:
        where, function = text, "build_model"
    if not where or not function.isidentifier():
        raise ModelError(f"'{text}' names no model; {_SPELLINGS}")
    is_path = where.endswith(".py") or "/" in where or os.path.exists(where)
    if not is_path and not colon:
        raise ModelError(f"{where}: there is no such file; {_SPELLINGS}")
    module = _import_file(Path(where)) if is_path else _import_module(where)
    return _source(text, where, module, function)


def _source(text: str, where: str, module: ModuleType, builder: str) -> ModelSource:
    build_model = _function(module, where, builder, "()")
    if build_model is None:
        defined = [name for name, value in vars(module).items() if _is_own_function(value, module)]
        known = f"it defines {', '.join(defined)}" if defined else "it defines no function"
        raise ModelError(f"{where}: there is no {builder}() in it ({known}); try {where}:FUNCTION")
    example_inputs = _function(module, where, "example_inputs", "(microbatch_size)")
    if example_inputs is None:
        raise ModelError(
            f"{where}: there is no example_inputs(microbatch_size) in it; define it to return the "
            "model's inputs for one microbatch as a tuple or a dict of tensors"
        )
    example_target = _function(module, where, "example_target", "(microbatch_size)")
    loss_fn = _function(module, where, "loss_fn", "(output, target)")
    if example_target is not None and loss_fn is None:
        raise ModelError(
            f"{where}: it defines example_target but no loss_fn(output, target) that would use it"
        )
    plan = _tp_plan(module, where)
    return ModelSource(text, build_model, example_inputs, example_target, loss_fn, plan)


def _tp_plan(module: ModuleType, where: str) -> Mapping[str, str] | None:
    found = getattr(module, "tp_plan", None)
    if found is None:
        return None
    if not isinstance(found, dict) or not all(
        isinstance(text, str) for of in found.items() for text in of
    ):
        raise ModelError(
            f"{where}: tp_plan is no dict of texts; map patterns of parameter names to styles, such as "
            '{"blocks.*.up": "colwise"}'
        )
    return cast("Mapping[str, str]", found)


def _function(module: ModuleType, where: str, name: str, call: str) -> Callable[..., Any] | None:
    found = getattr(module, name, None)
    if found is not None and not callable(found):
        kind = type(found).__name__
        raise ModelError(f"{where}: {name} is of type {kind}; define it as a function {name}{call}")
    return found


def _is_own_function(value: object, module: ModuleType) -> bool:
    return callable(value) and getattr(value, "__module__", None) == module.__name__


def _import_file(path: Path) -> ModuleType:
    """Run a Python file as a module of its own. A failed import leaves nothing behind."""
    # os.path, unlike Path, takes a name that no file may have for a missing file.
    if not os.path.exists(path):
        raise ModelError(f"{path}: there is no such file; {_SPELLINGS}")
    if path.suffix != ".py" or not path.is_file():
        raise ModelError(f"{path}: it is not a Python file; {_SPELLINGS}")
    path = path.resolve()
    name = f"{_PREFIX}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, "a .py file always has a loader"
    module = importlib.util.module_from_spec(spec)
    _forget_namesakes(path.parent)
    with _siblings_importable(path.parent), user_code(f"{path.name}: importing it"):
        sys.modules[name] = module  # dataclasses and pickle look their module up by name
        spec.loader.exec_module(module)
    return module


def _import_module(name: str) -> ModuleType:
    with _siblings_importable(Path.cwd()), user_code(f"{name}: importing it"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
            raise ModelError(f"{name}: there is no module '{error.name}'; {_SPELLINGS}") from None


@contextmanager
def _siblings_importable(directory: Path) -> Generator[None]:
    """Put `directory` first on the import path, as ``python model.py`` does.

    Afterwards the directory stands last, so that imports inside the user's functions still work.
    After a failure the directory and its modules are removed again.
    """
    before = set(sys.modules)
    had = str(directory) in sys.path
    sys.path.insert(0, str(directory))
    importlib.invalidate_caches()
    try:
        yield
    except BaseException:
        for name in set(sys.modules) - before:
            if _file_of(name).is_relative_to(directory):
                del sys.modules[name]
        sys.path.remove(str(directory))
        raise
    sys.path.remove(str(directory))
    if not had:
        sys.path.append(str(directory))


def _forget_namesakes(directory: Path) -> None:
    """Forget modules beside an earlier model file that would hide files beside this one.

    Without this, `layers.py` in an earlier directory would be imported in place of the one here.
    """
    earlier = {_file_of(name).parent for name in sys.modules if name.startswith(_PREFIX)} - {
        directory
    }
    for name in list(sys.modules):
        top = name.partition(".")[0]
        ours = (directory / f"{top}.py").exists() or (directory / top / "__init__.py").exists()
        if ours and any(_file_of(name).is_relative_to(folder) for folder in earlier):
            del sys.modules[name]


def _file_of(module_name: str) -> Path:
    return Path(getattr(sys.modules.get(module_name), "__file__", None) or "<none>")
