"""Between block problems and dimod, the language of D-Wave's Ocean and of many other samplers."""

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from secateur.core.errors import SecateurError
from secateur.core.extras import need
from secateur.core.names import position
from secateur.core.qubo import Qubo

EXTRA = "quantum"


def bqm_of(qubo: Qubo) -> Any:
    """Write a binary quadratic form as dimod's binary quadratic model.

    Args:
        qubo: the form.

    Returns:
        A `dimod.BinaryQuadraticModel` over the binary variables 0 ... n-1, of the same energies.
    """
    model = need("dimod", EXTRA).BinaryQuadraticModel("BINARY")
    model.add_linear_from_array(qubo.matrix.diagonal().numpy())
    model.add_quadratic_from_dense(qubo.matrix.triu(1).numpy())
    model.offset = qubo.offset
    return model


def cqm_of(qubo: Qubo, groups: Int[Tensor, " n"], counts: Int[Tensor, " g"]) -> Any:
    """Write a binary quadratic form with counts as dimod's constrained quadratic model.

    Args:
        qubo: the objective.
        groups: the group of each variable.
        counts: how many ones each group has.

    Returns:
        A `dimod.ConstrainedQuadraticModel` over the binary variables 0 ... n-1, with an
        equation ``"group g"`` for each group that has members.
    """
    model = need("dimod", EXTRA).ConstrainedQuadraticModel.from_bqm(bqm_of(qubo))
    for group in groups.unique().tolist():
        terms = [(i, 1) for i in torch.nonzero(groups == group).flatten().tolist()]
        model.add_constraint_from_iterable(terms, "==", rhs=int(counts[group]), label=f"group {group}")
    return model


def read_sampleset(sampleset: Any, size: int) -> Bool[Tensor, "m n"]:
    """Take the assignments out of dimod's sample set.

    Args:
        sampleset: a `dimod.SampleSet`, of binary variables or spins (+1 means 1), labelled 0 ...
            n-1 or x0 ... x(n-1), in any order.
        size: n.

    Returns:
        One assignment a row, in the order of the samples.

    Raises:
        SecateurError: it is no sample set, or its variables are not those of the problem.
    """
    try:
        labels, values = list(sampleset.variables), sampleset.record.sample
    except AttributeError as error:
        raise SecateurError(
            "a dimod.SampleSet is needed, such as a sampler's `sample` gives, not "
            f"{type(sampleset).__name__}."
        ) from error
    columns = [position(label, size) for label in labels]
    if sorted(columns) != list(range(size)):
        raise SecateurError(
            f"the sample set holds {len(labels)} variables and the problem {size}: it is the answer to "
            "another problem."
        )
    reads = torch.zeros(len(values), size, dtype=torch.bool)
    reads[:, columns] = torch.from_numpy(values > 0.5)
    return reads
