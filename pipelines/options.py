"""Options compiled into a pipeline: image, machines of its tasks, retries, caching. kfp does not check them."""

import dataclasses
import re

from pipelines.components import IMAGE
from tfnas.common.errors import UserError

STAGES = ("check", "search", "sample", "select", "retrain", "evaluate", "export", "report")
# What Vertex AI calls its accelerators (google.cloud.aiplatform_v1.AcceleratorType).
VERTEX_ACCELERATORS = (
    "NVIDIA_TESLA_K80",
    "NVIDIA_TESLA_P100",
    "NVIDIA_TESLA_V100",
    "NVIDIA_TESLA_P4",
    "NVIDIA_TESLA_T4",
    "NVIDIA_TESLA_A100",
    "NVIDIA_A100_80GB",
    "NVIDIA_L4",
    "NVIDIA_H100_80GB",
    "NVIDIA_H100_MEGA_80GB",
    "NVIDIA_H200_141GB",
    "NVIDIA_B200",
    "NVIDIA_GB200",
    "NVIDIA_RTX_PRO_6000",
    "TPU_V2",
    "TPU_V3",
    "TPU_V4_POD",
    "TPU_V5_LITEPOD",
)
# The resources that device plugins give to Kubernetes. TensorFlow's own wheels use NVIDIA's only.
KUBERNETES_ACCELERATORS = ("nvidia.com/gpu",)
_ACCELERATORS = {
    "local": (),
    "kubeflow": KUBERNETES_ACCELERATORS,
    "vertex": VERTEX_ACCELERATORS,
    "": (*KUBERNETES_ACCELERATORS, *VERTEX_ACCELERATORS),
}
_COUNTS = (1, 2, 4, 8, 16)  # what kfp takes


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a compiled pipeline."""

    image: str = IMAGE  # of all tasks, built from pipelines/Dockerfile
    accelerator_type: str = ""  # of the tasks that train or rank; empty: none
    accelerator_count: int = 0  # in each of them
    cpu: str = ""  # cores of each task that loads TensorFlow, such as '4' or '500m'; empty: the engine's default
    memory: str = ""  # of the same tasks, such as '16G'
    retries: int = 0  # of a task that fails
    backoff: str = "60s"  # before the first retry; doubled before each further one
    # The report always runs, because the metadata of its page say where the model is.
    uncached: tuple[str, ...] = ("report",)

    def check(self, runner: str = "") -> "Options":
        """Returns self.

        Args:
            runner: 'local', 'kubeflow' or 'vertex', if that is known: they call accelerators differently.

        Raises:
            UserError: for the first value out of range.
        """
        _require(bool(re.fullmatch(r"[\w][\w.:/@-]*", self.image)), "image", self.image, "an image such as NAME:TAG")
        known = _ACCELERATORS[runner]
        if self.accelerator_type or self.accelerator_count:
            expected = (
                f"one of {', '.join(known)}" if known else "left out: the local runner has this machine's devices"
            )
            _require(self.accelerator_type in known, "accelerator_type", self.accelerator_type, expected)
            expected = f"one of {', '.join(map(str, _COUNTS))}, with accelerator_type"
            _require(self.accelerator_count in _COUNTS, "accelerator_count", self.accelerator_count, expected)
        expected = "cores such as '4' or '500m'"
        _require(bool(re.fullmatch(r"|[1-9]\d*m?|\d+\.\d+", self.cpu)), "cpu", self.cpu, expected)
        expected = "a number with a unit, such as '16G' or '16Gi'"
        _require(bool(re.fullmatch(r"|[1-9]\d*([EPTGMK]i?)", self.memory)), "memory", self.memory, expected)
        _require(0 <= self.retries <= 10, "retries", self.retries, "from 0 to 10")
        _require(bool(re.fullmatch(r"\d+s", self.backoff)), "backoff", self.backoff, "seconds such as '60s'")
        for stage in self.uncached:
            _require(stage in STAGES, "uncached", stage, f"stages of {', '.join(STAGES)}")
        return self


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise UserError(f"--{name}: {expected} expected. Received: {value!r}")
