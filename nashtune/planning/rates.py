"""How long one engine takes for a unit, and a group of GPUs for training: on a GPU type, or on machines like this one."""

from __future__ import annotations

from typing import Protocol

from nashtune.errors import PlanError
from nashtune.planning.cluster import Cluster
from nashtune.planning.figures import Figure
from nashtune.planning.hardware import Gpu, sampling_rate, training_rate
from nashtune.planning.measured import Measured
from nashtune.planning.policy_size import Size
from nashtune.planning.simulate import Training
from nashtune.planning.times import Times
from nashtune.recipe import Recipe

ENGINE_START = 120.0
"""Seconds until a vLLM engine, or a training group, is up, weights not counted."""
READ_RATE = 1e9
"""Bytes/s at which one machine reads or writes weights."""
UNIT_OVERHEAD = 1.0
"""Seconds a unit takes beyond its tokens: fetched, encoded, committed."""
SPREAD = 0.25
"""Sigma of a unit's log-normal time."""
WITHIN, BETWEEN = 300e9, 50e9
"""Bytes/s that a GPU exchanges inside its node (NVLink), and with other nodes (400 Gb/s each)."""
IN_MEMORY = 0.8
"""Share of a GPU's memory that weights and their training state may take; activations and caches need the rest."""
RECOMPUTE = 4 / 3
"""Training with recomputed activations over training without: a second forward pass of three passes' FLOPs."""


class Rates(Protocol):
    """Seconds of one engine, and what they rest on."""

    start: float
    """From an engine's process being asked for until it can load a model."""
    first_start: float
    """As much of that as the run waits for in its first stage."""
    load_sampler: float
    load_scorer: float
    spread: float
    anew: bool
    """Engines are made anew, and load, for each stage: their GPUs are given back between stages."""
    figures: list[Figure]

    def unit(self, prompts: int, n: int, models: int) -> float:
        """Drawing ``n`` answers to each prompt of a unit."""
        ...

    def scoring(self, prompts: int, n: int) -> float:
        """Log-probs of a unit's answers."""
        ...

    def candidate(self, judge_is_local_model: bool) -> float:
        """A judge that computes here, for one answer."""
        ...

    def judge_start(self, judge_is_local_model: bool) -> float:
        """Before such a judge's first answer, in each stage."""
        ...

    def training(self, name: str, pairs: float, pair_tokens: float, references: int) -> Training:
        """``pairs`` new and replayed ones, in every epoch of the recipe."""
        ...

    def step(self, pair_tokens: float) -> tuple[float, float]:
        """Seconds of an optimizer step: computing, and exchanging weights behind it."""
        ...


class HereRates:
    """Machines like this one, by a calibration. Training is one process on one machine, whatever the nodes."""

    spread = 0.0
    anew = False

    def __init__(self, recipe: Recipe, times: Times):
        self.recipe, self.times = recipe, times
        self.load_sampler, self.load_scorer = times.load_sampler, times.load_scorer
        self.start, self.first_start, self.trainer = 0.0, 0.0, 0.0
        how = f"calibration on {times.machine}"
        full = recipe.sampling.unit_prompts
        named = (
            (f"a unit of {full} prompts", self.unit(full, recipe.sampling.k, 1), "s"),
            ("loading a sampler", times.load_sampler, "s"),
            ("training a pair", times.train_pair, "s"),
            ("reference log-probs of a pair", times.reference_pair, "s"),
            ("loading and saving around training", times.train_fixed, "s"),
            ("scoring an answer", times.score, "s"),
        )
        self.figures = [Figure(name, value, unit, "measured", how) for name, value, unit in named]
        if times.judge is not None:
            self.figures.append(Figure("judging a candidate", times.judge, "s", "measured", how))
            self.figures.append(Figure("opening the judge", times.load_judge, "s", "measured", how))
        self.figures += self._start()

    def _start(self) -> list[Figure]:
        start = self.times.start
        if start is None:
            name = "starting processes and loading libraries"
            return [Figure(name, 0.0, "s", "assumed", "not measured by this calibration; --calibrate measures it")]
        self.start, self.first_start, self.trainer = start.worker, start.crew, start.trainer
        how = "a rehearsal here, with as many workers as scale.workers"
        named = (
            ("until the run's first stage", start.run),
            ("from then until all workers could load a model", start.crew),
            ("replacing a worker, until it could load a model", start.worker),
            ("libraries of the first training", start.trainer),
        )
        return [Figure(name, value, "s", "measured", how) for name, value in named]

    def unit(self, prompts: int, n: int, models: int) -> float:
        return models * self.times.unit(prompts, n)

    def scoring(self, prompts: int, n: int) -> float:
        return prompts * n * self.times.score

    def candidate(self, judge_is_local_model: bool) -> float:
        return self.times.judge or 0.0

    def judge_start(self, judge_is_local_model: bool) -> float:
        return self.times.load_judge

    def training(self, name: str, pairs: float, pair_tokens: float, references: int) -> Training:
        times, train = self.times, self.recipe.train
        seconds = pairs * (references * times.reference_pair + train.epochs * times.train_pair)
        interval = train.checkpoint_steps * train.batch_size * times.train_pair
        # What was measured does not part loading from saving: a failure pays for both.
        load, checkpoint, nodes = times.train_fixed, 0.0, 1
        seconds += references * times.load_scorer if self.recipe.scale.references_by_workers else 0.0
        again = self.start + self.trainer + load  # in a new process
        return Training(name, seconds, load, 0.0, interval or 1.0, checkpoint, nodes, self.trainer, again)

    def step(self, pair_tokens: float) -> tuple[float, float]:
        return self.recipe.train.batch_size * self.times.train_pair, 0.0


class RunRates:
    """Machines like the one that an earlier run of this recipe ran on, by its stage records: what they say of starting workers
    and loading models stands apart from the rates, else it is in them. Training's is in its rate."""

    load_scorer = spread = 0.0
    anew = False

    def __init__(self, recipe: Recipe, measured: Measured, answer_tokens: float):
        if measured.sampling_rate is None or measured.training_rate is None:
            raise PlanError(f"{measured.source} has not sampled and trained yet; accepted: --calibrate, or --gpu TYPE")
        self.recipe, self.measured, self.answer_tokens = recipe, measured, answer_tokens
        loading = measured.loading
        rate = measured.sampling_rate if loading is None else loading.rate
        self.tokens, self.trained = rate / recipe.scale.workers, measured.training_rate
        self.load_sampler = loading.load if loading else 0.0
        self.start = self.first_start = loading.start if loading else 0.0
        self.figures = [
            Figure("sampling with one worker", self.tokens, "tokens/s", "measured", measured.source),
            Figure("training", self.trained, "tokens/s", "measured", measured.source),
            *self._loading(),
        ]

    def _loading(self) -> list[Figure]:
        source = self.measured.source
        if self.measured.loading is None:
            how = f"{source} recorded no seconds before first units: what they took is in its rates"
            return [Figure("starting workers and loading a sampler", 0.0, "s", "assumed", how)]
        how = f"{source}, before a stage's first unit"
        return [
            Figure("loading a sampler", self.load_sampler, "s", "measured", how),
            Figure(
                "starting workers", self.start, "s", "measured", f"{how}: the run's first stage over the later ones"
            ),
        ]

    def unit(self, prompts: int, n: int, models: int) -> float:
        return models * prompts * n * self.answer_tokens / self.tokens

    def scoring(self, prompts: int, n: int) -> float:
        rate = self.measured.scoring_rate
        return prompts * n * self.recipe.scale.workers / rate if rate else 0.0

    def candidate(self, judge_is_local_model: bool) -> float:
        return 0.0

    def judge_start(self, judge_is_local_model: bool) -> float:
        return 0.0

    def training(self, name: str, pairs: float, pair_tokens: float, references: int) -> Training:
        """The rate is of the whole stage, references included."""
        train = self.recipe.train
        interval = train.checkpoint_steps * train.batch_size * pair_tokens / self.trained
        return Training(name, pairs * train.epochs * pair_tokens / self.trained, 0.0, 0.0, interval, 0.0, 1)

    def step(self, pair_tokens: float) -> tuple[float, float]:
        return self.recipe.train.batch_size * pair_tokens / self.trained, 0.0


class GpuRates:
    """GPUs of one type, by published rates, given ones, or a calibration on that type."""

    def __init__(
        self, recipe: Recipe, cluster: Cluster, gpu: Gpu, size: Size, answer: float, prompt: float, times: Times | None
    ):
        self.recipe, self.cluster, self.gpu = recipe, cluster, gpu
        self.parameters, self.answer_tokens, self.prompt_tokens = size.parameters, answer, prompt
        self.engine_gpus = engine_gpus(recipe)
        self.train_gpus = cluster.train_gpus or cluster.total_gpus
        self.train_nodes = -(-self.train_gpus // (cluster.gpus or 1))
        self.spread, self.anew = SPREAD, True
        sampling = sampling_rate(gpu, size.parameters, cluster.sampling_rate)
        training = training_rate(gpu, size.parameters, cluster.training_rate)
        if times is not None and gpu.name.split("-")[0] in times.machine:
            sampling, training = _calibrated(recipe, times, sampling, training, cluster)
        self.tokens, self.trained = sampling.value, training.value
        weights = 2 * size.parameters / READ_RATE
        self.start = self.first_start = ENGINE_START
        self.load_sampler = self.load_scorer = weights
        self.figures = [size.figure, sampling, training, *self._assumed(weights)]
        self._refuse_what_does_not_fit()

    def _assumed(self, weights: float) -> list[Figure]:
        exchange = self._exchange()
        kind = "LoRA: gathered twice" if self.recipe.train.lora else "gathered twice in bf16, gradients reduced in fp32"
        span = "between nodes, 400 Gb/s" if self.train_nodes > 1 else "within a node, NVLink"
        return [
            Figure("starting an engine or training process", ENGINE_START, "s", "assumed", "in each stage, and after a failure"),
            Figure("loading an engine", weights, "s", "derived", f"bf16 weights read at {READ_RATE / 1e9:g} GB/s (assumed)"),
            Figure("a unit beyond its tokens", UNIT_OVERHEAD, "s", "assumed", "fetched, encoded, committed"),
            Figure("spread of units' times", SPREAD, "(sigma of a log-normal)", "assumed", "answers differ in length"),
            Figure(
                "least time of an optimizer step", exchange, "s", "derived",
                f"FSDP2 exchanges all weights ({kind}) at {self._bandwidth() / 1e9:.0f} GB/s a GPU (assumed: {span}), behind "
                "which it computes; an update takes the longer of both",
            ),
            Figure("writing a checkpoint", self._checkpoint(), "s", "derived", "weights and moments at 1 GB/s a node (assumed)"),
            Figure(
                "pairs of a batch on the busiest GPU", self._pairs_each(), "pairs", "derived",
                f"train.batch_size {self.recipe.train.batch_size} over {self.train_gpus} training GPUs; a pair is not divided",
            ),
        ]  # fmt: skip

    def unit(self, prompts: int, n: int, models: int) -> float:
        return UNIT_OVERHEAD + models * prompts * n * self.answer_tokens / (self.tokens * self.engine_gpus)

    def scoring(self, prompts: int, n: int) -> float:
        """A forward pass alone: a third of training's FLOPs."""
        tokens = prompts * (self.prompt_tokens + n * self.answer_tokens)
        return UNIT_OVERHEAD + tokens / (3 * self.trained * self.engine_gpus)

    def candidate(self, judge_is_local_model: bool) -> float:
        """As large as the policy: a forward pass over prompt and answer."""
        if not judge_is_local_model:
            return 0.0
        return (self.prompt_tokens + self.answer_tokens) / (3 * self.trained * self.engine_gpus)

    def judge_start(self, judge_is_local_model: bool) -> float:
        return ENGINE_START + self.load_sampler if judge_is_local_model else 0.0

    def training(self, name: str, pairs: float, pair_tokens: float, references: int) -> Training:
        train = self.recipe.train
        step = max(self.step(pair_tokens))
        forward = references * pairs * pair_tokens / (3 * self.trained * self.train_gpus)
        seconds = forward + train.epochs * pairs / train.batch_size * step
        load = 4 * self.parameters / READ_RATE
        save = (2 if train.save_dtype == "bfloat16" else 4) * self.parameters / READ_RATE
        interval = train.checkpoint_steps * step
        return Training(name, seconds, load, save, interval, self._checkpoint(), self.train_nodes, ENGINE_START)

    def step(self, pair_tokens: float) -> tuple[float, float]:
        each = self.trained / (RECOMPUTE if self.recipe.train.gradient_checkpointing else 1)
        return self._pairs_each() * pair_tokens / each, self._exchange()

    def _pairs_each(self) -> int:
        return -(-self.recipe.train.batch_size // self.train_gpus)

    def _bandwidth(self) -> float:
        return BETWEEN if self.train_nodes > 1 else WITHIN

    def _exchange(self) -> float:
        if self.train_gpus == 1:
            return 0.0
        return (4 if self.recipe.train.lora else 8) * self.parameters / self._bandwidth()

    def _checkpoint(self) -> float:
        if self.recipe.train.lora:
            return 1.0
        moments = 2 if self.recipe.train.optimizer == "adamw_8bit" else 8
        return (4 + moments) * self.parameters / (READ_RATE * self.train_nodes)

    def _refuse_what_does_not_fit(self) -> None:
        gpu, train = self.gpu, self.recipe.train
        room = IN_MEMORY * gpu.memory_gb * 1e9
        gpus = self.cluster.gpus or 1
        if gpus % self.engine_gpus:
            raise PlanError(
                f"sampling.vllm.tensor_parallel {self.engine_gpus} with --gpus {gpus}; accepted: a divisor of the node's GPUs"
            )
        if 2 * self.parameters > room * self.engine_gpus:
            raise PlanError(
                f"sampling.vllm.tensor_parallel {self.engine_gpus}: {self.parameters / 1e9:g}B weights do not fit into "
                f"{self.engine_gpus} {gpu.name}; accepted: at least {-(-2 * self.parameters // room):.0f}, or a larger GPU"
            )
        state = 2 if train.lora else 8 + (2 if train.optimizer == "adamw_8bit" else 8)
        if state * self.parameters > room * self.train_gpus:
            raise PlanError(
                f"training {self.parameters / 1e9:g}B weights takes {state * self.parameters / 1e9:,.0f} GB for weights, "
                f"gradients and moments, which {self.train_gpus} {gpu.name} do not hold (activations left "
                f"{100 * (1 - IN_MEMORY):.0f} %); accepted: at least {-(-state * self.parameters // room):.0f} training GPUs, "
                "train.lora, or a larger GPU"
            )


def engine_gpus(recipe: Recipe) -> int:
    """GPUs that one sampling engine is spread over."""
    return recipe.sampling.vllm.tensor_parallel if recipe.sampling.engine == "vllm" else 1


def _calibrated(
    recipe: Recipe, times: Times, sampling: Figure, training: Figure, cluster: Cluster
) -> tuple[Figure, Figure]:
    """Rates of a calibration on the type planned for, where none are given."""
    how, prompts, k = f"calibration on {times.machine}", recipe.sampling.unit_prompts, recipe.sampling.k
    rate = prompts * k * times.answer_tokens / times.unit(prompts, k)
    pair = (times.prompt_tokens + 2 * times.answer_tokens) / times.train_pair if times.train_pair else 0.0
    if cluster.sampling_rate is None:
        sampling = Figure(sampling.name, rate, "tokens/s", "measured", how)
    if cluster.training_rate is None and pair:
        training = Figure(training.name, pair, "tokens/s", "measured", how)
    return sampling, training
