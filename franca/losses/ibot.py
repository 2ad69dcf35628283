"""The loss on masked patches: cross-entropy between the teacher's assignments and the student's logits.

Letters: m masked patches of all images, k prototypes.
"""

from jaxtyping import Float
from torch import Tensor

from franca.losses.dino import cross_entropy


def ibot_loss(
    student: Float[Tensor, "m k"],
    teacher: Float[Tensor, "m k"],
    weights: Float[Tensor, "m"],
    *,
    temperature: float,
    images: int,
) -> Float[Tensor, ""]:
    """The mean over `images` global crops, masked or not, of the mean cross-entropy over an image's masked patches.

    `weights` holds, for each masked patch, one over the number of masked patches of its image.

        total = 0
        for i in range(m):
            log_p = log_softmax(student[i] / temperature)
            total -= weights[i] * sum(teacher[i, j] * log_p[j] for j in range(k))
        return total / images
    """
    return (cross_entropy(student, teacher, temperature=temperature) * weights).sum() / images
