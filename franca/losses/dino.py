"""The loss on class tokens: cross-entropy between the teacher's assignments and the student's logits.

Letters: v views of a sample, n samples, k prototypes.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def dino_loss(
    student: Float[Tensor, "*v n k"], teacher: Float[Tensor, "n k"], *, temperature: float
) -> Float[Tensor, ""]:
    """The mean cross-entropy of the student's logits under the teacher's probabilities, over samples and views.

        total = 0
        for view in student:
            for i in range(n):
                log_p = log_softmax(view[i] / temperature)
                total -= sum(teacher[i, j] * log_p[j] for j in range(k))
        return total / (v * n)

    Cross-entropy is linear in the teacher: the mean over two teacher views is the loss under their mean.
    """
    return cross_entropy(student, teacher, temperature=temperature).mean()


def cross_entropy(
    student: Float[Tensor, "*v n k"], teacher: Float[Tensor, "n k"], *, temperature: float
) -> Float[Tensor, "*v n"]:
    """Of each row: -sum(teacher[j] * log_softmax(student / temperature)[j] for j in range(k)), in float32 or better."""
    wide = torch.promote_types(student.dtype, torch.float32)
    return -(teacher * (student.to(wide) / temperature).log_softmax(-1)).sum(-1)
