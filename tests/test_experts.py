"""Action experts: conventions, padding, low-rank copies, updates under a budget.

`Expert` has the interface of LeRobot's SmolVLA and pi0, their time, sign and integrator. Longer
than 400 lines, as all of it is of that expert.
"""

import importlib
import io
import re
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from examples import action_experts
from examples.action_experts import BATCH as ROWS
from examples.action_experts import CHUNK, STEPS, WIDTH
from tests.helpers import assert_equal64, draw
from trqam_fast.experts import (
    FlowField,
    LowRank,
    check_field,
    match_sqam,
    match_trqam,
    terminal_adjoint,
)
from trqam_fast.kernels import (
    AffinePath,
    Context,
    MLPWeights,
    NoiseSchedule,
    adjoint_matching,
    adjoint_matching_steps,
    lean_adjoint,
    ode_rollout,
    sde_rollout,
    velocity_along,
)


class Expert(nn.Module):
    """Chunks from noise at time 1, conditioned on a prefix's cache; u = noise - action."""

    checkpointed = False

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.state_encoder = nn.Linear(4, 8, dtype=dtype)
        self.expert_in = nn.Linear(WIDTH + 1 + 8, 32, dtype=dtype)
        self.expert_mid = nn.Linear(32, 32, dtype=dtype)
        self.action_out = nn.Linear(32, WIDTH, dtype=dtype)
        self.calls = 0

    def prefix(self, batch):
        self.calls += 1
        return {"past_key_values": {0: self.state_encoder(batch["state"].to(self.dtype))}}

    @property
    def dtype(self):
        return self.action_out.weight.dtype

    def denoise_step(self, past_key_values, x_t, timestep):
        assert x_t.shape[1:] == (CHUNK, WIDTH) and timestep.shape == x_t.shape[:1]
        state = past_key_values[0].unsqueeze(1).expand(-1, CHUNK, -1)
        time = timestep[:, None, None].expand(-1, CHUNK, 1)
        hidden = torch.nn.functional.silu(self.expert_in(torch.cat([x_t, time, state], -1)))
        if self.checkpointed:
            hidden = checkpoint(self.middle, hidden, use_reentrant=False)
        else:
            hidden = self.middle(hidden)
        return self.action_out(hidden)

    def middle(self, hidden):
        return torch.nn.functional.silu(self.expert_mid(hidden))

    def sample_actions(self, batch, noise):
        """LeRobot's integrator: from time 1 down to 0."""
        prefix, x = self.prefix(batch), noise
        for step in range(STEPS):
            time = torch.tensor(1.0 - step / STEPS, dtype=x.dtype).expand(x.shape[0])
            x = x - self.denoise_step(**prefix, x_t=x, timestep=time) / STEPS
        return x

    def field(self, **options):
        options = {"time": "noise_at_1", "t_min": 0.001} | options
        return FlowField(
            lambda prefix, x, time: self.denoise_step(**prefix, x_t=x, timestep=time),
            action_shape=(CHUNK, WIDTH),
            prepare=self.prefix,
            **options,
        )


def make_expert(dtype=torch.float64):
    torch.manual_seed(0)
    return Expert(dtype)


@pytest.fixture(scope="module")
def trained():
    """An expert that has learned the demonstrations, by flow matching in its own convention."""
    expert, generator = make_expert(torch.float32), torch.Generator().manual_seed(1)
    optimiser, batch = torch.optim.Adam(expert.parameters(), 3e-3), action_experts.observations()
    for _ in range(300):
        actions = action_experts.demonstrations(batch, generator)
        noise = torch.randn(actions.shape, generator=generator)
        time = 0.001 + 0.999 * torch.rand(ROWS, generator=generator)
        x = time[:, None, None] * noise + (1 - time[:, None, None]) * actions
        u = expert.denoise_step(**expert.prefix(batch), x_t=x, timestep=time)
        loss = (u - (noise - actions)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return expert


def test_ode_is_the_experts_own_sampling():
    """Time, sign, shape and context: the policy's own loop, to rounding."""
    expert, batch = make_expert(), action_experts.observations()
    field, x0 = expert.field(), draw(ROWS, CHUNK, WIDTH)
    with torch.no_grad():
        own = expert.sample_actions(batch, x0)
        calls = expert.calls
        ours = ode_rollout(field, field.context(batch), x0.view(1, ROWS, -1), STEPS)
    assert expert.calls == calls + 1
    assert_equal64([ours.view_as(own)], [own])


def test_times_that_a_module_is_asked_for():
    asked = []

    def module(context, x, time):
        asked.append(time.unique().tolist())
        return torch.zeros_like(x)

    x = draw(1, 2, 3)
    for options in ({}, {"time": "noise_at_1"}, {"time": "noise_at_1", "t_min": 0.001}):
        for t in (0.0, 0.25, 1.0):
            FlowField(module, **options)(None, x, torch.full((1, 2, 1), t, dtype=x.dtype))
    assert asked == [[0.0], [0.25], [1.0], [1.0], [0.75], [0.0], [1.0], [0.75], [0.001]]
    for time, sign, expected in (("noise_at_0", None, 1), ("noise_at_1", None, -1),
                                 ("noise_at_0", -1, -1), ("noise_at_1", 1, 1)):  # fmt: skip
        field = FlowField(lambda c, x, t: x, time, sign)
        assert torch.equal(field(None, x, x[..., :1]), expected * x)


def test_flow_field_refuses():
    x = draw(2, 3, 4)
    with pytest.raises(ValueError, match="time is 'reversed'; choose"):
        FlowField(nn.Identity(), "reversed")
    with pytest.raises(ValueError, match="sign is 2"):
        FlowField(nn.Identity(), sign=2)
    with pytest.raises(ValueError, match="t_min is 1.0"):
        FlowField(nn.Identity(), t_min=1.0)
    with pytest.raises(TypeError, match="path is a NoiseSchedule; pass an AffinePath"):
        FlowField(nn.Identity(), path=NoiseSchedule.flow(2))
    with pytest.raises(ValueError, match="x has 2 runs; .*pass .1, B, D., the actions"):
        FlowField(lambda c, x, t: x)(None, x, x[..., :1])
    x = x[:1]
    with pytest.raises(ValueError, match=r"x has 4 dimensions; action_shape is \(3, 2\)"):
        FlowField(lambda c, x, t: x, action_shape=(3, 2))(None, x, x[..., :1])
    with pytest.raises(ValueError, match=r"module returned \[3, 4\]; expected \[3, 2, 2\]"):
        FlowField(lambda c, x, t: x.flatten(1), action_shape=(2, 2))(None, x, x[..., :1])
    with pytest.raises(TypeError, match="module returned a tuple"):
        FlowField(lambda c, x, t: (x,))(None, x, x[..., :1])


def exact_expert(context, x, time):
    """u = -E[a - X_0 | x] of actions N(0.3, 0.5^2), with noise at time 1."""
    t = 1 - time.view(-1, 1, 1)
    variance = (1 - t) ** 2 + 0.25 * t**2
    return -(0.3 + (0.25 * t - (1 - t)) / variance * (x - 0.3 * t))


@pytest.mark.parametrize("masked", [False, True])
def test_check_field_names_what_is_turned(masked):
    actions, s = 0.3 + 0.5 * draw(1, 64, CHUNK * WIDTH), draw(1, 64, 1)
    mask = None
    if masked:
        mask = torch.arange(CHUNK * WIDTH) % WIDTH < action_experts.REAL
        actions[..., ~mask] = 7.0
    for options, ok, says in (
        ({"time": "noise_at_1"}, True, "looks as it should"),
        ({}, False, "looks time-reversed .*time='noise_at_1', sign=-1"),
        ({"time": "noise_at_1", "sign": 1}, False, "the wrong sign .*'noise_at_1', sign=-1"),
        ({"sign": -1}, False, "time-reversed but .*time='noise_at_1', sign=-1"),
    ):
        field = FlowField(exact_expert, action_shape=(CHUNK, WIDTH), **options)
        found = check_field(field, s, actions, action_mask=mask)
        assert found.ok is ok and re.search(says, found.message), found
    for useless in (lambda s, x, t: 0.0 * x, lambda s, x, t: x.sin()):
        found = check_field(useless, s, actions, action_mask=mask)
        assert not found.ok and "fits no convention clearly" in found.message, found


def test_check_field_names_what_no_convention_mends():
    """Two answers for one input, and a velocity that its time changes little."""
    actions, s = 0.05 * draw(1, 64, 3), draw(1, 64, 1)
    noisy = nn.Dropout(0.1)

    def steady(s, x, t):
        return -1.5 * x

    for field, says in (
        (lambda s, x, t: noisy(x), r"gives two answers for one input \(.*call .eval\(\)"),
        (steady, "knows these data, but hardly depends on t, .*'as it should'"),
    ):
        found = check_field(field, s, actions)
        assert not found.ok and re.search(says, found.message), found
    noisy.eval()
    assert "two answers" not in check_field(lambda s, x, t: noisy(x), s, actions).message


def test_check_field_tells_of_a_sweep_that_turns_signs():
    """The exact field of N(0, s^2) against its factors in closed form; and a field with none."""

    def field(deviation):
        def slope(t):
            return (t * deviation**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * deviation**2)

        return slope, lambda s, x, t: slope(t) * x

    s = draw(1, 64, 1)
    for deviation, steps, turns in ((0.1, 4, 2), (0.3, 4, 1), (0.05, 10, 8), (0.3, 10, None)):
        slope, exact = field(deviation)
        actions = deviation * draw(1, 64, 3, seed=3)
        found = check_field(exact, s, actions, flow_steps=steps)
        assert found.ok
        factors = [1 + (2 * slope((k + 1) / steps) - steps / (k + 1)) / steps for k in range(steps)]
        if turns is None:
            assert min(factors[1:]) > 0 and found.message.endswith("mean square)")
        else:
            expected = f"; step {turns} of a sweep of {steps} multiplies adjoints by "
            assert f"{expected}{factors[turns]:.2f} and" in found.message
            assert min(factors[1:]) == factors[turns]
        assert check_field(exact, s, actions, flow_steps=40).message.endswith("mean square)")
    blind = torch.no_grad()(exact)
    assert check_field(blind, s, actions, flow_steps=None).ok
    with pytest.raises(RuntimeError, match="without a gradient with respect to x"):
        check_field(blind, s, actions)


def test_check_field_on_another_path():
    """The exact field of one action's path, on the path it belongs to and on another."""
    path, action = AffinePath.cosine(), draw(1, 1, 3, seed=3)

    def field(s, x, t):
        up, down = path.slopes(t)
        noise = (x - path.alpha(t) * action) / path.beta(t)
        return up * action + down * noise

    actions, s = action.expand(1, 16, 3), draw(1, 16, 2)
    assert check_field(field, s, actions, path=path).errors["as it should"] < 1e-20
    assert check_field(field, s, actions).errors["as it should"] > 0.01
    wrapped = FlowField(lambda c, x, t: field(None, x[None], t[None, :, None])[0], path=path)
    assert check_field(wrapped, s, actions).errors["as it should"] < 1e-20
    assert wrapped.noise_schedule(5) is path.noise_schedule(5)
    x0, errors = draw(1, 16, 3, seed=7), []
    for steps in (20, 200):
        errors.append(float((ode_rollout(wrapped, s, x0, steps) - action).abs().max()))
    assert errors[1] < errors[0] / 8


def test_another_path_is_never_taken_for_the_linear_one():
    """Where the schedule of a field's path is missing, or SQAM's bridge would lie on another."""
    x0, noise = draw(1, 4, 3), draw(1, 4, 4, 3, seed=1)
    s, points, lam = draw(1, 4, 2), draw(1, 5, 4, 3, seed=2), torch.ones(1, dtype=torch.float64)
    straight = FlowField(lambda c, x, t: x.sin(), path=AffinePath(lambda t: t, lambda t: 1 - t))
    curved = FlowField(lambda c, x, t: x.sin(), path=AffinePath.cosine())
    base = LowRank(nn.Sequential(nn.Linear(3, 3))).base(curved)

    def matched(field, other, **options):
        return adjoint_matching_steps(field, other, s, points, points, lam, **options)

    def sqam(field, other):
        return match_sqam(field, other, s, critic, x0, noise, lam, flow_steps=5)

    asks = r"has a path other than the linear one, and schedule is None; pass schedule="
    for call, message in (
        (lambda: sde_rollout(curved, base, s, x0, noise), f"sde_rollout: velocity {asks}velocity"),
        (lambda: sde_rollout(straight, base, s, x0, noise), f"sde_rollout: base_velocity {asks}"),
        (lambda: lean_adjoint(base, s, points, x0), rf"base_velocity {asks}.*noise_schedule\(4\)"),
        (lambda: matched(curved, straight), f"adjoint_matching_steps: velocity {asks}"),
        (lambda: sqam(curved, straight), "match_sqam: field has a path other than the linear one"),
        (lambda: sqam(straight, base), "match_sqam: base has a path other than the linear one"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    chains = [
        sde_rollout(*fields, s, x0, noise, schedule=schedule).trajectory
        for fields, schedule in (
            ((straight, straight), None),
            ((straight, straight), NoiseSchedule.flow(5)),
            ((curved, base), curved.noise_schedule(5)),
        )
    ]
    assert torch.equal(*chains[:2]) and not torch.allclose(*chains[1:])


def test_terminal_adjoint():
    """Minus the critic's gradient, zero outside of each dimension's bounds and in padding."""
    x = torch.tensor([[[0.5, 1.5, 3.0, 9.0], [-0.5, 2.5, -3.0, 9.0]]], dtype=torch.float64)
    low = torch.tensor([-1.0, 0.0, -4.0, -10.0])
    mask = torch.tensor([True, True, True, False])
    seen = []

    def critic(a):
        seen.append(a.detach())
        return a.square().sum(-1)

    found = terminal_adjoint(critic, x, low=low, high=torch.tensor([1, 2, 4, 10]), action_mask=mask)
    expected = torch.tensor([[[-1.0, -3.0, -6.0, 0.0], [1.0, 0.0, 6.0, 0.0]]])
    assert torch.equal(found, expected.double()) and not found.requires_grad
    assert seen[0][..., 3].eq(0).all() and float(seen[0][0, 1, 1]) == 2.0
    with pytest.raises(ValueError, match=r"critic returned \[1, 2, 1\]; expected \[1, 2\]"):
        terminal_adjoint(lambda a: a[..., :1], x)


def chosen(name):
    return "expert" in name or "action" in name


def low_rank_of(expert, **options):
    return LowRank(expert, 4, choose=chosen, **options)


def changed(copy):
    for index, up in enumerate(copy.up.values()):
        up.data.copy_(draw(*up.shape, seed=index))
    return copy


def test_low_rank_updates_of_any_module():
    """Of a layer itself, of layers with any name, once at a time; removed, all is as it was."""
    layer = nn.Linear(3, 2)
    named = nn.ModuleDict({"values ": nn.Linear(3, 2)})
    named._modules["values"] = named._modules.pop("values ")
    named._modules["values"].bias.requires_grad_(False)
    for module in (layer, named):
        trained = [p.requires_grad for p in module.parameters()]
        copy = LowRank(module, 2)
        assert len(list(copy.parameters())) == 2
        assert not any(p.requires_grad for p in module.parameters())
        with pytest.raises(ValueError, match="has low-rank updates already; remove them first"):
            LowRank(module)
        copy.remove()
        assert [p.requires_grad for p in module.parameters()] == trained
        LowRank(module)


@pytest.mark.parametrize("layer", [nn.Dropout(0.1), nn.BatchNorm1d(3), nn.Dropout(0.0)])
def test_low_rank_warns_of_what_moves_its_base(layer, recwarn):
    """A dropout or a batch normalisation in training mode, and nothing else."""
    module = nn.Sequential(nn.Linear(3, 3), layer)
    LowRank(module.eval()).remove()
    assert not recwarn
    LowRank(module.train())
    says = [str(warning.message) for warning in recwarn]
    if getattr(layer, "p", None) == 0.0:
        assert not says
    else:
        assert len(says) == 1
        assert says[0].startswith(f"LowRank: 1 is a {type(layer).__name__} in training mode")


def through_a_file(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [deepcopy, through_a_file])
def test_a_copied_module_has_updates_of_its_own(copied):
    module, x = nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 2)).double(), draw(5, 3)
    before, low_rank = module(x), changed(LowRank(module, 2))
    tuned = module(x)
    twin, its = copied((module, low_rank))
    alone = copied(module)
    for up in low_rank.up.values():
        up.data.add_(1.0)
    assert torch.equal(twin(x), tuned) and torch.equal(alone(x), tuned)
    with its.off():
        assert torch.equal(twin(x), before)
    low_rank.remove()
    assert torch.equal(twin(x), tuned)
    its.remove()
    assert torch.equal(twin(x), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_merged_updates_are_in_the_weights(dtype):
    torch.manual_seed(0)
    module, x = nn.Sequential(nn.Linear(3, 2)).to(dtype), draw(5, 3, dtype=dtype)
    weight = module[0].weight.detach().clone()
    low_rank = LowRank(module, 2, scale=0.5)
    updates = changed(low_rank).state_dict()
    wider = torch.float64 if dtype is torch.float64 else torch.float32
    assert all(update.dtype is wider for update in updates.values())
    tuned = module(x)
    assert tuned.dtype is dtype
    low_rank.merge()
    expected = weight.to(wider) + 0.5 * updates["up./0"] @ updates["down./0"]
    assert torch.equal(module.state_dict()["0.weight"], expected.to(dtype))
    assert module[0].weight.requires_grad
    tolerance = {torch.bfloat16: 0.05, torch.float32: 1e-5, torch.float64: 1e-13}[dtype]
    torch.testing.assert_close(module(x), tuned, rtol=0.0, atol=tolerance)
    with pytest.raises(RuntimeError, match="merge has no updates to add; they are off the module"):
        low_rank.merge()


def test_packed_weights_are_not_merged():
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    low_rank = changed(LowRank(module, 1))
    module[1].weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    before = module[0].weight.clone()
    with pytest.raises(TypeError, match=r"1 has weights of torch.int8, to which merge cannot add"):
        low_rank.merge()
    assert torch.equal(module[0].weight, before)


def test_updates_of_bfloat16_weights_learn_at_usual_rates():
    """By a field under autocast: A moves by steps of 1e-5; the copy starts as the base."""
    expert, batch = make_expert(torch.bfloat16), action_experts.observations()
    field = expert.field()
    field.module = torch.autocast("cpu", torch.bfloat16)(field.module)
    low_rank = low_rank_of(expert)
    down = [each for key, each in low_rank.named_parameters() if key.startswith("down")]
    before = deepcopy(down)
    optimiser = torch.optim.Adam(low_rank.parameters(), 1e-5)
    x0 = draw(1, ROWS, CHUNK * WIDTH, dtype=torch.float32)
    noise = draw(1, STEPS - 1, *x0.shape[1:], seed=1, dtype=torch.float32)
    given = (field, low_rank.base(field), field.context(batch), critic, x0, noise, torch.ones(1))
    kls = []
    for _ in range(2):
        optimiser.zero_grad()
        kls.append(match_trqam(*given, horizon=CHUNK).path_kl)
        optimiser.step()
    assert kls[0] == 0.0 and kls[1] > 0.0
    for now, old in zip(down, before, strict=True):
        assert (now != old).float().mean() > 0.5


def test_no_update_of_a_layer_that_is_never_called():
    attention = nn.MultiheadAttention(4, 2)
    module = nn.ModuleDict({"attention": attention, "out": nn.Linear(4, 4)})
    assert [name for name, _ in LowRank(module, 2).named_parameters()] == ["down./out", "up./out"]
    with pytest.raises(ValueError, match="no linear layer"):
        LowRank(attention)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_low_rank_copy_and_its_base(checkpointed):
    """One module is both fields: at first the same bits, then W + B A against W, and its sweep."""
    expert, before, batch = make_expert(), make_expert(), action_experts.observations()
    field, x0 = expert.field(), draw(1, ROWS, CHUNK * WIDTH)
    context, plain = field.context(batch), before.field()
    copy = low_rank_of(expert)
    base, t = copy.base(field), torch.full((1, ROWS, 1), 0.3, dtype=torch.float64)
    assert torch.equal(field(context.value, x0, t), base(context.value, x0, t))
    assert not any(p.requires_grad for p in expert.parameters())
    names = {key.split(".")[1] for key in copy.state_dict()}
    assert names == {"/expert_in", "/expert_mid", "/action_out"}

    changed(copy)
    expert.checkpointed = checkpointed
    full = make_expert()
    for name in names:
        layer = full.get_submodule(name.removeprefix("/"))
        layer.weight.data += copy.up[name].data @ copy.down[name].data
    assert_equal64([field(context.value, x0, t)], [full.field()(context.value, x0, t)])
    assert torch.equal(base(context.value, x0, t), plain(context.value, x0, t))

    trajectory = draw(1, STEPS + 1, ROWS, CHUNK * WIDTH, seed=4)
    sweep = [lean_adjoint(f, context, trajectory, x0) for f in (base, plain)]
    assert_equal64(sweep[:1], sweep[1:])
    assert torch.equal(
        velocity_along(base, context, trajectory), velocity_along(plain, context, trajectory)
    )
    assert not torch.allclose(lean_adjoint(field, context, trajectory, x0), sweep[1])
    copy.remove()
    assert torch.equal(field(context.value, x0, t), plain(context.value, x0, t))
    with pytest.raises(ValueError, match="no linear layer"):
        LowRank(expert, choose=lambda name: False)
    with pytest.raises(ValueError, match="rank is 0"):
        LowRank(expert, 0)


def test_the_page_runs_as_written():
    text = (Path(__file__).parent.parent / "docs" / "your_own_policy.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    names = {}
    exec("\n".join(blocks), names)
    actions = torch.zeros(1, names["ROWS"], names["H"] * names["A"], requires_grad=True)
    (gradient,) = torch.autograd.grad(names["critic"](actions).sum(), actions)
    assert gradient.shape == actions.shape and gradient.abs().sum() > 0
    assert len(blocks) == 9 and float(names["match"].path_kl) > 0
    members = [MLPWeights.from_linears(member) for member in names["critics"].members]
    assert all(member.layer_norm and len(member.kernels) > 2 for member in members)
    low_rank, layer = names["copy"], "/expert/0"
    change = names["weights"]["expert.0.weight"] - names["model"].expert[0].weight
    torch.testing.assert_close(change, low_rank.up[layer] @ low_rank.down[layer])


def critic(actions):
    return action_experts.critic(actions)


@pytest.mark.parametrize("algo", ["trqam", "trqam on a cosine path", "sqam"])
def test_match_is_the_update_of_the_equations(algo):
    """Loss, path KL and gradients, from the ops put together in one graph."""
    expert, batch = make_expert(), action_experts.observations()
    path = AffinePath.cosine() if "cosine" in algo else AffinePath.linear()
    field = expert.field(path=path)
    context, copy = field.context(batch), changed(low_rank_of(expert))
    base, dim = copy.base(field), CHUNK * WIDTH
    x0, noise = draw(1, ROWS, dim, seed=1), draw(1, STEPS - 1, ROWS, dim, seed=2)
    lam, mask = torch.full((1,), 0.7, dtype=torch.float64), torch.arange(dim) % WIDTH < 3
    common = dict(horizon=CHUNK, action_mask=mask)
    if algo != "sqam":
        found = match_trqam(field, base, context, critic, x0, noise, lam, **common)
        schedule = path.noise_schedule(STEPS)
        rollout = sde_rollout(field, base, context, x0, noise, schedule=schedule)
        end = rollout.trajectory[:, -1]
        terminal = terminal_adjoint(critic, end, action_mask=mask)
        adjoint = lean_adjoint(base, context, rollout.trajectory, terminal, schedule=schedule)
        points = rollout.trajectory[:, :-1]
    else:
        found = match_sqam(field, base, context, critic, x0, noise, lam, flow_steps=STEPS, **common)
        end = ode_rollout(field, context, x0, STEPS).detach()
        terminal = terminal_adjoint(critic, end, action_mask=mask)
        schedule = NoiseSchedule.bridge(STEPS)
        taus = [j / STEPS for j in range(1, STEPS + 1)]
        bridge = [(1 - tau) * noise[:, j] + tau * end for j, tau in enumerate(taus[:-1])]
        points = torch.stack([*bridge, end], 1)
        adjoint = torch.stack([tau * terminal for tau in taus], 1)
    gradients = [p.grad.clone() for p in copy.parameters()]
    rows = [
        field(context.value, x, torch.full_like(x[..., :1], t))
        for x, t in zip(points.unbind(1), schedule.times, strict=True)
    ]
    u = velocity_along(base, context, points, schedule=schedule)
    loss, kl = adjoint_matching(torch.stack(rows, 1), u, adjoint, lam, schedule=schedule, **common)
    expected = torch.autograd.grad(loss.sum(), list(copy.parameters()))
    assert_equal64([*found, *gradients], [loss, kl, end, *expected])


@pytest.mark.parametrize("match", [match_trqam, match_sqam])
def test_what_cannot_be_matched_is_named(match):
    """By the caller's names: what has no gradient, and a temperature that is no tensor."""
    op, net = match.__name__, nn.Linear(3, 3, dtype=torch.float64)

    def learned(s, x, t):
        return net(x)

    given = {
        "field": learned,
        "base": lambda s, x, t: x.sin(),
        "context": draw(1, 4, 2),
        "critic": lambda x: -x.square().sum(-1),
        "x0": draw(1, 4, 3),
        "noise": draw(1, 4, 4, 3, seed=1),
        "lam": torch.ones(1, dtype=torch.float64),
    } | ({"flow_steps": 5} if match is match_sqam else {})
    unseen = "without a gradient with respect to the actions"
    for change, kind, message in (
        ({"base": learned}, ValueError, f"{op}: base is field itself, .*LowRank"),
        ({"lam": 3.0}, TypeError, f"{op}: lam is a float; pass a torch.Tensor"),
        (
            {"lam": torch.ones(2).double()},
            ValueError,
            rf"{op}: lam has shape \[2\]; expected \[1\]",
        ),
        (
            {"context": draw(4, 2)},
            ValueError,
            rf"{op}: context .*; for one run pass context\[None\]",
        ),
        (
            {"context": Context(None), "x0": draw(4, 1, 3)},
            ValueError,
            rf"{op}: x0 has shape \[4, 1, 3\]; expected \[1, B, D\]; .* action_shape=\(1, 3\)\)$",
        ),
        ({"field": torch.no_grad()(learned)}, RuntimeError, f"{op}: field returned"),
        ({"critic": lambda x: -x.detach().sum(-1)}, RuntimeError, f"critic returned .* {unseen}"),
        ({"critic": lambda x: net(x.detach()).sum(-1)}, RuntimeError, unseen),
        ({"critic": lambda x: x.detach().sum(-1).numpy()}, TypeError, "critic returned a ndarray"),
    ):
        with pytest.raises(kind, match=message):
            match(**given | change)
    match(**given)


@pytest.mark.parametrize("algo", ["trqam", "sqam"])
def test_value_rises_and_the_budget_holds(algo, trained):
    """The example's own loop: D of an unmodified copy is 0; then near the budget; base unmoved."""
    expert = action_experts.ActionExpert(trained, trained.field(), chosen)
    done = action_experts.fine_tune(algo, expert, 300)
    assert done["first_kl"] == 0.0
    assert done["base_after"] == done["before"]
    assert done["after"] > done["before"] + 2.0
    assert abs(done["late_kl"] / action_experts.BUDGET - 1) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smolvla", "pi0"])
def test_lerobots_own_class(name):
    """What docs/your_own_policy.md says of both examples, where LeRobot 0.6 is installed."""
    pytest.importorskip("lerobot.policies.pi_gemma")
    make = getattr(importlib.import_module(f"examples.{name}"), name)
    expert = make()
    context = expert.field.context(action_experts.observations()).value
    x, t = torch.randn(1, ROWS, CHUNK * WIDTH), torch.full((1, ROWS, 1), 0.3)
    for _ in range(2):  # the first leaves nothing of its graph in the context
        expert.field(context, x, t).sum().backward()

    found = action_experts.prove(make, clone_updates=100, updates=300)
    assert "looks as it should" in found["field"] and "looks time-reversed" in found["raw"]
    assert found["deviation"] < 1.5e-6
    for algo in ("trqam", "sqam"):
        done = found[algo]
        assert done["first_kl"] == 0.0 and done["base_after"] == done["before"]
        assert done["after"] > done["before"] + 2.0
        assert abs(done["late_kl"] / action_experts.BUDGET - 1) < 0.1
        assert done["graph_bytes"] < found["rollout_bytes"] / 5


def test_weights_that_cannot_be_merged_are_left():
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    computed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    for module, fault in ((tied, "of another layer too"), (computed, "that are computed")):
        copy = LowRank(module, rank=2)
        with pytest.raises(TypeError, match=f"LowRank: 0 has weights {fault}, to which merge"):
            copy.merge()
        assert copy._hooks
