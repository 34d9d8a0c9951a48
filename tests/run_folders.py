"""Run folders and sweeps, as the trainer, a sweep and the authors' code leave them; their page."""

import json
import os
import time
from html.parser import HTMLParser

from trqam_fast.report.__main__ import main

COLUMNS = "stage,step,seed,bc_loss,critic_loss,path_kl,lam,q_mean,q_min,q_max"
CONFIG = {
    "env_name": "pointmaze-medium-navigate-singletask-task1-v0",
    "algo": "trqam",
    "seeds": [0, 1],
    "backend": "auto",
    "precision": "auto",
    "kl_budget": 1.0,
    "kl_budget_online": 0.25,
    "run_dir": "somewhere",
}
SUMMARY = {
    "backend": "cpp",
    "precision": "ieee",
    "seconds": {"data": 0.4, "pretrain": 3.0, "offline": 100.0, "online": 50.0},
    "online_seconds": {"learning": 40.0, "simulating": 5.0},
    "updates_per_second": {"pretrain": 600.0, "offline": 70.5},
    "failures": {},
}
STEPS = {"pretrain": (100, 200), "offline": (300, 400), "online": (450, 500)}
RATES = {200: (0.0, 0.2), 400: (0.6, 1.0), 500: (0.9, 1.0)}


def make_run(folder, *, seeds=(0, 1), stages=("pretrain", "offline", "online"), **config):
    """A run folder as the trainer leaves it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"seeds": list(seeds)} | config))
    (folder / "versions.json").write_text(json.dumps({"torch": "2.13", "cpu": "Tester"}))
    (folder / "summary.json").write_text(json.dumps(SUMMARY))
    rows, evaluations = [COLUMNS], ["step,success,stage,seed,episodes,return,length"]
    timing = ["stage,step,updates_per_second,seconds"]
    for stage in stages:
        for step in STEPS[stage]:
            timing.append(f"{stage},{step},70.5,{step}")
            for seed in seeds:
                trained = ",,,,," if stage == "pretrain" else f"2.5,1.{seed},0.5,-3,-{step},-1"
                rows.append(f"{stage},{step},{seed},{step / 100},{trained}")
        for seed in seeds:
            success = RATES[step][seed]
            evaluations.append(f"{step},{success},{stage},{seed},50,-10,200")
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n")
    (folder / "timing.csv").write_text("\n".join(timing) + "\n")
    (folder / "eval.csv").write_text("\n".join(evaluations) + "\n")
    return folder


class Page(HTMLParser):
    """Checks that tags match and collects text, images and everything that points elsewhere."""

    def __init__(self, html):
        super().__init__()
        self.open, self.texts, self.links, self.images, self.ids = [], [], [], [], []
        self.tags = set()
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        attributes = dict(attributes)
        self.links += [attributes[name] for name in ("src", "href", "srcset") if name in attributes]
        self.ids += [attributes["id"]] if "id" in attributes else []
        if tag == "svg" and attributes.get("role") == "img":
            self.images.append(attributes["aria-label"])
        if tag not in ("meta", "img", "br", "line", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.add(tag)
        attributes = dict(attributes)
        self.links += [attributes["href"]] if "href" in attributes else []
        self.ids += [attributes["id"]] if "id" in attributes else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def refers_to_itself_alone(self):
        """Whether every link goes to an id of this page, and every id is there once."""
        return len(self.ids) == len({*self.ids}) and {*self.links} <= {
            f"#{one}" for one in self.ids
        }

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def report(*paths, out):
    """The page about runs or folders of them."""
    assert main([*map(str, paths), "--out", str(out)]) == 0
    return Page((out / "index.html").read_text(encoding="utf-8"))


ONE, TWO, OTHER = (
    "cube-double-play-singletask-task1-v0",
    "cube-double-play-singletask-task2-v0",
    "pointmaze-medium-navigate-singletask-task1-v0",
)
METRICS = "stage,step,seed,bc_loss,path_kl,lam"
EVAL = "step,success,stage,seed,episodes,return,length"


def write_run(folder, env_name, algo, seeds, success, *, ended=True, failures=None, start=0.1,
              **config):  # fmt: skip
    """A run folder; `success` holds the last evaluation of each seed, None for none."""
    folder.mkdir(parents=True)
    config = {
        "env_name": env_name, "algo": algo, "seeds": list(seeds), "kl_budget": 0.5,
        "bc_steps": 300 if algo == "bc" else 0, "offline_steps": 6000, "online_steps": 0,
        "generated": True, "generated_transitions": 100_000,
    } | config  # fmt: skip
    evaluations, metrics = [EVAL], [METRICS]
    for seed, last in zip(seeds, success, strict=True):
        if algo == "bc":
            metrics.append(f"pretrain,300,{seed},0.5,,")
            if last is not None:
                evaluations.append(f"300,{last},pretrain,{seed},50,-1,9")
            continue
        evaluations.append(f"0,{start},pretrain,{seed},50,-1,9")
        evaluations.append(f"3000,0.2,offline,{seed},50,-1,9")
        for step, kl in ((1000, 0.1), (3000, 0.55), (6000, 0.4)):
            metrics.append(f"offline,{step},{seed},0.5,{kl},{1 + step / 1000}")
        if last is not None:
            evaluations.append(f"6000,{last},offline,{seed},50,-1,9")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "versions.json").write_text("{}")
    (folder / "eval.csv").write_text("\n".join(evaluations) + "\n")
    (folder / "metrics.csv").write_text("\n".join(metrics) + "\n")
    if ended:
        (folder / "summary.json").write_text(json.dumps({"failures": failures or {}}))
    return folder


class Sweep:
    """A sweep's folder, as its contract says."""

    def __init__(self, out):
        self.out, self.jobs = out, []
        out.mkdir(parents=True, exist_ok=True)

    def job(self, env_name, algo, method, success, *, seeds=(0, 1, 2), state="done", reason="",
            after=None, age=0.0, run=True, failures=None, ended=None, planned=None,
            **config):  # fmt: skip
        folder = (method or algo).lower().replace(" ", "_")
        name = f"{env_name}/{folder}/seeds_{'_'.join(map(str, seeds))}"
        self.jobs.append(
            {
                "name": name, "env_name": env_name, "algo": algo, "method": method,
                "seeds": list(seeds), "after": after,
                "config": planned or {"env_name": env_name, "algo": algo},
            }
        )  # fmt: skip
        if state is not None:
            path = self.out / "jobs" / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(
                json.dumps(
                    {
                        "state": state, "reason": reason, "host": "node7", "pid": 1, "attempt": 1,
                        "started": 1.0, "ended": None,
                    }
                )
            )  # fmt: skip
            os.utime(path, (time.time() - age,) * 2)
        if run and state is not None:
            write_run(self.out / "runs" / name, env_name, algo, seeds, success,
                      ended=state == "done" if ended is None else ended, failures=failures,
                      **config)  # fmt: skip
        self.write()
        return name

    def write(self):
        (self.out / "plan.json").write_text(json.dumps({"format": 2, "jobs": self.jobs}))


def troubled(out):
    """Two tasks, three methods, and everything that can happen to a run."""
    sweep = Sweep(out)
    clone = sweep.job(ONE, "bc", "BC", [0.1, 0.1, 0.1])
    other = sweep.job(TWO, "bc", "BC", [0.1, 0.1, 0.1])
    sweep.job(ONE, "qam", "QAM", [0.5, 0.6, 0.7], after=clone)
    sweep.job(TWO, "qam", "QAM", [], state="failed", run=False, after=other,
              reason="--device is cuda, but there is <none>")  # fmt: skip
    sweep.job(ONE, "trqam", "TRQAM", [0.9, 0.8, None], after=clone,
              failures={"2": "critic_loss is not finite at step 3500"})  # fmt: skip
    sweep.job(TWO, "trqam", "TRQAM", [0.6, None], seeds=(0, 1), after=other, state="running")
    sweep.job(TWO, "trqam", "TRQAM", [None], seeds=(2,), after=other, state="running", age=500)
    return sweep


def write_authors(folder, *, seed=10001, agent="trqam", rows=((50, 0.1), (100, 0.6)), ended=True,
                  flags=True, kl_budget=0.5, **more):  # fmt: skip
    """A run folder of the authors' code."""
    folder.mkdir(parents=True)
    if flags:
        values = {
            "env_name": ONE, "seed": seed, "offline_steps": 100, "online_steps": 0,
            "agent": {"agent_name": agent, "kl_budget": kl_budget, "lam_scale": 3.0},
        } | more  # fmt: skip
        (folder / "flags.json").write_text(json.dumps(values))
    lines = ["avg_gripper_contact_length,success,episode.return,total.timesteps,step"]
    lines += [f"0.0,{success},-10,500,{step}" for step, success in rows]
    (folder / "eval.csv").write_text("\n".join(lines) + "\n")
    (folder / "offline_agent.csv").write_text(
        "actor/path_kl,dual/lambda,step\n0.1,3.0,1000\n0.55,6.0,3000\n"
    )
    if ended:
        (folder / "token.tk").write_text("somewhere")
    return folder
