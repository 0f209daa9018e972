"""What each table and figure of the papers needs: which recipes, on which networks, with which settings.

    python tools/sweep.py --preset afa/table4 --config configs/stanford_dogs120.py

The paper's setting is the config's; a preset says only what varies.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Variant:
    """A recipe with settings in place of the config's, by their dotted names."""

    recipe: str
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def without(self, keys: Container[str]) -> "Variant":
        """The variant without its own settings of these names."""
        return Variant(self.recipe, {key: value for key, value in self.settings.items() if key not in keys})

    @property
    def told(self) -> str:
        """Its settings in a file's name."""
        return ",".join(f"{key}={value}" for key, value in sorted(self.settings.items())).replace("/", "of")


@dataclass(frozen=True)
class Preset:
    """One table or figure.

    Attributes:
      networks: beside the config's own.
      variants: none for the numbers of parameters, which need no run.
      shows: what is made of the runs: a table of them, and figures by their names in `report.figures.KINDS`.
    """

    title: str
    variants: tuple[Variant, ...] = ()
    networks: tuple[str, ...] = ()
    shows: tuple[str, ...] = ("table",)


def _all(*recipes: str, **settings: Any) -> tuple[Variant, ...]:
    return tuple(Variant(recipe, {**_RATES.get(recipe, {}), **settings}) for recipe in recipes)


def _each(key: str, values: tuple[Any, ...], *recipes: str) -> tuple[Variant, ...]:
    return tuple(Variant(recipe, {key: value}) for value in values for recipe in recipes)


# AFA §5.2: LwF and Soft fine-tuning have a rate of their own.
_RATES = {"lwf": {"learning_rate": 0.001}, "soft_ft": {"learning_rate": 0.001}}
_OFTEN = 250
"""Steps between the points of a curve, of 9,000."""
_THREE = ("inception_v3_no_aux", "mobilenet_v2")
_TWO = ("inception_v3_no_aux",)
GRID = (1e-4, 1e-3, 0.01, 0.1, 0.2)
"""The values among which both papers choose alpha, and DELTA beta too (DELTA §4.2)."""

PRESETS: dict[str, Preset] = {
    "afa/table3": Preset(
        "AFA Table 3: the compared methods",
        _all("l2", "l2_fe", "l2_sp", "lwf", "soft_ft", "delta", "afa"),
        _THREE,
    ),
    "afa/table4": Preset("AFA Table 4: with and without attention", _all("dfa", "ast", "act", "afa")),
    "afa/table5": Preset("AFA Table 5: DELTA, AST and ACT", _all("delta", "ast", "act"), _THREE),
    "afa/table6": Preset("AFA Table 6: numbers of parameters", networks=("inception_v3", "mobilenet_v2")),
    "afa/table7": Preset("AFA Table 7: one stage or two", _all("afa_one_stage", "afa")),
    "afa/table8": Preset("AFA Table 8: the order of the stages", _all("afa_reversed", "afa")),
    "afa/table9": Preset("AFA Table 9: fixed attention", _all("delta", "afa_fixed_attention", "afa")),
    "afa/table10": Preset("AFA Table 10: the same teacher in stage II", _all("afa_keep_teacher", "afa")),
    "afa/table11": Preset(
        "AFA Table 11: the number of attentive modules",
        _each("taps", (4, 8, 12), "afa"),
        shows=("table", "attentive_modules"),
    ),
    "afa/table12": Preset(
        "AFA Table 12: verification of near-infrared faces",
        # Soft fine-tuning has a rate of its own here (AFA §6.2).
        (*_all("l2", "l2_fe", "l2_sp", "lwf"), Variant("soft_ft", {"learning_rate": 1e-4}), *_all("delta", "afa")),
        ("lresnet34e_ir",),
        shows=("table", "roc"),
    ),
    "afa/fig3": Preset(
        "AFA Fig. 3: loss curves", _all("dfa", "delta", "ast", "act", "afa", eval_every=_OFTEN), shows=("curves",)
    ),
    "afa/fig4": Preset(
        "AFA Fig. 4: top-1 against labelled images a class",
        _each("data.per_class", (10, 20, 30, 40, 50, 60), "delta", "ast", "act", "afa"),
        shows=("table", "images_a_class"),
    ),
    "afa/fig5": Preset(
        "AFA Fig. 5: loss curves of one stage and two",
        _all("afa_one_stage", "afa", eval_every=_OFTEN),
        shows=("curves",),
    ),
    "delta/table1": Preset(
        "DELTA Table 1: the compared methods", _all("l2_fe", "l2", "l2_sp", "l2_sp_att", "dfa", "delta"), _TWO
    ),
    "delta/table2": Preset(
        "DELTA Table 2: with better augmentation",
        _all("l2", "l2_sp", "l2_sp_att", "delta", **{"data.augmentation": "improved"}),
        _TWO,
    ),
    "delta/fig3": Preset(
        "DELTA Fig. 3: learning curves by rate schedule",
        tuple(
            Variant(recipe, {"schedule": schedule, "eval_every": _OFTEN})
            for schedule in ("step", "exponential")
            for recipe in ("l2_sp", "delta")
        ),
        shows=("schedules",),
    ),
    "delta/fig4": Preset(
        "DELTA Fig. 4: top-1 by alpha and beta",
        tuple(
            Variant("delta", {"methods.delta.alpha": alpha, "methods.delta.beta": beta})
            for alpha in GRID
            for beta in GRID
        ),
        shows=("alpha_beta",),
    ),
}
