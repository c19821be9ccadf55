"""Finds the app that `MODULE:ATTR` names, or says what is wrong with it."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
import traceback
from collections.abc import Iterable
from types import ModuleType

import click

from ..app import App
from ..core.suggest import did_you_mean


def load_app(target: str) -> App:
    """Imports the app; the current directory comes first on the path.

    Arguments: `target`, as "shop:app" or "shop.workflows:app". Raises click.UsageError, which says what to change.
    """
    module_name, colon, attribute = target.partition(":")
    if not (module_name and colon and attribute):
        example = f"{module_name.removesuffix('.py').strip('./').replace('/', '.') or 'shop'}:app"
        raise click.UsageError(f"{target!r} is not MODULE:ATTR: write it like {example!r}")
    if module_name.endswith(".py") or "/" in module_name:
        wanted = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise click.UsageError(f"{module_name!r} is a file, not a module: write {f'{wanted}:{attribute}'!r}")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    return _find(_import(module_name), attribute)


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name == missing or name.startswith(f"{missing}."):
            hint = did_you_mean(missing, _modules(missing))
            raise click.UsageError(
                f"there is no module {missing!r} in {os.getcwd()} or on the Python path{hint}"
            ) from None
        raise click.UsageError(
            f"the module {name!r} imports {missing!r}, which is not installed in {sys.prefix}"
        ) from None
    except (Exception, SystemExit):
        raise click.UsageError(f"the module {name!r} failed while it was imported:\n{_users_traceback()}") from None


def _users_traceback() -> str:
    """The exception's traceback without the frames of this file and of importlib."""
    kind, error, trace = sys.exc_info()
    frames = [f for f in traceback.extract_tb(trace) if f.filename != __file__ and "importlib" not in f.filename]
    return "".join([*traceback.format_list(frames), *traceback.format_exception_only(kind, error)]).rstrip()


def _find(module: ModuleType, attribute: str) -> App:
    apps = [name for name, value in vars(module).items() if isinstance(value, App)]
    found: object = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise click.UsageError(f"the module {module.__name__!r} has no {attribute!r}{_hint(attribute, apps)}")
        found = getattr(found, part)
    if not isinstance(found, App):
        raise click.UsageError(
            f"{module.__name__}:{attribute} is a {type(found).__name__}, not a shardflow.App{_hint(attribute, apps)}"
        )
    return found


def _hint(word: str, apps: Iterable[str]) -> str:
    names = list(apps)
    return did_you_mean(word, names) or (f" (it has: {', '.join(names)})" if names else " (it has no App at all)")


def _modules(name: str) -> list[str]:
    """Modules beside the one that is missing: in its package, or in the current directory."""
    package, _, _ = name.rpartition(".")
    if not package:
        return [found.name for found in pkgutil.iter_modules([os.getcwd()])]
    parent = sys.modules.get(package)
    return [f"{package}.{found.name}" for found in pkgutil.iter_modules(getattr(parent, "__path__", []))]
