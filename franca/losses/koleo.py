"""KoLeo: a regularizer that spreads features, after Sablayrolles et al., *Spreading vectors for similarity search*.

Letters: n samples, d embedding dimensions.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

EPS = 1e-8  # dinov2 koleo_loss.py


def koleo_loss(features: Float[Tensor, "n d"], *, half: bool = False) -> Float[Tensor, ""]:
    """Minus the mean logarithm of the distance from each feature, at unit length, to its nearest neighbor.

        x = [f / max(norm(f), 1e-8) for f in features]
        total = 0
        for i in range(n):
            nearest = max((dot(x[i], x[j]), j) for j in range(n) if j != i)[1]
            total -= log(norm(x[i] - x[nearest] + 1e-8) + 1e-8)
        return total / n

    In float32 or better, where it is finite even for equal features; 0 for fewer than two, which have no neighbor.
    `half` computes in float16, as upstream did: 1e-8 is 0 there, and the loss of equal features is infinite.
    """
    if len(features) < 2:
        return features.new_zeros((), dtype=torch.float32)
    # QUIRK koleo_half: dinov2 koleo_loss.py under its float16 backbone
    dtype = torch.float16 if half else torch.promote_types(features.dtype, torch.float32)
    with torch.autocast(features.device.type, enabled=False):
        x = F.normalize(features.to(dtype), dim=1, eps=EPS)
        with torch.no_grad():
            nearest = (x @ x.T).fill_diagonal_(-2).argmax(1)
        distances = F.pairwise_distance(x, x[nearest], eps=EPS)
        return -(distances + EPS).log().mean().to(torch.promote_types(dtype, torch.float32))


def koleo_loss_in_groups(
    features: Float[Tensor, "n d"], *, images: int, others: Float[Tensor, "m d"] | None, first: int, half: bool = False
) -> Float[Tensor, ""]:
    """The mean of `koleo_loss` over groups of `images` consecutive samples of a batch, of which `features` is a part.

    A part that holds whole groups needs no `others`. One that lies within a group needs the features of all m samples
    of the batch, of which its own start at `first`: its value is that of its group, its gradient such that the mean
    over the batch's parts has the gradient of the mean over its groups.
    """
    n = len(features)
    if n % images == 0:
        return torch.stack([koleo_loss(group, half=half) for group in features.split(images)]).mean()
    assert others is not None
    assert images % n == 0
    begin = first // images * images
    group = torch.cat([others[begin:first], features, others[first + n : begin + images]])
    value = koleo_loss(group, half=half)
    return value.detach() + images // n * (value - value.detach())
