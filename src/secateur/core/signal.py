"""What a pass over a batch can record."""

from enum import Enum, auto


class Signal(Enum):
    """What a pass can record."""

    INPUTS = auto()  # the layers' inputs; asked for alone, they cost no backward pass
    MOMENTS = auto()  # sums over the layers' inputs; likewise
    GRADIENT = auto()  # the mean gradient of the loss
    LOSS_ROWS = auto()  # output gradients of each sample's loss
    SAMPLED_ROWS = auto()  # output gradients for labels drawn from the model
    GAUSS_NEWTON_ROWS = auto()  # pullbacks of the factors of the loss's output Hessian
    HESSIAN = auto()  # double backward
