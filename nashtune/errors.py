"""One error class per boundary. Every message names the field or file, the value received and what is accepted."""


class NashtuneError(Exception):
    """Base of all errors that are the user's to act on; the command line prints them without a traceback."""


class RecipeError(NashtuneError):
    """The recipe cannot be used: an unknown key, a bad value, or settings that contradict each other."""


class PromptError(NashtuneError):
    """A prompt source cannot be read, or a row of it is bad (names file and line)."""


class ModelError(NashtuneError):
    """A model or tokenizer cannot be loaded, or its architecture is not supported by the engine asked for."""


class SamplingError(NashtuneError):
    """An engine could not produce the samples asked of it."""


class OracleError(NashtuneError):
    """The oracle cannot judge at all (bad endpoint, wrong key). A single unusable reply is a Judgment, not this."""


class BudgetError(NashtuneError):
    """A paid call would go over the budget at worst; nothing was sent. The run goes on once the cap is raised."""


class PairError(NashtuneError):
    """No pairs could be built where training needs some; says why each prompt gave nothing."""


class TrainingError(NashtuneError):
    """Training stopped: non-finite numbers, or a reference that does not match the policy."""


class StoreError(NashtuneError):
    """A file of the run folder is missing, damaged, or not what its record says."""


class RunLockedError(NashtuneError):
    """Another live process works on this run folder."""


class DriftError(NashtuneError):
    """The recipe or an input changed under a run in a way that would change its results; fork instead."""


class GameError(NashtuneError):
    """A matrix game, an algorithm for it or a setting of one cannot be used."""


class EvaluationError(NashtuneError):
    """An evaluation's data or results cannot be used."""


class PlanError(NashtuneError):
    """A plan was asked for machines or figures that make no sense, or that nothing is known of."""
