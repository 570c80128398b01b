"""Export: masks applied to models, and checkpoints that load without Secateur."""

from secateur.export.apply import Applied, Masked, apply_mask, match_layers, read_mask
from secateur.export.checkpoint import plain_state_dict, save_checkpoint, verify_checkpoint

__all__ = [
    "Applied",
    "Masked",
    "apply_mask",
    "match_layers",
    "plain_state_dict",
    "read_mask",
    "save_checkpoint",
    "verify_checkpoint",
]
