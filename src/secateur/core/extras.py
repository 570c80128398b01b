"""Packages that only some people need: imported where they are used."""

from importlib import import_module
from types import ModuleType

from secateur.core.errors import SecateurError


def need(module: str, extra: str | None) -> ModuleType:
    """Import a module of an optional package.

    Args:
        module: its dotted name.
        extra: the extra of Secateur that brings it; None where none does.

    Returns:
        The module.

    Raises:
        SecateurError: it is not installed; the sentence says how to install it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        remedy = f"pip install 'secateur[{extra}]'" if extra else "install it first"
        raise SecateurError(
            f"this needs {module.partition('.')[0]}, which cannot be imported ({error}): {remedy}."
        ) from error
