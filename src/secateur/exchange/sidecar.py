"""The side-car: a JSON file beside a problem file, for what the format itself cannot hold."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from secateur.core.errors import SecateurError
from secateur.core.problem import BlockProblem

FORMAT, VERSION = "secateur block problem", 1
_ABOUT = (
    "minimise constant + linear.x + 1/2 x'Bx over binary x with sum(x over group g) = counts[g]; "
    "objective + penalty * sum_g (sum(x over g) - counts[g])^2 = scale * (value of the file) + offset"
)


@dataclass(frozen=True, eq=False)
class SideCar:
    """What a problem file leaves out.

    Attributes:
        groups: the group of each variable.
        counts: how many ones each group has.
        incumbent: a feasible assignment.
        constant: c, in the unit of the loss.
        scale: what the file's value is multiplied with; negative where the file is maximised.
        offset: what is then added, to give objective and penalty.
        penalty: P, where the file holds a penalty for the counts; else None.
        convex: what the problem says of its B.
        indices: the flat positions of the weights, by layer, in the order of the variables;
            None where the problem is no block of a network, or nobody said.
        sha256: of the problem file, once it is written.
    """

    groups: Int[Tensor, " n"]
    counts: Int[Tensor, " g"]
    incumbent: Bool[Tensor, " n"]
    constant: float
    scale: float
    offset: float
    penalty: float | None = None
    convex: bool | None = None
    indices: Mapping[str, Int[Tensor, " m"]] | None = None
    sha256: str = ""

    @classmethod
    def of(
        cls,
        problem: BlockProblem,
        scale: float,
        offset: float,
        penalty: float | None,
        indices: Mapping[str, Tensor] | None,
    ) -> "SideCar":
        """Describe a problem.

        Args:
            problem: the problem.
            scale: what the file's value is multiplied with.
            offset: what is then added.
            penalty: P, where the file holds a penalty.
            indices: the flat positions of the weights, by layer.

        Returns:
            The side-car.

        Raises:
            SecateurError: there are not as many positions as variables.
        """
        named = problem.size if indices is None else sum(index.numel() for index in indices.values())
        if named != problem.size:
            raise SecateurError(
                f"the indices name {named} weights, but the problem has {problem.size} variables: give the "
                "positions of the same block."
            )
        groups, counts, incumbent = (t.cpu() for t in (problem.groups, problem.counts, problem.incumbent))
        return cls(
            groups, counts, incumbent, problem.constant, scale, offset, penalty, problem.convex, indices
        )

    def dumps(self, file: str, sha256: str) -> str:
        """Write JSON.

        Args:
            file: the name of the problem file.
            sha256: the digest of its content.

        Returns:
            The text.
        """
        indices = self.indices
        content = {
            "format": FORMAT,
            "version": VERSION,
            "about": _ABOUT,
            "file": file,
            "sha256": sha256,
            "sense": "maximise" if self.scale < 0 else "minimise",
            "variables": self.groups.numel(),
            "constant": self.constant,
            "scale": self.scale,
            "offset": self.offset,
            "penalty": self.penalty,
            "convex": self.convex,
            "counts": self.counts.tolist(),
            "groups": self.groups.tolist(),
            "incumbent": self.incumbent.int().tolist(),
            "indices": None if indices is None else {name: index.tolist() for name, index in indices.items()},
        }
        # A line for each entry: whole for machines, and short enough to look at.
        return "{\n" + ",\n".join(f'"{key}": {json.dumps(value)}' for key, value in content.items()) + "\n}\n"

    @classmethod
    def read(cls, problem_path: Path) -> "SideCar | None":
        """Read the side-car of a problem file.

        Args:
            problem_path: the problem file.

        Returns:
            The side-car; None where there is none.

        Raises:
            SecateurError: it is damaged, or another file's.
        """
        path = beside(problem_path)
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.get("format") != FORMAT:
                raise SecateurError(
                    f"{path} is no side-car of a problem file: put the one beside {problem_path.name} that "
                    "was written with it."
                )
            if content["version"] > VERSION:
                raise SecateurError(f"{path} was written by a later version of Secateur: update Secateur.")
            if Path(content["file"]).suffix != problem_path.suffix:
                raise SecateurError(
                    f"{path} is the side-car of {content['file']}, not of {problem_path.name}: write each "
                    "file under a name of its own."
                )
            return cls._from(content)
        except (OSError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise SecateurError(
                f"{path}, the side-car of {problem_path.name}, is damaged ({type(error).__name__}: {error}): "
                "take both files from a copy, or write them again."
            ) from error

    @classmethod
    def _from(cls, content: Mapping[str, Any]) -> "SideCar":
        """Take a side-car out of what its JSON holds, and see that it agrees with itself."""
        groups = torch.tensor(content["groups"], dtype=torch.int64)
        counts = torch.tensor(content["counts"], dtype=torch.int64)
        incumbent = torch.tensor(content["incumbent"], dtype=torch.int64)
        if not len(groups) == len(incumbent) == content["variables"]:
            raise ValueError("groups, incumbent and variables are of different lengths")
        if not bool(((incumbent == 0) | (incumbent == 1)).all()) or bool((groups < 0).any()):
            raise ValueError("the incumbent is not 0 and 1, or a group is negative")
        if not torch.equal(torch.bincount(groups[incumbent == 1], minlength=len(counts)), counts):
            raise ValueError("the incumbent does not have the counts")
        scale, offset = float(content["scale"]), float(content["offset"])
        if not (math.isfinite(scale) and math.isfinite(offset) and scale):
            raise ValueError("scale or offset is not a number to work with")
        if (scale < 0) != (content["sense"] == "maximise") or float(content["penalty"] or 0) < 0:
            raise ValueError("the scale has the wrong sign, or the penalty is negative")
        indices = content["indices"]
        return cls(
            groups,
            counts,
            incumbent.bool(),
            float(content["constant"]),
            scale,
            offset,
            None if content["penalty"] is None else float(content["penalty"]),
            content["convex"],
            None if indices is None else {n: torch.tensor(i, dtype=torch.int64) for n, i in indices.items()},
            str(content["sha256"]),
        )


def digest(path: Path) -> str:
    """Sum a file up.

    Args:
        path: the file.

    Returns:
        SHA-256 of its content.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_free(path: Path) -> None:
    """Refuse to write a side-car in the place of something else.

    Args:
        path: the problem file to be written.

    Raises:
        SecateurError: a file of the side-car's name is there, and is not this problem file's.
    """
    car = beside(path)
    if not car.exists():
        return
    try:
        content = json.loads(car.read_text(encoding="utf-8"))
        ours = content.get("format") == FORMAT and content["file"] == path.name
    except (OSError, LookupError, TypeError, ValueError, AttributeError):
        ours = False
    if not ours:
        raise SecateurError(
            f"{car} is there already, and is not the side-car of {path.name}: give the problem another name."
        )


def beside(path: Path) -> Path:
    """Name the side-car of a problem file.

    Args:
        path: the problem file.

    Returns:
        The same name with the suffix .json.
    """
    return path.with_suffix(".json")
