"""The stack of decoder layers of a model, found by module types alone."""

from torch import nn

from secateur.core.layer import is_layer, is_mixture


def find_stack(model: nn.Module) -> tuple[str, nn.ModuleList] | None:
    """Find the stack of layers that most of a transformer is.

    It is the torch.nn.ModuleList each of whose elements holds layers, which is in no other such
    list (as the list of a layer's experts is), and which has the most parameters of all of them; of
    equals the first.

    Args:
        model: the network.

    Returns:
        The name and the list; None where the model has none.
    """
    best: tuple[int, str, nn.ModuleList] | None = None
    inner: set[int] = set()
    for name, module in model.named_modules():
        if id(module) in inner or not isinstance(module, nn.ModuleList) or not _is_stack(module):
            continue
        inner.update(id(part) for part in module.modules() if part is not module)
        weights = sum(parameter.numel() for parameter in module.parameters())
        if best is None or weights > best[0]:
            best = (weights, name, module)
    return None if best is None else best[1:]


def _is_stack(modules: nn.ModuleList) -> bool:
    """Say whether a list has elements and each holds layers."""
    return len(modules) > 0 and all(
        any(is_layer(part) or is_mixture(part) for part in element.modules()) for element in modules
    )
