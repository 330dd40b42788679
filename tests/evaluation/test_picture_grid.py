"""The grid beside a run's scores shows the pictures that were scored."""

from sdpo_bench.evaluation.picture_grid import draw_grid
from sdpo_bench.settings import EvaluationSettings


def test_a_grid_has_the_guidance_of_the_evaluation(tiny_policy, tmp_path, monkeypatch):
    """Trained with a guidance of 3 and evaluated without: both models are drawn without, then it is 3 again."""
    seen, predict = set(), type(tiny_policy).predict
    tiny_policy.set_guidance(3.0)
    monkeypatch.setattr(
        type(tiny_policy), "predict", lambda self, *a: (seen.add(self.guidance_scale), predict(self, *a))[1]
    )
    settings = EvaluationSettings(guidance_scale=1.0)
    path = tmp_path / "grid.png"
    draw_grid(tiny_policy, settings, [("cat", 0)], [1, 2], path, caption="{prompt} ({model})", micro_batch=64)
    assert path.exists() and seen == {1.0} and tiny_policy.guidance_scale == 3.0
