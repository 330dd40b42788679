"""What should a return be compared with?

SDPO normalises returns of the same prompt at the same step. This study splits the variance of the base model's
returns into what steps, prompts and trajectories contribute, says what each mode leaves of it, and trains with each.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sdpo_bench.results.study_findings import Findings
from sdpo_bench.statistics import table as t
from sdpo_bench.statistics.contrasts import Contrast, family, listed, outcome_sentences, seed_caution
from sdpo_bench.statistics.intervals import Estimate, crossed_interval
from sdpo_bench.statistics.matrices import Matrix
from sdpo_bench.studies.shared import training_tables as tr
from sdpo_bench.studies.shared.contract import Bench, Design, Study, StudyRequest
from sdpo_bench.studies.shared.trainings import Arm

PAPER = "per-step-prompt"
MODES = (PAPER, "per-prompt", "per-step", "batch", "none")
PAIRS = 8
"""Pairs of each prompt in the variance part: 16 returns, from where a prompt's own statistics are used."""
SHARES = ("step", "prompt", "prompt x step", "trajectory")


class Normalisation(Study):
    """Variance of returns by step and prompt, what each normalisation leaves of it, and trainings with each."""

    name = "normalisation"
    question = (
        "How much of a return's variance is due to the denoising step and the prompt, what does each normalisation "
        "leave of it, and does it matter for what is learnt?"
    )

    def design(self, request: StudyRequest) -> Design:
        suite = _suite(request)
        facts = tr.suite_facts(request, [suite])
        prompts, steps = (int(dict(facts)[key].split()[0]) for key in ("prompts", "training steps T"))
        return Design(
            (
                *facts,
                ("budget", f"{suite.common['budget.images']:,} images for every training"),
                ("variance", f"{PAIRS} pairs of each prompt and seed, base model, SDPO's predicted rewards"),
            ),
            (
                "Variance: balanced two-way layout of the discounted returns, prompt x step with trajectories as "
                "replicates; shares of the total sum of squares, one number a seed, t interval over seeds.",
                "Imbalance: the largest over the smallest standard deviation among trajectories, of steps (mean over "
                "prompts) and of prompts (mean over steps); 1 is balanced. A pair's difference cancels shares of step "
                "and prompt, and keeps this.",
                "Endpoint of the trainings: mean over step counts of the gain over the base model. Family: every mode "
                f"against {PAPER} (the paper's), crossed intervals of the paired difference, Holm.",
            ),
            (suite,),
            denoiser_calls=len(request.chosen_seeds) * prompts * PAIRS * (2 * steps - 1),
        )

    def findings(self, bench: Bench) -> Findings:
        trainings = bench.trainings
        arms = {mode: Arm("sdpo", tr.one_reward(bench.request), mode) for mode in MODES}
        against = family(tr.against_reference(trainings, arms, PAPER))
        bench.say("sampling returns of the base model")
        returns = sample_returns(bench)
        left = {mode: [_after(mode, values) for values in returns] for mode in ("raw", *MODES)}
        table = tr.gain_table(trainings, arms, against, PAPER, title="What is learnt with each mode")
        return Findings(
            (*_variance_words(left), *_training_words(against), *seed_caution(against.values())),
            (_variance_table(left), _step_table(returns), table),
            (tr.training_plot(trainings, arms),),
        )


def _suite(request: StudyRequest) -> Any:
    images = request.amount(1792, least=tr.EPOCH, multiple=tr.EPOCH)
    variants = {mode: {"advantage": {"normalisation": mode}} for mode in MODES}
    return tr.training_suite(
        "normalisation", request, ["sdpo"], [tr.one_reward(request)], {"images": images}, variants=variants
    )


# -- variance ------------------------------------------------------------------------------------------------


def sample_returns(bench: Bench) -> list[np.ndarray]:
    """SDPO's discounted returns of the base model, ``[P, M, T]`` for each seed (M = 2 x :data:`PAIRS`)."""
    import torch

    from sdpo_bench.advantages.normalise import discounted_returns
    from sdpo_bench.config.resolve import build_method, resolve
    from sdpo_bench.config.training_schedule import training_schedule
    from sdpo_bench.models.base_model import load_policy, pick_device, scheduler_config
    from sdpo_bench.prompts.prompt_sets import load_prompts
    from sdpo_bench.rollout.sampling import Noise, rollout
    from sdpo_bench.scoring.dense_rewards import choose_queries, step_rewards
    from sdpo_bench.scoring.make_scorers import make_scorer
    from sdpo_bench.scoring.scorer import ask_rewards

    runtime = bench.runtime
    resolved = resolve(bench.trainings.runs[0].job.request)
    config, device = resolved.config, pick_device(runtime.device)
    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    method = build_method(config, resolved.method)
    policy = load_policy(config.model, device=device, lora_seed=0)
    schedule = training_schedule(config, scheduler_config(policy), method)
    scorer = make_scorer(config.reward.name, config.reward.settings, device)
    texts = load_prompts(config.sample.prompts)
    assert config.advantage is not None
    returns = []
    for seed in bench.request.chosen_seeds:
        names = [f"{text}\n{pair}" for text in texts for pair in range(PAIRS)]
        trajectories = rollout(
            policy,
            schedule,
            [text for text in texts for _ in range(PAIRS)],
            Noise((seed, "study", "normalisation")),
            groups=names,
            members=2,
            shared_noise=True,
            micro_batch=runtime.micro_batch,
        )
        queries = choose_queries(trajectories.x0, "predicted")
        answers = ask_rewards(
            policy, trajectories, queries, scorer, decode_sample=False, micro_batch=runtime.micro_batch
        )
        rewards = step_rewards(queries, answers.rewards.to(trajectories.x0), "predicted", method.reward_guard)
        values = discounted_returns(rewards, config.advantage.gamma)
        returns.append(values.double().cpu().numpy().reshape(len(texts), 2 * PAIRS, -1))
    return returns


def _after(mode: str, returns: np.ndarray) -> np.ndarray:
    """Returns ``[P, M, T]`` normalised as one batch."""
    if mode == "raw":
        return returns
    import torch

    from sdpo_bench.advantages.normalise import Normaliser

    prompts, members, steps = returns.shape
    names = [str(p) for p in range(prompts) for _ in range(members)]
    normaliser = Normaliser(mode)  # type: ignore[arg-type]
    return normaliser(torch.from_numpy(returns.reshape(-1, steps)), names).numpy().reshape(returns.shape)


def shares(values: np.ndarray) -> np.ndarray:
    """Shares ``[4]`` of the sum of squares of ``[P, M, T]`` by :data:`SHARES`; they sum to 1."""
    grand = values.mean()
    step, prompt = values.mean((0, 1)) - grand, values.mean((1, 2)) - grand
    cells = values.mean(1)
    both = cells - grand - step[None, :] - prompt[:, None]
    p, m, steps = values.shape
    parts = np.array(
        [
            p * m * (step**2).sum(),
            m * steps * (prompt**2).sum(),
            m * (both**2).sum(),
            ((values - cells[:, None]) ** 2).sum(),
        ]
    )
    return parts / parts.sum()


def imbalance(values: np.ndarray) -> tuple[float, float]:
    """Largest over smallest standard deviation among trajectories of ``[P, M, T]``: of steps, of prompts."""
    spread = values.std(1, ddof=1)
    by_step, by_prompt = spread.mean(0), spread.mean(1)
    return tuple(  # type: ignore[return-value]
        float(x.max() / x.min()) if x.min() > 0 else float("inf") for x in (by_step, by_prompt)
    )


def _share(values: np.ndarray) -> Estimate:
    """A share ``[S]`` with its interval over seeds."""
    return crossed_interval(Matrix(values[:, None], tuple(range(len(values))), ("all",))).clipped(0, 1)


def _variance_table(left: Mapping[str, Sequence[np.ndarray]]) -> t.Table:
    columns = (
        t.Column("mode", "normalisation", numeric=False),
        *(t.Column(name.replace(" ", "_"), name, help="share of the sum of squares") for name in SHARES),
        t.Column("steps", "imbalance of steps"),
        t.Column("prompts", "imbalance of prompts"),
    )
    rows = []
    for mode, by_seed in left.items():
        parts = np.array([shares(values) for values in by_seed])
        uneven = np.array([imbalance(values) for values in by_seed])
        cells = [t.share(_share(parts[:, i])) for i in range(4)]
        cells += [t.number(float(uneven[:, i].mean()), 2) for i in range(2)]
        rows.append(t.Row((t.word(mode), *cells), mode == "raw"))
    notes = (
        "Of the base model's returns. Shares with t intervals over sampling seeds on these prompts; 'trajectory' is "
        "what tells a better trajectory from a worse one of the same prompt at the same step.",
    )
    return t.plain_table("variance", "Variance of returns and what is left of it", columns, rows, notes)


def _step_table(returns: Sequence[np.ndarray]) -> t.Table:
    """Mean and spread of the raw returns by step."""
    columns = (
        t.Column("step", "step"),
        t.Column("mean", "mean return"),
        t.Column("prompts", "sd over prompts"),
        t.Column("within", "sd among trajectories"),
    )
    every = np.stack(returns)  # [S, P, M, T]
    rows = []
    for i in range(every.shape[-1]):
        column = every[..., i]
        numbers = (column.mean(), column.mean(2).std(1, ddof=1).mean(), column.std(2, ddof=1).mean())
        rows.append(t.Row((t.count(i), *(t.number(float(x), 3) for x in numbers))))
    return t.plain_table("steps", "Returns by step (0 is the noisiest)", columns, rows)


def _variance_words(left: Mapping[str, Sequence[np.ndarray]]) -> list[str]:
    mean = {mode: np.mean([shares(values) for values in by_seed], axis=0) for mode, by_seed in left.items()}
    uneven = {mode: np.mean([imbalance(values) for values in by_seed], axis=0) for mode, by_seed in left.items()}
    raw = mean["raw"]
    text = ", ".join(f"{100 * share:.0f} % {name}" for name, share in zip(SHARES, raw))
    clean = [mode for mode in MODES if mean[mode][3] > 0.95]
    others = [f"{mode} ({100 * (1 - mean[mode][3]):.0f} %)" for mode in MODES if mode not in clean]
    sentences = [f"Raw returns vary by {text}."]
    if clean:
        sentences.append(f"Steps and prompts are taken out (less than 5 % left) by {listed(clean)}.")
    if others:
        sentences.append(f"They stay in the advantages of {listed(others)}; a pair's difference cancels them.")
    best = min(MODES, key=lambda mode: float(uneven[mode].max()))
    sentences.append(
        f"What a pair keeps is scale: the noisiest prompt counts {uneven['none'][1]:.1f} times the quietest without "
        f"normalisation, {uneven[PAPER][1]:.1f} times with {PAPER}; {best} is the most even."
    )
    return sentences


def _training_words(against: Mapping[str, Contrast]) -> list[str]:
    templates = {
        "down": f"Trained with {PAPER}, SDPO gains more than with {{names}}.",
        "up": f"Trained with {PAPER}, SDPO gains less than with {{names}}.",
        "unclear": f"Between {PAPER} and {{names}} there is no significant difference in gain.",
    }
    return outcome_sentences(against.values(), templates) or ["No training can be compared: see the failures."]
