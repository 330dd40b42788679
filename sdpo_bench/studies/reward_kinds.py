"""Which method keeps working when the reward is sparse, not differentiable, noisy, delayed or on another scale?

Every kind is made from one clean reward by the reward plugin `altered`, so that what is learnt can be judged by the
clean one, whatever the training saw.
"""

from collections.abc import Mapping
from itertools import product
from typing import Any

from sdpo_bench.results.study_findings import Findings, Plot, banded
from sdpo_bench.statistics import table as t
from sdpo_bench.statistics.chart import Chart
from sdpo_bench.statistics.contrasts import Contrast, contrast_cells, family, listed, seed_caution
from sdpo_bench.statistics.matrices import Matrix
from sdpo_bench.studies.shared import training_tables as tr
from sdpo_bench.studies.shared.contract import Bench, Design, Study, StudyRequest
from sdpo_bench.studies.shared.trainings import Arm, Trainings
from sdpo_bench.sweep.suite import Suite

METHODS = ("sdpo", "ddpo", "d3po")
DELAYED_METHOD = "sdpo_sparse"
PLAIN, THRESHOLDED, NOISY, RESCALED, JPEG, DELAYED = "plain", "thresholded", "noisy", "rescaled", "jpeg", "delayed"
KINDS = (PLAIN, THRESHOLDED, NOISY, RESCALED, JPEG, DELAYED)
JPEG_REWARD = "jpeg-compressibility"
MEASURED = {"emoji-align": (-1.03, 0.55)}
"""Threshold that a fifth of the base model's pictures pass at 5 steps, and their standard deviation, by reward."""


class RewardKinds(Study):
    """Thresholded, JPEG, noisy, delayed and rescaled rewards: which method keeps working."""

    name = "reward-kinds"
    question = (
        "Which method still learns when its reward is thresholded to 0 or 1, not differentiable, noisy, known for the "
        "finished picture alone, or on another scale?"
    )

    def design(self, request: StudyRequest) -> Design:
        clean = tr.one_reward(request)
        kinds, suites = _kinds(request, clean), _suites(request, clean)
        return Design(
            (
                *tr.suite_facts(request, suites),
                ("budget", f"{suites[0].common['budget.images']:,} images for every training"),
                ("clean reward", f"{clean}; what is learnt is judged by it ({JPEG}: by {JPEG_REWARD})"),
                *((kind, _words(kinds[kind], clean)) for kind in kinds),
                (
                    DELAYED,
                    f"nothing but the finished picture is scored: SDPO without dense rewards ({DELAYED_METHOD}); "
                    f"{listed(m for m in METHODS if m != 'sdpo')} never see more",
                ),
            ),
            (
                "Endpoint: mean over step counts of the gain over the base model by the clean reward, in standard "
                "deviations of the base model's images.",
                "Family: every method with every kind against no gain; crossed intervals, Holm. A method keeps working "
                "with a kind where its gain is significantly above 0.",
                "The share of a method's plain gain that it keeps is descriptive.",
            ),
            tuple(suites),
        )

    def findings(self, bench: Bench) -> Findings:
        clean, trainings = tr.one_reward(bench.request), bench.trainings
        pairs = product(METHODS, KINDS)
        contrasts = family({f"{m}, {kind}": clean_gain(trainings, m, kind, clean) for m, kind in pairs})
        return Findings(
            (*conclusion(contrasts), *seed_caution(contrasts.values())),
            (_table(trainings, contrasts),),
            (_plot(trainings, clean),),
        )


def _kinds(request: StudyRequest, clean: str) -> dict[str, dict[str, Any]]:
    """Settings of `altered` by kind."""
    threshold, noise = MEASURED[clean] if clean in MEASURED else measure(request, clean)
    return {
        PLAIN: {"of": clean},
        THRESHOLDED: {"of": clean, "threshold": threshold},
        NOISY: {"of": clean, "noise": noise},
        RESCALED: {"of": clean, "scale": 100.0, "offset": 10.0},
        JPEG: {"of": JPEG_REWARD},
    }


def _words(settings: Mapping[str, Any], clean: str) -> str:
    parts = [f"{key} = {value:g}" for key, value in settings.items() if key != "of"]
    return ", ".join([str(settings["of"]), *parts]) if parts or settings["of"] != clean else f"{clean} as it is"


def measure(request: StudyRequest, clean: str) -> tuple[float, float]:
    """For a reward that is not in :data:`MEASURED`: the same two numbers, to two digits."""
    from sdpo_bench.config.training_schedule import schedule_options
    from sdpo_bench.models.base_model import load_policy, scheduler_config
    from sdpo_bench.prompts.prompt_sets import load_prompts
    from sdpo_bench.rollout.sampling import Noise, sample
    from sdpo_bench.rollout.schedule import make_schedule
    from sdpo_bench.scoring.make_scorers import make_scorer

    config = tr.resolved_training(request, "sdpo", clean, request.overrides).config
    policy = load_policy(config.model, lora_seed=0)
    s = config.schedule
    schedule = make_schedule(scheduler_config(policy), s.steps, sampler=s.sampler, **schedule_options(s))
    prompts = [p for p in load_prompts(config.sample.prompts) for _ in range(2)]
    names = [f"{prompt}\n{i}" for i, prompt in enumerate(prompts)]
    latents, _ = sample(policy, schedule, prompts, Noise(("study", "reward-kinds")), groups=names)
    scores = make_scorer(clean, config.reward.settings, "cpu")(policy.decode(latents), prompts).double()
    # Two digits, so that the last bits of another machine give no other experiment.
    return tuple(float(f"{x:.2g}") for x in (scores.quantile(0.8), scores.std()))  # type: ignore[return-value]


def _suites(request: StudyRequest, clean: str) -> list[Suite]:
    budget = {"images": request.amount(640, least=tr.EPOCH, multiple=tr.EPOCH)}
    judged = {"steps": [1, 4, 16], "images_per_prompt": 2, "rewards": list(dict.fromkeys([clean, JPEG_REWARD]))}
    kinds = _kinds(request, clean)
    variants = {kind: {"reward": settings} for kind, settings in kinds.items()}
    delayed = {DELAYED: {"reward": kinds[PLAIN]}}
    return [
        tr.training_suite("reward-kinds", request, METHODS, ["altered"], budget, judged, variants=variants),
        tr.training_suite(
            "reward-kinds.delayed", request, [DELAYED_METHOD], ["altered"], budget, judged, variants=delayed
        ),
    ]


def arm_of(method: str, kind: str) -> Arm:
    """Runs behind a cell of the table; a method that only ever sees finished pictures is delayed by nature."""
    if kind != DELAYED:
        return Arm(method, "altered", kind)
    return Arm(DELAYED_METHOD, "altered", DELAYED) if method == "sdpo" else Arm(method, "altered", PLAIN)


def clean_gain(trainings: Trainings, method: str, kind: str, clean: str) -> Matrix | None:
    """Gain by the clean reward in standard deviations of the base model's images."""
    arm, judge = arm_of(method, kind), JPEG_REWARD if kind == JPEG else clean
    if kind == DELAYED and method != "sdpo":
        return None  # the same runs as plain: they count once in the family
    return trainings.standardised_gain(arm, reward=judge)


def conclusion(contrasts: Mapping[str, Contrast]) -> list[str]:
    """One sentence a kind of reward, then the number of kinds with a significant gain by method."""
    texts = [text for kind in KINDS if (text := _kind_sentence(contrasts, kind))]
    if not any(contrast.up for contrast in contrasts.values()):
        return [*texts, "No method gains significantly with any kind."]
    counts = []
    for method in METHODS:
        own = [contrast for label, contrast in contrasts.items() if label.startswith(f"{method}, ")]
        counts.append(f"{method} with {sum(contrast.up for contrast in own)} of {len(own)}")
    return [*texts, f"Kinds with a significant gain: {', '.join(counts)}."]


def _kind_sentence(contrasts: Mapping[str, Contrast], kind: str) -> str:
    """Methods by the outcome of one kind of reward; empty without any."""
    by_method = {m: contrasts[f"{m}, {kind}"] for m in METHODS if f"{m}, {kind}" in contrasts}
    parts = []
    for outcome, words in (
        ("up", "works for {}"),
        ("down", "makes the pictures of {} worse"),
        ("unclear", "no significant gain for {}"),
    ):
        own = [(method, contrast) for method, contrast in by_method.items() if contrast.outcome == outcome]
        methods = [method + contrast.interval_words for method, contrast in own]
        if methods:
            parts.append(words.format(listed(methods)))
    expected = METHODS if kind != DELAYED else ("sdpo",)  # for the others, delayed is the same as plain
    if missing := [method for method in expected if method not in by_method]:
        parts.append(f"no training of {listed(missing)} ended with usable scores")
    return f"A {kind} reward: {'; '.join(parts)}." if parts else ""


def _table(trainings: Trainings, contrasts: Mapping[str, Contrast]) -> t.Table:
    columns = [t.Column("kind", "kind", numeric=False)]
    for m in METHODS:
        columns += [
            t.Column(m, m, help="gain by the clean reward, standard deviations of the base model's images"),
            t.Column(f"{m}_p", "Holm p"),
            t.Column(f"{m}_kept", "of plain"),
            t.Column(f"{m}_seeds", "seeds"),
        ]
    rows = []
    for kind in KINDS:
        cells: list[t.Cell] = [t.word(kind)]
        for method in METHODS:
            contrast, plain = contrasts.get(f"{method}, {kind}"), contrasts.get(f"{method}, {PLAIN}")
            if kind == DELAYED and method != "sdpo":
                cells += [t.word("as plain"), *[t.Cell(t.DASH)] * 3]
                continue
            cells += [*contrast_cells(contrast, 2), _share_of_plain(contrast, plain)]
            cells.append(tr.seeds_cell(trainings.arms[arm_of(method, kind)]))
        rows.append(t.Row(tuple(cells), kind == PLAIN))
    notes = (
        "± half the 95 % crossed interval over seeds and prompts. Bold: significantly different from 0 in the "
        f"family of all cells. 'of plain': share of the gain with the plain reward; {JPEG} is another task and "
        "judges itself.",
    )
    title = "What is learnt from each kind of reward, by the clean one"
    return t.plain_table("kinds", title, columns, rows, notes, tr.failure_notes(trainings))


def _share_of_plain(contrast: Contrast | None, plain: Contrast | None) -> t.Cell:
    if contrast is None or plain is None or not plain.up:
        return t.Cell(t.DASH)
    share = contrast.estimate.value / plain.estimate.value
    return t.Cell(f"{100 * share:.0f} %", share)


def _plot(trainings: Trainings, clean: str) -> Plot:
    charts = []
    for method in METHODS:
        series = []
        for kind in KINDS:
            arm = arm_of(method, kind)
            judge = JPEG_REWARD if kind == JPEG else clean
            cells = trainings.grids(arm, judge) if kind != DELAYED or method == "sdpo" else None
            if cells:
                steps = cells[0].steps
                gains = [trainings.standardised_gain(arm, k, judge) for k in steps]
                series.append(banded(kind, steps, [tr.crossed(gain) for gain in gains]))
        charts.append(Chart(method, "denoising steps", "gain, base model's sd", series, steps=True, zero=True))
    caption = (
        "Gain over the base model by the clean reward, in standard deviations of the base model's images at that step "
        "count; 95 % crossed intervals over seeds and prompts."
    )
    return Plot("kinds", caption, tuple(charts), columns=3, size=(3.8, 3.0))
