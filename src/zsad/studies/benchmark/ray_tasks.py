"""Steps of a benchmark as tasks of Ray, on this machine or a cluster.

Every path of the request must mean the same on all machines, and zsad has to be installed on all of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from zsad.device import use_threads
from zsad.errors import ConfigError, ZsadError
from zsad.scale.ray_engine import Cluster, joined_cluster, need_ray, ray_errors
from zsad.studies.benchmark.cell_runner import CellRunner
from zsad.studies.benchmark.cells import Step
from zsad.studies.benchmark.execution import Executor, StepOutcome, Steps, attempt, blocked
from zsad.studies.benchmark.plan import plan_benchmark
from zsad.studies.benchmark.request import BenchmarkRequest


def ray_executor(request: BenchmarkRequest) -> Executor:
    """Return what does the steps of a request as tasks of Ray.

    Raises:
        ConfigError: Ray is not installed, or the device is a single GPU by its number.
    """
    need_ray("--jobs and --address")
    if request.device.startswith("cuda:"):
        raise ConfigError(
            f"--device {request.device} is one GPU of one machine; with --jobs, take --device cuda"
        )

    def execute(runner: CellRunner, steps: Steps) -> Iterator[StepOutcome]:
        return _run(request, steps)

    return execute


def _run(request: BenchmarkRequest, steps: Steps) -> Iterator[StepOutcome]:
    """Yield the outcome of each step as it ends, `request.jobs` of them at work.

    Raises:
        EngineError: no cluster at the address, or it broke down.
    """
    if not steps:
        return
    ray = need_ray()
    with joined_cluster(ray, Cluster(request.address, request.jobs)), ray_errors(ray):
        gpus = 0.0 if request.device == "cpu" else float(ray.cluster_resources().get("GPU", 0))
        task = ray.remote(_do).options(num_cpus=1, num_gpus=min(1.0, gpus / request.jobs))
        document = ray.put(request.model_dump_json())
        waiting, running, failed = dict(steps), dict[Any, Step](), dict[Step, ZsadError]()
        while waiting or running:
            for step, needed in list(waiting.items()):
                unfinished = any(other in waiting or other in running.values() for other in needed)
                if unfinished or len(running) == request.jobs:
                    continue
                del waiting[step]
                outcome = blocked(step, needed, failed)
                if outcome is None:
                    running[task.remote(document, str(Path.cwd()), step)] = step
                else:
                    failed[step] = outcome.error or ZsadError()
                    yield outcome
            if running:
                [ready], _ = ray.wait(list(running), num_returns=1)
                outcome = ray.get(ready)
                if outcome.error is not None:
                    failed[running[ready]] = outcome.error
                del running[ready]
                yield outcome


def _do(document: str, folder: str, step: Step) -> StepOutcome:
    """Do a step in a worker of Ray."""
    return attempt(_runner(document, folder), step)


@lru_cache(maxsize=1)
def _runner(document: str, folder: str) -> CellRunner:
    """Return the runner of a request, made once in each worker."""
    os.chdir(folder)
    request = BenchmarkRequest.model_validate_json(document)
    use_threads(request.threads)
    return CellRunner(plan_benchmark(request))
