"""Golden cases: recorded gradients through other people's optimisers.

Data flows: seeded inputs (parameters, gradients of each step, losses) -> an optimiser of torch or of momo-opt, in float32
-> cases/NAME.toml (our keys for the same method), cases/NAME.out.safetensors (their parameters). Two files of inputs serve
all cases. The same package in float64 must agree with its float32 self, or the case is ill-conditioned and refused; and a
case of Momo must show the branches that it was made for.

Usage: python make.py [FOLDER]   (default: `cases` beside this file)
"""

import math
import sys
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable
from unittest import mock

import momo
import momo.momo
import momo.momo_adam
import numpy as np
import torch
from safetensors.numpy import save_file

SEED = 20260
STEPS = 15
# Parameters are kept after these steps only, to keep the files small. The test compares movements from one kept step to
# the next, so every step counts.
KEPT = (0, 1, 2, 6, 13, 14)
SHAPES = {"tall": (48, 20), "wide": (16, 40), "square": (24, 24), "vector": (33,)}
MATRICES = [name for name, shape in SHAPES.items() if len(shape) == 2]
RANK = 3

# How far a float32 run may be from float64, as a part of the step.
AGREEMENT = 5e-5
# torch's Newton-Schulz rounds to bf16, whatever it is given: an input that rounds to the other side by chance changes the
# roundings after it, and the factor by 1e-2. The limit only says that the test's tolerance (3e-2) lies well above that.
AGREEMENT_BF16 = 1.5e-2


def inputs() -> dict[str, np.ndarray]:
    """Parameters near 0.2, gradients near 0.04 (low rank with a drifting mean, and noise), losses that fall from 4."""
    random = np.random.Generator(np.random.PCG64(SEED))
    made = {}
    for name, shape in SHAPES.items():
        rows, columns = (*shape, 1)[:2]
        made[f"param.{name}"] = 0.2 * random.standard_normal(shape)
        left, right = random.standard_normal((rows, RANK)), random.standard_normal((columns, RANK))
        phase = random.uniform(0, 2 * math.pi, RANK)
        for step in range(STEPS):
            weights = np.cos(phase + 0.15 * step)
            mean = (left * weights) @ right.T / math.sqrt(RANK)
            noise = 0.5 * random.standard_normal((rows, columns))
            made[f"grad.{step}.{name}"] = 0.04 * (mean + noise).reshape(shape)
    falling = 1.5 + 2.5 * np.exp(-np.arange(STEPS) / 5)
    made["loss"] = falling * np.exp(0.1 * random.standard_normal(STEPS))
    return {name: np.ascontiguousarray(values, np.float32) for name, values in made.items()}


@dataclass
class Case:
    """One method with one choice of keys: ours for the .toml, theirs as `make`."""

    name: str
    lr: float
    keys: dict
    make: Callable[[list[torch.Tensor]], torch.optim.Optimizer]
    tensors: list[str] = field(default_factory=lambda: list(SHAPES))
    hidden: list[str] = field(default_factory=list)
    # Newton-Schulz as torch computes it, in bf16, or in the type of the parameters.
    bf16: bool = False
    # What must happen in some step: "full" and "truncated" steps, "no step" at all, a "reset" of the lower bound.
    shows: set[str] = field(default_factory=set)

    @property
    def inputs(self) -> str:
        return "all" if self.tensors == list(SHAPES) else "matrices"

    @property
    def has_model(self) -> bool:
        return self.keys["method"].startswith("momo")


@dataclass
class Run:
    """Parameters before the first step and after each one, float64 copies; tau of each step; what happened."""

    parameters: list[dict[str, np.ndarray]]
    taus: list[float]
    happened: set[str]


class Watch:
    """Reads tau, which momo-opt keeps to itself: its only call of `min` is tau = min(lr/rho, t1). Its calls of `max` are
    one for t1, and where the lower bound is estimated one for the estimate and one more if the bound was reset."""

    def __init__(self) -> None:
        self.mins: list[tuple[float, float]] = []
        self.maxes = 0

    def min(self, full, truncated):
        self.mins.append((full, truncated))
        return min(full, truncated)

    def max(self, *values):
        self.maxes += 1
        return max(*values)

    def __enter__(self):
        self.patches = ExitStack()
        for module in (momo.momo, momo.momo_adam):
            for word in ("min", "max"):
                self.patches.enter_context(mock.patch.object(module, word, getattr(self, word), create=True))
        return self

    def __exit__(self, *error):
        self.patches.close()

    def last_step(self) -> tuple[float, set[str]]:
        """tau of the step just made and what happened in it."""
        [(full, truncated)], maxes = self.mins, self.maxes
        self.mins, self.maxes = [], 0
        happened = {"full" if full <= truncated else "no step" if truncated == 0.0 else "truncated"}
        return min(full, truncated), happened | ({"reset"} if maxes == 3 else set())


def run(case: Case, recorded: dict[str, np.ndarray], kind: torch.dtype) -> Run:
    """The package over the recorded gradients, all in `kind`."""
    tensor = lambda name: torch.from_numpy(recorded[name].copy()).to(kind)
    parameters = {name: torch.nn.Parameter(tensor(f"param.{name}")) for name in case.tensors}
    copy = lambda: {name: p.detach().double().numpy().copy() for name, p in parameters.items()}
    optimizer = case.make(list(parameters.values()))
    losses = tensor("loss")
    out = Run([copy()], [], set())
    # A clone and not the tensor itself: torch goes on to divide it in place, and without Nesterov it is the momentum.
    exact = mock.patch.object(torch.Tensor, "bfloat16", torch.Tensor.clone)
    with exact if not case.bf16 else nullcontext(), Watch() as watch:
        for step in range(STEPS):
            for name, parameter in parameters.items():
                parameter.grad = tensor(f"grad.{step}.{name}")
            if case.has_model:
                optimizer.step(loss=losses[step])
                tau, happened = watch.last_step()
                out.taus.append(tau)
                out.happened |= happened
            else:
                optimizer.step()
            out.parameters.append(copy())
    return out


def distance(case: Case, single: Run, double: Run) -> float:
    """The largest relative distance of a step, or of a tau, of the float32 run from the float64 run."""
    worst = 0.0
    for step in range(STEPS):
        for name in case.tensors:
            ours, theirs = (r.parameters[step + 1][name] - r.parameters[step][name] for r in (single, double))
            if np.any(theirs):
                worst = max(worst, np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
            elif np.any(ours):
                worst = math.inf
    for ours, theirs in zip(single.taus, double.taus):
        worst = max(worst, abs(ours - theirs) / theirs if theirs else math.inf if ours else 0.0)
    return worst


def toml(value) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(v)}" for key, v in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else repr(float(value)) if isinstance(value, float) else str(value)


def write(case: Case, result: Run, folder: Path) -> None:
    lines = [
        f"# inputs: {case.inputs}.in.safetensors",
        f"lr = {toml(case.lr)}",
        f"hidden = {toml(case.hidden)}",
        "",
        "[optimizer]",
        *(f"{key} = {toml(value)}" for key, value in case.keys.items()),
    ]
    (folder / f"{case.name}.toml").write_text("\n".join(lines) + "\n")
    out = {
        f"param.{step}.{name}": values.astype(np.float32)
        for step in KEPT
        for name, values in result.parameters[step + 1].items()
    }
    if case.has_model:
        out["effective_lr"] = np.array(result.taus, np.float32)
    save_file(out, folder / f"{case.name}.out.safetensors")


def adamw(name: str, lr: float, betas, epsilon: float, weight_decay: float) -> Case:
    keys = dict(method="adamw", betas=betas, epsilon=epsilon, weight_decay=weight_decay)
    make = lambda p: torch.optim.AdamW(p, lr=lr, betas=betas, eps=epsilon, weight_decay=weight_decay)
    return Case(name, lr, keys, make)


def sgd(name: str, lr: float, momentum: float, nesterov: bool) -> Case:
    keys = dict(method="sgd", momentum=momentum, nesterov=nesterov)
    return Case(name, lr, keys, lambda p: torch.optim.SGD(p, lr=lr, momentum=momentum, nesterov=nesterov))


def muon(name: str, lr: float, scaling: str, momentum: float, nesterov: bool, weight_decay: float, precision: str) -> Case:
    keys = dict(
        method="muon",
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        hidden_scale=1.0,
        scaling=scaling,
        polar=dict(method="newton-schulz", table="jordan", steps=5, precision=precision),
    )
    make = lambda p: torch.optim.Muon(
        p,
        lr=lr,
        weight_decay=weight_decay,
        momentum=momentum,
        nesterov=nesterov,
        adjust_lr_fn={"original": "original", "match-rms": "match_rms_adamw"}[scaling],
    )
    return Case(name, lr, keys, make, MATRICES, MATRICES, precision == "bf16")


def momo_sgd(name: str, lr: float, beta: float, weight_decay: float, bound, *shows: str) -> Case:
    keys = dict(method="momo", momentum=beta, weight_decay=weight_decay, momo=dict(lower_bound=bound))
    theirs = dict(use_fstar=True) if bound == "auto" else dict(lb=bound)
    make = lambda p: momo.Momo(p, lr=lr, beta=beta, weight_decay=weight_decay, bias_correction=False, **theirs)
    return Case(name, lr, keys, make, shows=set(shows))


def momo_adam(name: str, lr: float, betas, epsilon: float, weight_decay: float, bound, *shows: str) -> Case:
    keys = dict(
        method="momo-adam", betas=betas, epsilon=epsilon, weight_decay=weight_decay, momo=dict(lower_bound=bound)
    )
    theirs = dict(use_fstar=True) if bound == "auto" else dict(lb=bound)
    make = lambda p: momo.MomoAdam(
        p, lr=lr, betas=betas, eps=epsilon, weight_decay=weight_decay, divide=True, **theirs
    )
    return Case(name, lr, keys, make, shows=set(shows))


# A large epsilon in some cases: with a small one, nobody could see where it is added.
CASES = [
    adamw("adamw", 0.01, (0.9, 0.999), 1e-8, 0.0),
    adamw("adamw-decay", 0.01, (0.8, 0.95), 1e-2, 0.1),
    sgd("sgd-plain", 0.2, 0.0, False),
    sgd("sgd-heavy-ball", 0.1, 0.9, False),
    sgd("sgd-nesterov", 0.1, 0.9, True),
    muon("muon-original", 0.02, "original", 0.95, True, 0.0, "fp32"),
    muon("muon-original-plain-decay", 0.02, "original", 0.9, False, 0.1, "fp32"),
    muon("muon-match-rms-decay", 0.05, "match-rms", 0.95, True, 0.1, "fp32"),
    muon("muon-original-decay-bf16", 0.02, "original", 0.95, True, 0.1, "bf16"),
    muon("muon-match-rms-plain-bf16", 0.05, "match-rms", 0.9, False, 0.0, "bf16"),
    momo_sgd("momo", 1.0, 0.9, 0.0, 0.0, "full", "truncated"),
    momo_sgd("momo-small-decay", 0.05, 0.9, 0.1, 0.0, "full"),
    momo_sgd("momo-bound", 0.2, 0.9, 0.0, 2.2, "full", "truncated", "no step"),
    momo_sgd("momo-bound-decay", 0.1, 0.9, 0.1, 2.2, "full", "truncated", "no step"),
    momo_sgd("momo-auto", 0.5, 0.9, 0.0, "auto", "full", "truncated", "reset"),
    momo_sgd("momo-auto-decay", 1.0, 0.8, 0.1, "auto", "full", "truncated", "reset"),
    momo_adam("momo-adam", 0.01, (0.9, 0.999), 1e-8, 0.0, 0.0, "full", "truncated"),
    momo_adam("momo-adam-decay", 0.05, (0.8, 0.95), 1e-2, 0.1, 0.0, "full", "truncated"),
    momo_adam("momo-adam-bound-decay", 0.02, (0.9, 0.999), 1e-8, 0.1, 2.2, "full", "truncated", "no step"),
    momo_adam("momo-adam-auto-decay", 0.02, (0.9, 0.999), 1e-8, 0.1, "auto", "full", "truncated", "reset"),
]


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "cases"
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    recorded = inputs()
    save_file(recorded, folder / "all.in.safetensors")
    of_matrices = {name: values for name, values in recorded.items() if not name.endswith(".vector")}
    save_file(of_matrices, folder / "matrices.in.safetensors")
    refused = []
    for case in CASES:
        single, double = run(case, recorded, torch.float32), run(case, recorded, torch.float64)
        far = distance(case, single, double)
        print(f"{case.name:28} float32 is {far:.1e} from float64; {', '.join(sorted(single.happened)) or '-'}")
        if far > (AGREEMENT_BF16 if case.bf16 else AGREEMENT):
            refused.append(f"{case.name}: float32 and float64 disagree; choose better numbers")
        if not case.shows <= single.happened:
            refused.append(f"{case.name}: no step shows {case.shows - single.happened}; choose other numbers")
        write(case, single, folder)
    if refused:
        sys.exit("\n".join(refused))


if __name__ == "__main__":
    main()
