"""L3: the losses of the first line against their closed form: what random weights must show of heads and temperatures.

No reference is needed: prototypes, bottleneck, levels, temperatures, crops and masks decide the values to a percent or
better, and each of them, where it is not what the configuration says, moves a loss beyond its limits.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from franca.closed_form import Beginning, FirstLoss, first_losses, make_beginning
from franca.config import Head, Heads
from reproduce.checks import Check, quote
from reproduce.layers.configuration import known_recipe, load_recipe
from reproduce.lineage import History

STUDENT_TEMPERATURE = 0.1  # not configurable: dinov2 dino_clstoken_loss.py, Franca mrl_dino_loss.py@24f8c60
HIDDEN, LAYERS = 2048, 3  # dinov2 ssl_default_config.yaml, where a log does not say
NESTED = (16, 8, 4, 2, 1)  # the embedding's parts that Franca's levels see, ssl_meta_arch.py@24f8c60

FIRST_LOSSES = Check(
    id="first-losses",
    layer="L3",
    title="Losses of random weights",
    state="unknown",
    finding="",
    value=None,
    limit=1.0,
    unit="of the distance to the limit",
    iteration=None,
    evidence=(),
    says="Prototypes, bottlenecks, levels, temperatures, crops and masks are those of the run's own configuration.",
    cannot_say="Anything of KoLeo, or of what acts only through training.",
)


def check_beginning(mine: History) -> Check:
    """The line of iteration 0 against the closed form of the run's own recipe."""
    records = mine.lineage.records
    if not records or records[0].iteration:
        return dataclasses.replace(FIRST_LOSSES, finding="The log does not begin at iteration 0.")
    recipe = load_recipe(mine)
    beginning = make_beginning(recipe) if recipe else _known_beginning(mine)
    if beginning is None:
        finding = "The run does not begin with random weights." if recipe else "The heads or crops are not known."
        return dataclasses.replace(FIRST_LOSSES, finding=finding)
    expected = first_losses(beginning)
    found = {metric: records[0].values[metric] for metric in expected if metric in records[0].values}
    if not found:
        return dataclasses.replace(FIRST_LOSSES, finding="The first line holds none of the losses.")
    distances = {metric: _distance(value, expected[metric]) for metric, value in found.items()}
    worst = max(distances, key=distances.__getitem__)
    check = dataclasses.replace(FIRST_LOSSES, value=distances[worst], state="pass")
    if distances[worst] <= 1:
        listed = ", ".join(f"{metric} {found[metric]:.4f} ({expected[metric].value:.4f})" for metric in found)
        return dataclasses.replace(check, finding=f"As random weights have it, closed form in brackets: {listed}.")
    limits = expected[worst]
    finding = (
        f"{worst} begins at {found[worst]:.4f}; under the run's configuration random weights have "
        f"{limits.value:.4f}, within {limits.low:.4f} to {limits.high:.4f}."
    )
    evidence = quote(mine, 0, metric=worst)
    return dataclasses.replace(check, state="fail", finding=finding, iteration=0, evidence=evidence)


def _distance(value: float, limits: FirstLoss) -> float:
    """How far a loss is from its closed form: 1 at a limit. Infinite for a loss that is not finite."""
    side = limits.high if value > limits.value else limits.low
    distance = (value - limits.value) / (side - limits.value)
    return distance if distance == distance else float("inf")


def _known_beginning(history: History) -> Beginning | None:
    """What a DINOv2 or Franca log says of its beginning; None where it does not say enough."""
    known = known_recipe(history)
    dino = _known_head(known, "dino")
    ibot = _known_head(known, "ibot") or dino  # one head for both, unless the log has two
    crops, masked = known.get("crops.local_number"), known.get("masking.sample_probability")
    teacher, centering = known.get("teacher.temperature_start"), known.get("losses.centering")
    dim = known.get("model.embed_dim") or 0
    if dino is None or ibot is None or not crops or not teacher or masked is None or centering is None:
        return None
    nested = isinstance(logged := (history.head.config or {}).get("dino"), Mapping) and bool(logged.get("MRL"))
    if nested and not dim:
        return None
    return Beginning(
        heads=Heads(dino, ibot, tuple(dim // part for part in NESTED) if nested else ()),
        embed_dim=dim,
        local_crops=crops,
        masked=0.0 if known.get("losses.ibot_weight") == 0 else masked,
        student_temperature=STUDENT_TEMPERATURE,
        teacher_temperature=teacher,
        centering=centering,
        normalized=not nested,
        full_input=nested,
    )


def _known_head(known: Mapping[str, Any], name: str) -> Head | None:
    prototypes, bottleneck = (known.get(f"heads.{name}.{key}") for key in ("prototypes", "bottleneck"))
    if not prototypes or not bottleneck:
        return None
    hidden, layers = known.get(f"heads.{name}.hidden", HIDDEN), known.get(f"heads.{name}.layers", LAYERS)
    return Head(prototypes, hidden, bottleneck, layers)
