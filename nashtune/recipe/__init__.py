"""The recipe: everything a run is decided by, in one YAML file.

Each field carries its meaning and unit as the docstring under it. Unknown keys are refused. Fields marked *neutral* may
change when a run is resumed (they change speed or display, not results); all others are identity.
"""

from nashtune.recipe.base import ADDED, NEUTRAL, Rate, Section, identity, uncounted
from nashtune.recipe.cluster import EvaluationScale, RaySection
from nashtune.recipe.engine import EngineSection, PriceSection
from nashtune.recipe.evaluation import (
    SUITE_SECTIONS,
    AlpacaEvalSection,
    ArenaHardSection,
    HarnessSection,
    IfBenchSection,
    IfEvalSection,
    InstructionSection,
    MtBenchSection,
    SuiteSection,
    SuiteSettings,
)
from nashtune.recipe.evaluation_file import EvaluationFile
from nashtune.recipe.harness import OPEN_LLM, HarnessTask
from nashtune.recipe.hosted import Asking, HostedSection, HostedVllm
from nashtune.recipe.launch import LaunchSection
from nashtune.recipe.loading import load_oracle, load_recipe, parse_evaluation, parse_recipe
from nashtune.recipe.methods import METHODS, Method
from nashtune.recipe.objectives import Objective, ObjectiveSection, objective_section
from nashtune.recipe.oracles import (
    CascadeOracle,
    CompactOracle,
    Guard,
    Oracle,
    PairwiseOracle,
    PanelMember,
    PanelOracle,
    PeopleOracle,
    PreferenceModelOracle,
    RewardModelOracle,
    RubricOracle,
    RulesOracle,
    ScriptedOracle,
    SelfOracle,
)
from nashtune.recipe.prompts import ContaminationSection, DedupeSection, PromptsSection, ValidationSplit
from nashtune.recipe.recipe import Recipe
from nashtune.recipe.sections import (
    BudgetSection,
    DefectsSection,
    HealthSection,
    LoraSection,
    PairsSection,
    PolicySection,
    ReplaySection,
    SamplingSection,
    ScaleSection,
    TrainSection,
    ValidateSection,
)
from nashtune.recipe.teachers import BestOfN, ColumnTeacher, NoTeacher, RemoteTeacher, ScriptedTeacher, Teacher
from nashtune.recipe.vllm import VllmProcessSection, VllmSection

__all__ = [
    "ADDED",
    "METHODS",
    "NEUTRAL",
    "OPEN_LLM",
    "SUITE_SECTIONS",
    "AlpacaEvalSection",
    "ArenaHardSection",
    "Asking",
    "BestOfN",
    "BudgetSection",
    "CascadeOracle",
    "ColumnTeacher",
    "CompactOracle",
    "ContaminationSection",
    "DedupeSection",
    "DefectsSection",
    "EngineSection",
    "EvaluationFile",
    "EvaluationScale",
    "Guard",
    "HarnessSection",
    "HarnessTask",
    "HealthSection",
    "HostedSection",
    "HostedVllm",
    "IfBenchSection",
    "IfEvalSection",
    "InstructionSection",
    "LaunchSection",
    "LoraSection",
    "Method",
    "MtBenchSection",
    "NoTeacher",
    "Objective",
    "ObjectiveSection",
    "Oracle",
    "PairsSection",
    "PairwiseOracle",
    "PanelMember",
    "PanelOracle",
    "PeopleOracle",
    "PolicySection",
    "PreferenceModelOracle",
    "PriceSection",
    "PromptsSection",
    "Rate",
    "RaySection",
    "Recipe",
    "RemoteTeacher",
    "ReplaySection",
    "RewardModelOracle",
    "RubricOracle",
    "RulesOracle",
    "SamplingSection",
    "ScaleSection",
    "ScriptedOracle",
    "ScriptedTeacher",
    "Section",
    "SelfOracle",
    "SuiteSection",
    "SuiteSettings",
    "Teacher",
    "TrainSection",
    "ValidateSection",
    "ValidationSplit",
    "VllmProcessSection",
    "VllmSection",
    "identity",
    "load_oracle",
    "load_recipe",
    "objective_section",
    "parse_evaluation",
    "parse_recipe",
    "uncounted",
]
