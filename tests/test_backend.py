"""Which backend and precision a run ends up with."""

import functools

import pytest
import torch

from trqam_fast import self_test
from trqam_fast.errors import RunError
from trqam_fast.kernels import BackendError
from trqam_fast.kernels.dispatch import TRITON, choose_backend, precisions_of
from trqam_fast.training import backend
from trqam_fast.training.flags import parse_config


@pytest.fixture
def gpu(monkeypatch):
    """Pretend that there is a GPU; the self-test's answer and its calls."""
    calls, problems = [], []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(
        backend,
        "triton_problems",
        lambda device, precision, *_: calls.append(precision) or problems,
    )
    before = torch.get_float32_matmul_precision()
    yield calls, problems
    torch.set_float32_matmul_precision(before)


def settle(*flags, act_dim=2):
    return backend.settle_backend(parse_config(["--device", "cuda", *flags]), act_dim)


@pytest.mark.parametrize(
    ("flags", "settled"),
    [
        ([], ("triton", "tf32")),
        (["--precision", "bf16"], ("triton", "bf16")),
        (["--backend", "reference"], ("reference", "ieee")),
        (["--backend", "triton", "--precision", "ieee"], ("triton", "ieee")),
        (["--backend", "triton"], ("triton", "tf32")),
        (["--backend", "cpp"], ("cpp", "ieee")),
        (["--plan", "tiles"], ("triton", "tf32")),
        (["--plan", "layers"], ("reference", "tf32")),
        (["--plan", "layers", "--precision", "ieee"], ("reference", "ieee")),
    ],
)
def test_sound_kernels(flags, settled, gpu, capsys):
    calls, _ = gpu
    config = settle(*flags)
    assert (config.backend, config.precision) == settled
    assert calls == ([] if {"--backend", "layers"} & set(flags) else [settled[1]])
    assert capsys.readouterr().err == ""


def test_a_failed_self_test_warns_once(gpu, capsys):
    gpu[1].extend(["mlp is off", "also wrong"])
    config = settle()
    assert (config.plan, config.backend, config.precision) == ("layers", "reference", "tf32")
    assert capsys.readouterr().err.splitlines() == [
        f"warning: plan {name} cannot be used on cuda: mlp is off"
        for name in ("tiles", "tiles-pdl")
    ]
    chosen = functools.partial(choose_backend, "mlp", config.backend, precision=config.precision)
    assert chosen(torch.device("cuda")) == "reference"
    with pytest.raises(BackendError, match="'reference' has no precision 'tf32'; use 'ieee'"):
        chosen(torch.device("cpu"))
    with pytest.raises(BackendError, match="--precision bf16 needs the Triton kernels: mlp is off"):
        settle("--precision", "bf16")


@pytest.mark.parametrize(
    ("flags", "act_dim", "reason"),
    [
        (["--actor-hidden-dims", "1056"], 2, "up to 1024 units, and the network has 1056"),
        (["--value-hidden-dims", *"8888888"], 2, "up to 6 hidden layers, and the network has 7"),
        ([], 130, "up to 128 outputs, and the network has 130"),
        (
            ["--action-chunking", "--horizon-length", "5"],
            26,
            "128 outputs, and the network has 130",
        ),
        (["--algo", "dsrl"], 65, "128 outputs, and the network has 130"),  # a mean and a deviation
        (["--algo", "qam-e", "--edit-scale", "0.1"], 65, "outputs, and the network has 130"),
    ],
)
def test_networks_beyond_the_kernels_train_with_the_reference(flags, act_dim, reason, gpu, capsys):
    assert settle(*flags, act_dim=act_dim).backend == "reference"
    assert reason in capsys.readouterr().err
    assert gpu[0] == [], "no self-test of kernels that cannot be used"


@pytest.mark.parametrize(
    ("op", "backends", "plans"),
    [
        ("adam_step", TRITON, ["layers"]),  # one kernel, whatever launches the networks' passes
        ("mlp", TRITON, ["layers"]),
        ("mlp", ("triton_pdl",), ["tiles", "layers"]),
    ],
)
def test_a_plan_with_a_wrong_kernel_does_not_train(op, backends, plans, gpu, monkeypatch):
    def problem(name, backend, *_):
        return "", f"{name} is off" if name == op and backend in backends else ""

    monkeypatch.setattr(backend, "triton_problems", self_test.triton_problems)
    monkeypatch.setattr(self_test, "problem", problem)
    config = parse_config(["--device", "cuda"])
    assert [settled.plan for settled in backend.working_plans(config, 2)] == plans
    with pytest.raises(BackendError, match=f"--plan tiles-pdl cannot be used: {op} is off"):
        settle("--plan", "tiles-pdl")


def test_the_self_test_has_the_runs_numbers_of_an_action(gpu, monkeypatch):
    tested = set()

    def deviation(op, backend, device, precision, sizes):
        tested.add(sizes.dim)
        return 0.0

    monkeypatch.setattr(backend, "triton_problems", self_test.triton_problems)
    monkeypatch.setattr(self_test, "deviation", deviation)
    flags = ["--device", "cuda", "--horizon-length", "5", "--action-chunking"]
    next(backend.working_plans(parse_config(flags), 21))
    assert tested == {self_test.SMALL.dim, 105}


def test_old_gpus_train_with_the_reference(gpu, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert settle().backend == "reference"
    assert "compute capability 8.0 or higher" in capsys.readouterr().err


def test_a_gpu_that_the_self_test_broke_ends_the_run(gpu, monkeypatch):
    def broken(device):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    with pytest.raises(RunError, match=r"illegal memory access .*; run again with --plan layers"):
        settle()


@pytest.mark.parametrize(
    ("flags", "clips"),
    [
        (["--algo", "fql"], (True, False)),
        (["--algo", "trqam"], (True, True)),
        (["--algo", "trqam", "--no-clip-grad"], (False, False)),
    ],
)
def test_cloning_clips_also_for_what_fine_tunes_without(flags, clips):
    config = backend.settle_backend(parse_config([*flags, "--preset", "smoke"]), 2)
    agents = (backend.make_agent(config, algo, 3, 2) for algo in ("bc", config.algo))
    assert tuple(agent.config.clip_grad for agent in agents) == clips


def test_on_the_cpu_nothing_is_asked(gpu):
    config = backend.settle_backend(parse_config([]), 2)
    assert (config.backend, config.precision) == ("auto", "ieee")
    assert gpu[0] == []


def test_without_the_extension_the_cpu_says_so(monkeypatch, capsys):
    """Once for a run that did not ask; a request for the reference is met in silence."""
    backend.settle_backend(parse_config([]), 2)
    backend.settle_backend(parse_config(["--backend", "reference"]), 2)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(backend, "load_extension", lambda: (None, "no module"))
    backend.settle_backend(parse_config(["--backend", "reference"]), 2)
    assert capsys.readouterr().err == ""
    backend.settle_backend(parse_config([]), 2)
    assert capsys.readouterr().err.count("no compiled extension here") == 1


def test_the_reference_alone_asks_whether_tf32_is_allowed(monkeypatch):
    """The question breaks a compiled graph of the other backends' ops, on a GPU alone."""

    def refuse():
        raise AssertionError("asked")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuse)
    for name in ("cpp", *TRITON):
        assert precisions_of(name, torch.device("cuda"))
    assert precisions_of("reference", torch.device("cpu")) == ("ieee",)
    with pytest.raises(AssertionError, match="asked"):
        precisions_of("reference", torch.device("cuda"))
