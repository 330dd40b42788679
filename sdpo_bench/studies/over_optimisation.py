"""How long does a rising reward mean better pictures?

Trainings of growing length on each reward are judged by rewards they never saw, by how different their pictures
still are, by plain picture statistics and by their distance to the base model. The onset of hacking is where the
trained reward is significantly up and the others significantly down.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from sdpo_bench.errors import UsageError
from sdpo_bench.plugins.registry import find
from sdpo_bench.results.study_findings import Findings, Plot, banded, line
from sdpo_bench.statistics import table as t
from sdpo_bench.statistics.chart import Chart
from sdpo_bench.statistics.contrasts import Contrast, contrast_cells, family, listed, seed_caution
from sdpo_bench.statistics.intervals import Estimate
from sdpo_bench.statistics.matrices import Matrix
from sdpo_bench.statistics.picture_means import PICTURES
from sdpo_bench.studies.shared import training_tables as tr
from sdpo_bench.studies.shared.contract import Bench, Design, Study, StudyRequest
from sdpo_bench.studies.shared.diversity import IMAGES, Spread, measure_all
from sdpo_bench.studies.shared.trainings import Arm, Trained, Trainings, mean_of
from sdpo_bench.sweep.suite import Suite

TRAINED = ("emoji-align", "emoji-style", "jpeg-compressibility")
CONTENT = ("emoji-align", "emoji-accuracy")
"""Whether a picture shows what its prompt names. Style and file size are tastes: losing one is no sign of hacking."""
IMAGES_OF_TRAINING = 16_384
"""The largest budget: eight times the 2,048 images within which no hacking of a learned reward was significant."""
PARTS = (16, 8, 4, 2, 1)
"""Budgets as parts of the whole."""
SPACES = {"latents": "latent distance", "features": "feature distance", "vendi": "Vendi score"}


class OverOptimisation(Study):
    """Trained against held-out rewards over the budget, diversity, picture statistics, and the onset of hacking."""

    name = "over-optimisation"
    question = (
        "As a reward is optimised longer, when do rewards that were not trained on, the diversity of the pictures and "
        "the pictures themselves begin to suffer?"
    )

    def design(self, request: StudyRequest) -> Design:
        suites = [_suite(request, images) for images in budgets(request)]
        facts = tr.suite_facts(request, suites)
        prompts = int(dict(facts)["prompts"].split()[0])
        runs = 1 + len(suites) * len(_rewards(request)) * len(request.chosen_seeds)
        steps = _diversity_steps(suites[0])
        return Design(
            (
                *facts,
                (
                    "budget",
                    f"{listed(f'{images:,}' for images in budgets(request))} images, each a training of its own "
                    "that begins like the others",
                ),
                ("scored with", ", ".join(_judges(request))),
                (
                    "diversity",
                    f"{IMAGES} pictures of each prompt at {steps} steps: mean pairwise distance of latents "
                    "(root mean square) and of features (1 - cosine) of the embedded accuracy network, and the Vendi "
                    "score of these cosines",
                ),
            ),
            (
                "Gains over the base model, mean over step counts, in standard deviations of the base model's images; "
                f"held-out: mean of the gains by rewards not trained on (of the embedded ones {listed(CONTENT)}; the "
                "others are tastes).",
                "Family for each trained reward: trained and held-out gain at every budget; crossed intervals, Holm.",
                "Onset of hacking: the smallest budget with a significant gain by the trained reward and a "
                "significant loss by the held-out ones. Diversity is lost where its difference to the base "
                "model is significantly below 0 (family: these three at every budget).",
            ),
            tuple(suites),
            denoiser_calls=runs * prompts * IMAGES * steps,
        )

    def findings(self, bench: Bench) -> Findings:
        views = [_View(bench, reward) for reward in _rewards(bench.request)]
        measured = measure_all(bench, _diversity_steps(bench.design.suites[0]))
        for view in views:
            view.measure(measured)
        contrasts = [c for view in views for c in view.gains.values()]
        return Findings(
            (*(text for view in views for text in view.sentences()), *seed_caution(contrasts)),
            (_matrix_table(bench, views), *(view.table() for view in views)),
            tuple(view.plot() for view in views),
        )


def budgets(request: StudyRequest) -> tuple[int, ...]:
    """Numbers of images, ascending."""
    most = request.amount(IMAGES_OF_TRAINING, least=tr.EPOCH, multiple=tr.EPOCH)
    return tuple(sorted({max(8, most // part) for part in PARTS}))


def _rewards(request: StudyRequest) -> tuple[str, ...]:
    return tuple(find("rewards", name).name for name in request.rewards or TRAINED)


def _judges(request: StudyRequest) -> list[str]:
    """Every reward that scores: the embedded ones where they were trained on, else those that were named.

    Raises:
        UsageError: a single reward that is not an embedded one, so that nothing is held out.
    """
    rewards, embedded = _rewards(request), list(dict.fromkeys([*TRAINED, *CONTENT]))
    if set(rewards) <= set(embedded):
        return embedded
    if len(rewards) < 2:
        raise UsageError(
            f"with {rewards[0]} alone nothing is held out. Add another, e.g. --reward {rewards[0]} --reward NAME."
        )
    return list(rewards)


def _held_out(reward: str, judges: list[str]) -> list[str]:
    """The judges of what was not trained on."""
    content = [judge for judge in judges if judge in CONTENT]
    return [judge for judge in content or judges if judge != reward]


def _suite(request: StudyRequest, images: int) -> Suite:
    judged = {**tr.JUDGED, "rewards": _judges(request)}
    return tr.training_suite(
        f"over-optimisation.{images}",
        request,
        ["sdpo"],
        _rewards(request),
        {"images": images},
        judged,
        variants={str(images): {}},
    )


def _diversity_steps(suite: Suite) -> int:
    """The middle of the step counts that are judged."""
    counts = tr.step_counts(suite.common.get("eval.steps", tr.JUDGED["steps"]))
    return counts[len(counts) // 2]


# -- one trained reward --------------------------------------------------------------------------------------


class _View:
    """What trainings on one reward show over the budget."""

    def __init__(self, bench: Bench, reward: str):
        self.reward, self.trainings = reward, bench.trainings
        self.arms = {images: Arm("sdpo", reward, str(images)) for images in budgets(bench.request)}
        self.judges = _judges(bench.request)
        matrices: dict[str, Matrix | None] = {}
        for images, arm in self.arms.items():
            matrices[f"trained {images}"] = self.trainings.standardised_gain(arm, reward=reward)
            matrices[f"held-out {images}"] = held_out(self.trainings, arm, _held_out(reward, self.judges))
        self.gains = family(matrices)
        self.diversity: dict[str, Contrast] = {}
        self.onset = onset(self.gains, list(self.arms))

    def measure(self, measured: Mapping[str, Spread]) -> None:
        """Diversity against the base model, in percent of its mean distance."""
        changes = {}
        for images, arm in self.arms.items():
            for space in SPACES:
                changes[f"{space} {images}"] = _change(self.trainings.arms[arm], measured, space)
        self.diversity = family(changes)

    def _estimates(self, contrasts: Mapping[str, Contrast], name: str) -> list[Estimate | None]:
        """A family's estimates under ``"name IMAGES"`` at every budget."""
        members = [contrasts.get(f"{name} {images}") for images in self.arms]
        return [contrast.estimate if contrast else None for contrast in members]

    def sentences(self) -> list[str]:
        up = [i for i in self.arms if (c := self.gains.get(f"trained {i}")) and c.up]
        open_ones = [c.interval_words for i in self.arms if (c := self.gains.get(f"trained {i}")) and c.interval_words]
        not_up = f"does not rise significantly at any budget{open_ones[0] if open_ones else ''}"
        first = f"rises significantly {budget_words(up, self.arms)}" if up else not_up
        texts = [f"{self.reward}: trained on, it {first}."]
        if self.onset is not None:
            texts.append(
                f"{self.reward}: HACKED {budget_words(hacked(self.gains, self.arms), self.arms)}: the held-out rewards "
                "are significantly below the base model's."
            )
        else:
            texts.append(f"{self.reward}: no significant onset of hacking: {self._held_out_words()}")
        losses = []
        for space, words in SPACES.items():
            budgets_of_loss = [i for i in self.arms if (c := self.diversity.get(f"{space} {i}")) and c.down]
            if budgets_of_loss:
                losses.append(f"{words} {budget_words(budgets_of_loss, self.arms)}")
        if losses:
            texts.append(f"{self.reward}: diversity is significantly lower in {listed(losses)}.")
        elif self.diversity:
            near = [c.words for c in self.diversity.values() if c.interval_words and c.estimate.value < 0]
            more = f"; of these {listed(near)}" if near else ""
            texts.append(f"{self.reward}: no significant loss of diversity ({listed(SPACES.values())}{more}).")
        return texts

    def _held_out_words(self) -> str:
        last = self.gains.get(f"held-out {max(self.arms)}")
        if last is None:
            return "no training gave scores."
        if last.up:
            words = "significantly up"
        elif last.down:
            words = "significantly down, without a significant gain by the trained one"
        else:
            words = "not significantly different from the base model's"
        return f"at the largest budget the held-out rewards are {words}{last.interval_words}."

    def table(self) -> t.Table:
        """One row a budget."""
        columns = (
            t.Column("images", "images"),
            t.Column("trained", "trained reward"),
            t.Column("p", "Holm p"),
            t.Column("held_out", "held-out rewards"),
            t.Column("p2", "Holm p"),
            *(t.Column(space, f"{words}, % of base") for space, words in SPACES.items()),
            *(t.Column(name, f"{name} / base") for name in PICTURES),
            t.Column("kl", "KL to base", help="last epoch: sum over steps of the mean over latent elements, nats"),
            t.Column("onset", "", numeric=False),
            t.Column("seeds", "seeds"),
        )
        rows = [self._row(images, arm) for images, arm in self.arms.items()]
        notes = (
            "Gains in standard deviations of the base model's images, ± half the 95 % crossed interval; diversity as "
            "difference to the base model in percent. Bold: significantly different from 0.",
        )
        title = f"Trained on {self.reward}"
        return t.plain_table(f"budget-{self.reward}", title, columns, rows, notes, tr.failure_notes(self.trainings))

    def _row(self, images: int, arm: Arm) -> t.Row:
        runs = self.trainings.arms[arm]
        cells = [t.count(images)]
        for kind in ("trained", "held-out"):
            cells += contrast_cells(self.gains.get(f"{kind} {images}"), 2)
        cells += [contrast_cells(self.diversity.get(f"{space} {images}"), 1)[0] for space in SPACES]
        for name in PICTURES:
            tuned, base = self.trainings.pictures(arm, name)
            cells.append(t.number(tuned / base if base else math.nan, 2))
        kl = mean_of(float(run.log[-1]["kl_to_base"]) for run in runs if run.log)
        mark = "onset of hacking" if images == self.onset else ""
        return t.Row((*cells, t.number(kl, 4), t.word(mark), tr.seeds_cell(runs)))

    def plot(self) -> Plot:
        """Gains, diversity and KL over the budget, the onset marked."""
        x = list(self.arms)
        names = {"trained reward": "trained", "held-out": "held-out"}
        series = [banded(label, x, self._estimates(self.gains, name)) for label, name in names.items()]
        if self.onset is not None:
            at_onset = self.gains[f"held-out {self.onset}"].estimate.value
            series.append(line("onset of hacking", [self.onset], [at_onset]))
        each = []
        for judge in self.judges:
            gains = [self.trainings.standardised_gain(arm, reward=judge) for arm in self.arms.values()]
            each.append(banded(judge, x, [tr.crossed(gain) for gain in gains]))
        spread = [banded(words, x, self._estimates(self.diversity, space)) for space, words in SPACES.items()]
        longest = {"sdpo": self.arms[max(x)]}
        kl = tr.curve_chart(self.trainings, longest, "kl_to_base", "images", "KL to the base model", "nats")
        axis = "images of training"
        charts = (
            Chart("Trained against held-out", axis, "gain, base model's sd", series, steps=True, zero=True),
            Chart("Every reward", axis, "gain, base model's sd", each, steps=True, zero=True),
            Chart("Diversity", axis, "% of base", spread, steps=True, zero=True),
            kl,
            tr.curve_chart(self.trainings, longest, "pictures.contrast", "images", "Contrast", ""),
            tr.curve_chart(self.trainings, longest, "pictures.sharpness", "images", "Sharpness", ""),
        )
        caption = (
            f"SDPO trained on {self.reward}. Bands: 95 % crossed intervals over seeds and prompts; of the curves of "
            "the longest training: lowest to highest seed."
        )
        return Plot(self.reward, caption, charts, columns=3, size=(3.6, 2.7))


def onset(gains: Mapping[str, Contrast], budgets: Iterable[int]) -> int | None:
    """The smallest budget of :func:`hacked`; None without one."""
    return min(hacked(gains, budgets), default=None)


def hacked(gains: Mapping[str, Contrast], budgets: Iterable[int]) -> list[int]:
    """Budgets with a significant gain by the trained reward and a significant loss by the held-out ones."""
    found = []
    for images in sorted(budgets):
        own, others = gains.get(f"trained {images}"), gains.get(f"held-out {images}")
        if own and others and own.up and others.down:
            found.append(images)
    return found


def budget_words(found: Sequence[int], budgets: Iterable[int]) -> str:
    """Budgets at which something is significant: the first one where all later ones agree, else all of them."""
    if list(found) == [images for images in sorted(budgets) if images >= found[0]]:
        return f"from {found[0]:,} images on"
    return f"at {listed(f'{images:,}' for images in found)} images"


def held_out(trainings: Trainings, arm: Arm, judges: list[str]) -> Matrix | None:
    """Mean of the standardised gains by rewards that were not trained on."""
    gains = [gain for judge in judges if (gain := trainings.standardised_gain(arm, reward=judge)) is not None]
    if not gains:
        return None
    return Matrix(np.mean([gain.values for gain in gains], axis=0), gains[0].seeds, gains[0].prompts)


def _change(runs: tuple[Trained, ...], measured: Mapping[str, Spread], space: str) -> Matrix | None:
    """Distance minus the base model's, ``[S, P]`` in percent of the base model's mean distance."""
    tuned = {run.job.seed: getattr(measured[run.job.run_id], space) for run in runs if run.job.run_id in measured}
    if not tuned:
        return None
    base = getattr(measured[""], space)
    values = 100 * (np.stack(list(tuned.values())) - base) / base.mean()
    return Matrix(values, tuple(tuned), tuple(map(str, range(len(base)))))


def _matrix_table(bench: Bench, views: list[_View]) -> t.Table:
    """Trained on x scored with, at the largest budget."""
    most = max(budgets(bench.request))
    judges = _judges(bench.request)
    gains = {}
    for view in views:
        for judge in judges:
            gains[f"{view.reward} > {judge}"] = bench.trainings.standardised_gain(view.arms[most], reward=judge)
    contrasts = family(gains)
    columns = (t.Column("trained", "trained on", numeric=False), *(t.Column(j, f"scored with {j}") for j in judges))
    rows = []
    for view in views:
        cells = [contrast_cells(contrasts.get(f"{view.reward} > {judge}"), 2)[0] for judge in judges]
        rows.append(t.Row((t.word(view.reward), *cells)))
    notes = (
        f"Gain after {most:,} images in standard deviations of the base model's images, ± half the 95 % crossed "
        "interval. Bold: significantly different from 0 after Holm over the matrix.",
    )
    return t.plain_table("matrix", "Trained on x scored with", columns, rows, notes)
