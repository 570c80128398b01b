"""Export: masks applied to models, and checkpoints that load without Secateur."""

from secateur.export.apply import Applied, Masked, apply_mask, match_layers, read_mask
from secateur.export.checkpoint import plain_state_dict, save_checkpoint, verify_checkpoint
from secateur.export.pretrained import is_pretrained, save_pretrained

__all__ = [
    "Applied",
    "Masked",
    "apply_mask",
    "is_pretrained",
    "match_layers",
    "plain_state_dict",
    "read_mask",
    "save_checkpoint",
    "save_pretrained",
    "verify_checkpoint",
]
