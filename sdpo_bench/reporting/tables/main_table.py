"""The paper's table shape: methods by step count, a block for each trained reward, and the summary across rewards."""

from collections.abc import Sequence

from sdpo_bench.reporting.tables import ablation
from sdpo_bench.reporting.tables.method_tables import step_table, variety_of
from sdpo_bench.results.comparability import differences
from sdpo_bench.results.panels import Panel
from sdpo_bench.results.scoreboard import Board
from sdpo_bench.statistics import table as t


def main_tables(boards: Sequence[Board], prefix: str = "") -> list[t.Table]:
    """One table for each model, sampler, split and set of prompts: a block for each trained reward."""
    groups: dict[tuple[str, ...], list[Board]] = {}
    for board in boards:
        if board.panel.trained:
            key = board.panel.key
            place = (board.panel.setting.model, key.sampler, key.split, *board.panel.prompts)
            groups.setdefault(place, []).append(board)
    tables = []
    for i, members in enumerate(groups.values()):
        first = members[0].panel
        title = f"Main table: {first.setting.model}, {first.key.split} prompts"
        varieties = [variety_of(board, boards) for board in members]
        tables.append(step_table(members, f"{prefix}main-{i + 1}", title, lambda b: _block_title(b.panel), varieties))
        if _one_a_reward(members) and (across := ablation.across_rewards(members, f"{prefix}across-{i + 1}")):
            tables.append(across)
    return tables


def _block_title(panel: Panel) -> str:
    return f"{panel.setting.title} (version {panel.key.version})"


def _one_a_reward(boards: Sequence[Board]) -> bool:
    """Across-reward statistics need one setting a reward, alike in everything but the reward."""
    rewards = [board.panel.key.reward for board in boards]
    first = boards[0].panel.setting.settings
    keys = {key for b in boards for key, _, _ in differences(first, b.panel.setting.settings)}
    return len(set(rewards)) == len(rewards) > 1 and all(key.startswith("reward.") for key in keys)
