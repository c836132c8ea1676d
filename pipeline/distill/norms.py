"""The norm of a step's gradient: of all of it, by which it is clipped, and by role, which the log tells.

"Oh! We Freeze" (2403.18159) looks at the roles' norms to say which projections to freeze.
"""

import torch
from torch import Tensor

from pipeline.distill.student import Student


def gradient_norms(student: Student) -> tuple[Tensor, dict[str, float]]:
    """Sum the masters' gradients over the processes; their norm, float64, and its part by the weights of each role."""
    processes = student.processes
    mine = {key for key in student.masters if student.split(key)}
    processes.sum_([m.grad for key, m in student.masters.items() if key not in mine])  # type: ignore[misc]
    roles = student.known
    squares = torch.zeros(2 + len(roles), dtype=torch.float64, device=processes.device)  # mine, all's, by role
    for key, master in student.masters.items():
        parts: dict[str, Tensor | None] = student.roles.get(key.removesuffix(".weight"), {})
        by_role = {role: _square(master.grad, rows) for role, rows in parts.items()}
        squares[0 if key in mine else 1] += sum(by_role.values()) if by_role else _square(master.grad, None)
        for role, square in by_role.items():
            squares[2 + roles.index(role)] += square
    if processes.sharded:
        whole = squares[1].clone()
        processes.sum_([squares])
        squares[1] = whole
    norms = {f"gradient_norm.{role}": float(square**0.5) for role, square in zip(roles, squares[2:], strict=True)}
    return squares[:2].sum().sqrt(), norms


def _square(gradient: Tensor | None, rows: Tensor | None) -> Tensor:
    chosen = gradient if rows is None else gradient[rows]  # type: ignore[index]
    return torch.linalg.vector_norm(chosen).double() ** 2
