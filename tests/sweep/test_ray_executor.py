"""The Ray executor on a real cluster of two worker processes: same results, lost workers."""

import os
import signal
import socket
import sys
import time
from pathlib import Path

import preload  # noqa: F401
import psutil
import pytest
from suite_files import tiny_suite, write_suite

from sdpo_bench.cli.entry import main
from sdpo_bench.config.resolve import resolve
from sdpo_bench.errors import MissingError
from sdpo_bench.running.run_one import run_job
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.settings import Runtime
from sdpo_bench.sweep.plan import make_plan
from sdpo_bench.sweep.scheduler import Sweep
from sdpo_bench.sweep.suite import read_suite

FILES = ("train.jsonl", "eval.parquet", "lora/pytorch_lora_weights.safetensors", "status")


def test_without_ray_the_message_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit) as stop:
        main(["sweep", str(write_suite(tmp_path)), "--out", str(tmp_path / "out"), "--executor", "ray"])
    assert stop.value.code == 3
    assert 'pip install "sdpo-bench[ray]"' in capsys.readouterr().err


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "no-address", "auto"])
def test_an_address_that_does_not_answer(tmp_path, capsys, form):
    pytest.importorskip("ray")
    address = form.format(closed_port())
    started = time.monotonic()
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "sweep",
                str(write_suite(tmp_path)),
                "--out",
                str(tmp_path / "out"),
                "--executor",
                "ray",
                "--address",
                address,
            ]
        )
    assert stop.value.code == 3
    assert time.monotonic() - started < 60
    message = capsys.readouterr().err
    assert f"'{address}'" in message
    assert not list((tmp_path / "out" / "runs").iterdir())


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield ray
        ray.shutdown()


@pytest.fixture(scope="module")
def local(tmp_path_factory, tiny_pipe):
    """A suite of two jobs, and what they leave when run in this process."""
    place = tmp_path_factory.mktemp("local")
    path = tiny_suite(place, tiny_pipe, images="24")
    for job in make_plan(read_suite(path), place).jobs:
        run_job(resolve(job.request), Runtime(out=place, device="cpu", threads=1))
    return path, place


def content(out: Path):
    return {(f.name, n): (f / n).read_bytes() for f in (out / "runs").iterdir() for n in FILES if (f / n).exists()}


def ray_sweep(path, out, tell=lambda progress, line: None, **options):
    from sdpo_bench.sweep.ray_executor import RayExecutor

    out.mkdir()
    executor = RayExecutor("local", out, device="cpu", **options)
    sweep = Sweep(lambda: make_plan(read_suite(path), out), executor, Runtime(out=out, checkpoint_every=1), tell=tell)
    return sweep.run("again"), executor


@pytest.mark.slow
@pytest.mark.parametrize("share", [{"cpus": 3}, {"gpus": 1.0}])
def test_a_job_that_no_node_has_room_for_is_refused(cluster, local, tmp_path, share):
    with pytest.raises(MissingError, match="no node .* 2 CPUs and 0 GPUs. Use smaller --cpus-per-cell"):
        ray_sweep(local[0], tmp_path / "out", **share)
    assert cluster.is_initialized() and not list((tmp_path / "out").glob(".shared-*"))


@pytest.mark.slow
def test_a_worker_killed_in_mid_job_changes_nothing(cluster, local, tmp_path):
    path, reference = local
    out = tmp_path / "out"
    killed = []

    def kill_once(progress, line):
        if not killed and list(out.glob("runs/*/checkpoints/*")):
            processes = psutil.Process().children(recursive=True)
            busy = [p for p in processes if "ray::remote_job" in f"{p.name()} {p.cmdline()}"]
            if busy:
                killed.append(busy[0].pid)
                os.kill(busy[0].pid, signal.SIGKILL)

    progress, executor = ray_sweep(path, out, kill_once)
    assert killed and executor.slots == 2
    assert (progress.count("done"), progress.count("failed")) == (2, 0)
    assert content(out) == content(reference)
    logs = [log.read_text().count("\n== sdpo-bench") for log in (out / "logs").iterdir()]
    assert sorted(logs) == [1, 2], "the lost job began again, the other did not"
    assert not list(out.glob(".shared-*"))


@pytest.mark.slow
def test_a_worker_that_a_plugin_ends_well_fails_its_job(cluster, local, tmp_path):
    """Ray starts it again, as after any loss, and then says that the worker crashed."""
    from sdpo_bench.sweep.ray_executor import RayExecutor

    path, out = local[0], tmp_path / "out"
    out.mkdir()
    executor = RayExecutor("local", out, device="cpu")

    def leave(task, probe):
        os._exit(0)

    executor._remote = cluster.remote(max_retries=1)(leave)
    progress = Sweep(lambda: make_plan(read_suite(path), out), executor, Runtime(out=out)).run("again")
    assert (progress.count("done"), progress.count("failed"), progress.left) == (0, 2, 0)
    for job in make_plan(read_suite(path), out).jobs:
        assert job.state == "failed" and job.message.startswith("its worker was lost")


def test_a_node_without_the_shared_folder_says_so(tmp_path):
    from sdpo_bench.config.resolve import Request
    from sdpo_bench.sweep.ray_executor import remote_job
    from sdpo_bench.sweep.worker import FAILED, Task

    task = Task("a job", "run", Request(), Runtime(out=tmp_path / "nowhere"), "")
    code, message = remote_job(task, str(tmp_path / "no-probe"))
    assert code == FAILED
    assert "does not see the results folder" in message and "--out FOLDER" in message
    assert not RunFolder(tmp_path / "nowhere" / "runs" / "run").path.exists()
