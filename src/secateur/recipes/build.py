"""Enters every part into the registry: those that come with Secateur, and those of plug-ins."""

# Imported for what they register; named here so that the import contract sees them.
import secateur.allocation  # noqa: F401
import secateur.curvature  # noqa: F401
import secateur.models  # noqa: F401
import secateur.pruners  # noqa: F401
import secateur.scores  # noqa: F401
import secateur.selection  # noqa: F401
import secateur.solvers  # noqa: F401
import secateur.tasks  # noqa: F401
from secateur.core.registry import load_plugins


def register_parts() -> None:
    """Load the plug-ins; Secateur's own parts were entered when this module was imported."""
    load_plugins()
